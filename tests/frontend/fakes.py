"""The other rooms, played by a script: a mailbox without sockets and the answers that it brings."""

import contextlib
import dataclasses
import os
import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from shared.config import Identity
from shared.errors import ErrorCode
from shared.mailbox import LAUNCHER, Mailbox
from shared.messages import (
    Abort,
    AddressBook,
    CreditGranted,
    Message,
    PromptAccepted,
    RequestFailed,
    Stop,
    TextProduced,
    Tokenize,
    WorkerReported,
)
from shared.parts import ModelFacts, Peer, TextEnded

MAX_MODEL_LEN = 512
FACTS = ModelFacts(MAX_MODEL_LEN, 640, {}, {})
PROMPT_TOKENS = 9
CACHED_TOKENS = 4


def make_book(epochs: dict[str, int] | None = None, *, ready: bool = True) -> AddressBook:
    """The three rooms, each at epoch 1 unless told otherwise; epoch 0 leaves a room out."""
    rooms = {"worker-0": 1, "tokenizer-0": 1, "detokenizer-0": 1, **(epochs or {})}
    return AddressBook(
        tuple(
            Peer(
                room,
                epoch,
                f"ipc://{room}.{epoch}",
                ready,
                FACTS if ready and "worker" in room else None,
            )
            for room, epoch in rooms.items()
            if epoch
        ),
        is_warm=ready,
    )


@dataclass(frozen=True)
class Piece:
    """One answer's row in a step of one request."""

    choice: int
    seq: int  # its n-th row is its n-th token
    text: str
    finish: str | None = None
    thoughts: str = ""
    reasoning_tokens: int = 0  # of the whole answer, with its end


def make_texts(request_id: str, *pieces: Piece, epoch: int = 1) -> TextProduced:
    """One step's text for the answers of one request."""
    return TextProduced(
        worker_id=0,
        epoch=epoch,
        request_ids=(request_id,) * len(pieces),
        choices=tuple(piece.choice for piece in pieces),
        seqs=tuple(piece.seq for piece in pieces),
        texts=tuple(piece.text for piece in pieces),
        completion_tokens=tuple(piece.seq + 1 for piece in pieces),
        scored=(),
        prompts=(),
        ended=tuple(
            TextEnded(
                request_id,
                piece.choice,
                piece.finish,
                None,
                CACHED_TOKENS,
                piece.reasoning_tokens,
            )
            for piece in pieces
            if piece.finish is not None
        ),
        thoughts=tuple(piece.thoughts for piece in pieces),
    )


def make_text(
    request_id: str,
    seq: int,
    text: str,
    *,
    choice: int = 0,
    epoch: int = 1,
    finish: str | None = None,
) -> TextProduced:
    """One step's text for one answer."""
    return make_texts(request_id, Piece(choice, seq, text, finish), epoch=epoch)


def make_report(
    step: int, running: int = 0, waiting: int = 0, used: int = 0, **totals: Any
) -> WorkerReported:
    """A worker's report, of 10 blocks."""
    report = WorkerReported(
        worker_id=0,
        epoch=1,
        step=step,
        num_running=running,
        num_waiting=waiting,
        num_blocks=10,
        num_used_blocks=used,
        num_preemptions=0,
        num_queried_tokens=0,
        num_cached_tokens=0,
        num_prompt_tokens=0,
        num_generated_tokens=0,
        num_mixed_steps=2,
        part_seconds={},
    )
    return dataclasses.replace(report, **totals)


class PipeMailbox(Mailbox):
    """A mailbox on a pipe, for event loops: sent messages are recorded, others come by hand."""

    def __init__(self, index: int = 0) -> None:
        self.identity = Identity("frontend", index, 1, "")
        self.peers: dict[str, Peer] = {}
        self.is_warm = self.is_draining = False
        self.stop: Stop | None = None
        self.sent: list[tuple[str, Message]] = []
        self.lost: list[tuple[str, Message]] = []  # for want of a peer that can be reached
        self.unreachable: set[str] = set()
        self.is_ready = threading.Event()
        self._arrived: deque[Message] = deque()
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK)

    def fileno(self) -> int:
        return self._read_fd

    def deliver(self, *messages: Message) -> None:
        """Puts messages into the inbox; from any thread."""
        self._arrived.extend(messages)
        os.write(self._write_fd, b"!")

    def receive(
        self, timeout_seconds: float | None = 0.0, descriptors: Collection[int] = ()
    ) -> list[Message]:
        assert timeout_seconds == 0.0, "the event loop must not block"
        with contextlib.suppress(BlockingIOError):  # fetched before it was announced
            os.read(self._read_fd, 4096)
        work: list[Message] = []
        while self._arrived:
            match self._arrived.popleft():
                case AddressBook(peers, is_warm, is_draining):
                    self.peers = {peer.room: peer for peer in peers}
                    self.is_warm, self.is_draining = is_warm, is_draining
                case Stop() as stop:
                    self.stop = stop
                case message:
                    work.append(message)
        return work

    def send(self, room: str, message: Message) -> bool:
        if room in self.unreachable or room not in {*self.peers, LAUNCHER}:
            self.lost.append((room, message))
            return False
        self.sent.append((room, message))
        return True

    def ready_rooms(self, kind: str) -> list[Peer]:
        return [p for p in self.peers.values() if p.is_ready and p.room.startswith(f"{kind}-")]

    def beat(self) -> None:
        pass

    def report_ready(self, model: ModelFacts | None = None) -> None:
        self.is_ready.set()

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)

    def sent_to(self, room: str) -> list[Message]:
        return [message for to, message in self.sent if to == room]

    def aborted(self, room: str = "worker-0") -> list[str]:
        return [m.request_id for m in self.sent_to(room) if isinstance(m, Abort)]


@dataclass
class ScriptedMailbox(PipeMailbox):
    """Plays all rooms: the last message's content says how its request goes.

    `say a|b` answers in two steps; `start a|b` leaves the answer open; `refuse` fails in the
    tokenizer; `hang` is never accepted; `break a` fails after its text. `say a|b/c` is for two
    answers; one alone stands for every answer that is asked for. `~a` is a thought.
    """

    requests: list[Tokenize] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def send(self, room: str, message: Message) -> bool:
        is_sent = super().send(room, message)
        if is_sent and isinstance(message, Tokenize):
            self._play(message)
            self.deliver(CreditGranted(room, 1, 1))
            self.requests.append(message)  # last: who sees it may go on where the script ended
        return is_sent

    def _play(self, request: Tokenize) -> None:
        verb, _, argument = _script(request).partition(" ")
        if verb == "hang":
            return
        if verb == "refuse":
            sentence = f"This model's maximum context length is {MAX_MODEL_LEN} tokens."
            code = ErrorCode.CONTEXT_LENGTH
            self.deliver(RequestFailed(request.request_id, code, sentence, "messages"))
            return
        self.deliver(PromptAccepted(request.request_id, PROMPT_TOKENS, _script(request)))
        answers = argument.split("/") if "/" in argument else [argument] * request.num_choices
        self._play_text(request.request_id, answers, finish="stop" if verb == "say" else None)
        if verb == "break":
            failed = RequestFailed(request.request_id, ErrorCode.INTERNAL, "It broke.", None)
            self.deliver(failed)

    def _play_text(self, request_id: str, answers: list[str], finish: str | None) -> None:
        columns = [answer.split("|") for answer in answers]
        for seq in range(max(map(len, columns))):
            pieces = [
                _piece(choice, seq, texts, finish)
                for choice, texts in enumerate(columns)
                if seq < len(texts)
            ]
            self.deliver(make_texts(request_id, *pieces))


def _piece(choice: int, seq: int, texts: list[str], finish: str | None) -> Piece:
    is_thought = texts[seq].startswith("~")
    text, thoughts = ("", texts[seq][1:]) if is_thought else (texts[seq], "")
    end = finish if seq == len(texts) - 1 else None
    return Piece(choice, seq, text, end, thoughts, sum(t.startswith("~") for t in texts))


def _script(request: Tokenize) -> str:
    """The last message's content, or the text to complete."""
    prompt = request.prompt
    if prompt.text is not None:
        return prompt.text.text
    assert prompt.chat is not None
    return str(prompt.chat.messages[-1]["content"])
