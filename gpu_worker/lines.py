"""What each detokenizer is told, step by step, and how far behind it is.

All of a request goes to one detokenizer, by its route. Each has a line of its own: its messages are
numbered by themselves, and it acknowledges them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gpu_worker.audience import Audience
from scheduler.outcome import SampledToken
from shared.messages import StepsAcknowledged
from shared.parts import Peer, RequestLost, SequenceEnded

MAX_UNACKNOWLEDGED_STEPS = 64


def detokenizer(number: int) -> str:
    """The room's name."""
    return f"detokenizer-{number}"


@dataclass
class Line:
    """One detokenizer: what it is still to be told besides tokens, and what it has been told."""

    room: str
    epoch: int | None = None  # as the address book has it; None: nobody lives there
    ended: list[SequenceEnded] = field(default_factory=list)  # to be told with the next message
    lost: list[RequestLost] = field(default_factory=list)  # likewise
    num_sent: int = 0  # messages, without those that were lost: nobody acknowledges them
    num_acknowledged: int = 0

    @property
    def has_news(self) -> bool:
        """True when something is to be told without a token."""
        return bool(self.ended or self.lost)

    def begin_life(self, epoch: int | None) -> None:
        """Another life, or none: what the dead was to be told and to acknowledge is for nobody."""
        self.epoch = epoch
        self.ended, self.lost = [], []
        self.num_acknowledged = self.num_sent


class Lines:
    """The lines of all detokenizers that have had a request."""

    def __init__(self, audience: Audience, peers: Mapping[str, Peer]) -> None:
        self._audience = audience
        self._peers = peers
        self._lines: dict[int, Line] = {}  # by detokenizer

    def open(self, number: int) -> Line:
        """The line of one detokenizer, from now on."""
        if number not in self._lines:
            room = detokenizer(number)
            self._lines[number] = Line(room, _epoch(self._peers, room))
        return self._lines[number]

    def line_of(self, request_id: str) -> Line:
        """The line of a request that is held."""
        return self.open(self._audience.detokenizer_of(request_id))

    @property
    def has_news(self) -> bool:
        """True when something is to be told that no step may carry."""
        return any(line.has_news for line in self._lines.values())

    @property
    def is_ahead(self) -> bool:
        """True when some detokenizer is so far behind that no step may be planned."""
        return self._num_unacknowledged >= MAX_UNACKNOWLEDGED_STEPS

    @property
    def may_plan_ahead(self) -> bool:
        """False when the step under way is the last that may be sent unacknowledged."""
        return self._num_unacknowledged + 1 < MAX_UNACKNOWLEDGED_STEPS

    @property
    def _num_unacknowledged(self) -> int:
        """Steps that the slowest detokenizer is behind; what is sent to the dead is nobody's."""
        lines = [line for line in self._lines.values() if line.epoch is not None]
        return max((line.num_sent - line.num_acknowledged for line in lines), default=0)

    def acknowledge(self, message: StepsAcknowledged) -> None:
        """Takes a detokenizer's word of how far it is."""
        line = self._lines.get(message.detokenizer_id)
        if line is not None:
            line.num_acknowledged = max(line.num_acknowledged, message.step)

    def compare_lives(self, peers: Mapping[str, Peer]) -> None:
        """Begins anew with every detokenizer that has died or begun another life."""
        self._peers = peers
        for line in self._lines.values():
            epoch = _epoch(peers, line.room)
            if epoch != line.epoch:
                line.begin_life(epoch)

    def split(self, outputs: list[SampledToken]) -> Iterator[tuple[Line, list[SampledToken]]]:
        """A step's outputs by detokenizer, each in the step's order; who has nothing is left out.

        The requests must still be held.
        """
        if len(self._lines) == 1:
            parts = dict.fromkeys(self._lines, outputs)
        else:
            parts = {number: [] for number in self._lines}
            for output in outputs:
                number = self._audience.detokenizer_of(output.sequence.request_id)
                parts[number].append(output)
        for number, line in self._lines.items():
            if parts[number] or line.has_news:
                yield line, parts[number]


def _epoch(peers: Mapping[str, Peer], room: str) -> int | None:
    return peers[room].epoch if room in peers else None
