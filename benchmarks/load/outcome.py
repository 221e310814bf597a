"""How one request ended: completed, refused or failed. All times are seconds of one clock."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Completed:
    """A whole answer, with the time of every piece that brought text."""

    sent: float
    ended: float
    text_times: tuple[float, ...]
    prompt_tokens: int
    output_tokens: int
    is_estimated: bool = False  # the server sent no usage: tokens are guessed from characters
    is_streamed: bool = True  # False: it came in one piece, whose text has no time of its own
    audio_seconds: float | None = None  # of a sound that was transcribed, where that is known

    @property
    def ttft(self) -> float | None:
        """Time to first token; None for an answer without text."""
        return self.text_times[0] - self.sent if self.text_times else None

    @property
    def itls(self) -> list[float]:
        """Gaps between pieces of text."""
        return [b - a for a, b in zip(self.text_times, self.text_times[1:], strict=False)]

    @property
    def e2el(self) -> float:
        """End-to-end latency."""
        return self.ended - self.sent

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None without a second one."""
        if self.output_tokens < 2 or not self.text_times:
            return None
        return (self.ended - self.text_times[0]) / (self.output_tokens - 1)


@dataclass(frozen=True)
class Refused:
    """The server was full (429) or unavailable (503) and said so."""

    sent: float
    ended: float
    status: int
    message: str


@dataclass(frozen=True)
class Failed:
    """Anything else that was no whole answer; `kind` groups failures of one cause."""

    sent: float
    ended: float
    kind: str
    message: str


Outcome = Completed | Refused | Failed


@dataclass(frozen=True)
class Run:
    """Everything that the statistics need."""

    started: float
    outcomes: Sequence[Outcome]
    max_send_delay: float  # seconds from a planned arrival to its request, at worst
    cpu_seconds: float  # of this process

    @property
    def duration(self) -> float:
        """Seconds from the start to the end of the last request."""
        return (
            max((outcome.ended for outcome in self.outcomes), default=self.started) - self.started
        )

    @property
    def completed(self) -> list[Completed]:
        """The whole answers."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Completed)]

    @property
    def refused(self) -> list[Refused]:
        """The refusals."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Refused)]

    @property
    def failed(self) -> list[Failed]:
        """The failures."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Failed)]


def first_of_each(problems: Iterable[Refused | Failed]) -> dict[str, tuple[int, str]]:
    """How many problems there are of each kind, and the message of the first."""
    found: dict[str, tuple[int, str]] = {}
    for problem in sorted(problems, key=lambda problem: problem.ended):
        kind = problem.kind if isinstance(problem, Failed) else f"HTTP {problem.status}"
        count, message = found.get(kind, (0, problem.message))
        found[kind] = (count + 1, message)
    return found
