"""A room's end of the wire: its inbox, its peers from the address book, the launcher's orders.

It handles what is the same in every room (`AddressBook`, `Stop`) and hands over the rest.
"""

import gc
import logging
import time
from collections.abc import Collection

from shared.config import Identity
from shared.messages import (
    AddressBook,
    Message,
    RoomGetsOn,
    RoomReady,
    RoomStarted,
    StageReached,
    Stop,
)
from shared.parts import ModelFacts, Peer
from shared.sockets import Inbox, Outbox

logger = logging.getLogger(__name__)

LAUNCHER = "launcher-0"
BEAT_SECONDS = 1.0  # from one sign of life of a room to the next


class Mailbox:
    """Receives for one room and sends to the others by name.

    `peers` is the newest address book, `is_warm` and `is_draining` what it says of the whole;
    `stop` is the launcher's order to end, once it has come.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.peers: dict[str, Peer] = {}
        self.is_warm = False
        self.is_draining = False
        self.stop: Stop | None = None
        self._beat_due = 0.0
        self._inbox = Inbox(identity.address)
        self._outboxes: dict[str, Outbox] = {}

    def fileno(self) -> int:
        """A descriptor that becomes readable on arrival; edge-triggered."""
        return self._inbox.fileno()

    def join(self) -> None:
        """Connects to the launcher and tells it that this inbox is bound, however long it takes."""
        launcher = Identity("launcher", 0, 0, self.identity.run_directory)
        self._outboxes[LAUNCHER] = Outbox(launcher.address)
        self._tell_launcher(RoomStarted(self.identity.room, self.identity.epoch))

    def report_stage(self, stage: str) -> None:
        """Tells the launcher what this room's start does now, such as `loading the weights`."""
        self.send(LAUNCHER, StageReached(self.identity.room, self.identity.epoch, stage))

    def report_ready(self, model: ModelFacts | None = None) -> None:
        """Tells the launcher that this room can do its work; a worker, of its model.

        What a room holds by now it holds to its end: the collector need not walk through it again,
        which takes some 50 ms and comes in the middle of everyone's answers.
        """
        gc.collect()
        gc.freeze()
        self._tell_launcher(RoomReady(self.identity.room, self.identity.epoch, model))

    def _tell_launcher(self, message: RoomStarted | RoomReady) -> None:
        while not self.send(LAUNCHER, message):
            self._outboxes[LAUNCHER].wait_until_connected()  # the machine is busy

    def beat(self) -> None:
        """Tells the launcher, if it is time, that this room gets on.

        To be called from the room's loop wherever it has finished something or has nothing to do: a
        ready room that is not heard of is taken for stuck, and replaced.
        """
        now = time.monotonic()
        if now >= self._beat_due:
            self._beat_due = now + BEAT_SECONDS
            self.send(LAUNCHER, RoomGetsOn(self.identity.room, self.identity.epoch))

    def receive(
        self, timeout_seconds: float | None = 0.0, descriptors: Collection[int] = ()
    ) -> list[Message]:
        """Returns the messages of this room's own work; waits for the first if there is none.

        It waits no longer once one of the descriptors can be read.
        """
        work: list[Message] = []
        for message in self._inbox.receive(timeout_seconds, descriptors):
            match message:
                case AddressBook():
                    self.update_peers(message)
                case Stop():
                    self.stop = message
                case _:
                    work.append(message)
        return work

    def send(self, room: str, message: Message) -> bool:
        """True if the room is known and connected; False means that the message is lost."""
        outbox = self._outboxes.get(room)
        if outbox is None or not outbox.send(message):
            logger.debug("%s cannot be reached with %s", room, type(message).__name__)
            return False
        return True

    def ready_rooms(self, kind: str) -> list[Peer]:
        """The ready peers of one kind, such as `worker`, in the address book's order."""
        ready = [peer for peer in self.peers.values() if peer.is_ready]
        return [peer for peer in ready if peer.room.startswith(f"{kind}-")]

    def update_peers(self, book: AddressBook) -> None:
        """Connects to rooms that are new or respawned, and forgets the ones that are gone."""
        old, self.peers = self.peers, {peer.room: peer for peer in book.peers}
        self.is_warm, self.is_draining = book.is_warm, book.is_draining
        for room, peer in old.items():
            if room not in self.peers or self.peers[room].address != peer.address:
                self._outboxes.pop(room).close()
        for room, peer in self.peers.items():
            if room not in self._outboxes:
                self._outboxes[room] = Outbox(peer.address)

    def close(self) -> None:
        """Closes every socket; what has not left is lost."""
        for outbox in self._outboxes.values():
            outbox.close()
        self._inbox.close()


def unexpected(message: Message) -> None:
    """Logs a message that this room has no use for; the sender is at fault, so nothing fails."""
    logger.warning("ignored an unexpected %s", type(message).__name__)
