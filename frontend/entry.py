"""One open request: how far it is, who works on it, and what of it has been heard. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from frontend.events import Event, TextAdded, VectorsFound
from frontend.life import Life
from shared.parts import ScoredToken, TextEnded
from shared.windows import window_name


class State(Enum):
    """How far a request is."""

    QUEUED = "queued"  # waits for places; no room is chosen for it yet
    ADMITTED = "admitted"  # waits in the frontend for a tokenizer's credit
    TOKENISING = "tokenising"
    RUNNING = "running"  # accepted; the worker has it, or will
    ENDED = "ended"


LEGAL_TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.ADMITTED, State.ENDED}),
    State.ADMITTED: frozenset({State.TOKENISING, State.ENDED}),
    State.TOKENISING: frozenset({State.RUNNING, State.ENDED}),
    State.RUNNING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}


@dataclass(frozen=True)
class Abandoned:
    """An ended request and the rooms that may still work for it; each is owed an `Abort`."""

    request_id: str
    rooms: tuple[str, ...]


class Row(Struct, gc=False):
    """One answer's part of a `TextProduced`."""

    name: str  # of the request, as the rooms behind call it
    worker: Life
    seq: int
    added: TextAdded
    prompt: tuple[ScoredToken, ...]  # of the prompt, with its request's first row, where asked for
    end: TextEnded | None


@dataclass
class Entry:
    """One open request."""

    request_id: str
    sink: Callable[[Event], None]
    deadline: float  # on the caller's monotonic clock, as all times
    num_choices: int = 1  # answers; 0: the tokenizer alone says what is asked
    wants_vectors: bool = False  # of texts, and no answer
    hears: bool = False  # its answers are the windows of a sound, which are made known one by one
    is_read: bool = False  # every window is known
    first_token_deadline: float = math.inf  # until there is text
    worker: Life | None = None  # set at admission, where there are answers or vectors
    detokenizer: Life | None = None  # likewise, where there are answers
    tokenizer: Life | None = None  # set while tokenising
    passed_on_by: Life | None = None  # the tokenizer, from its word to the first text
    digest: bytes = b""  # see `quarantine.py`
    is_callers: bool = True  # False: the server's own, which takes no caller's place
    state: State = State.QUEUED
    next_seqs: dict[int, int] = field(init=False)  # by answer; an ended one is not in it
    num_windows: int = 0  # that are known
    completion_tokens: int = 0  # of the answers that have ended
    reasoning_tokens: int = 0  # of those, in thoughts
    early: list[Row] = field(default_factory=list)
    early_vectors: VectorsFound | None = None

    def __post_init__(self) -> None:
        self.next_seqs = {} if self.hears else dict.fromkeys(range(self.num_choices), 0)

    @property
    def num_places(self) -> int:
        """Places among the answers under way that it takes."""
        return self.num_choices if self.is_callers else 0

    def move(self, state: State) -> None:
        """Changes the state; raises RuntimeError when the table does not allow it."""
        if state not in LEGAL_TRANSITIONS[self.state]:
            raise RuntimeError(f"{self.request_id}: {self.state.value} -> {state.value}")
        self.state = state

    def counts(self, row: Row) -> bool:
        """True for the next piece of an answer that has not ended, from the right worker."""
        choice = row.added.choice
        if row.worker != self.worker or self.next_seqs.get(choice) != row.seq:
            return False
        self.next_seqs[choice] = row.seq + 1
        return True

    def owners(self) -> tuple[Life, ...]:
        """The lives without which this request cannot go on."""
        lives = (self.tokenizer, self.worker, self.detokenizer)
        return tuple(life for life in lives if life is not None)

    def workers(self) -> tuple[Life, ...]:
        """The lives that work on this request now."""
        is_running = self.state is State.RUNNING
        lives = (self.worker, self.detokenizer) if is_running else (self.tokenizer,)
        return tuple(life for life in lives if life is not None)

    def open_window(self, number: int) -> None:
        """Makes a window known, by the tokenizer's word or by its text, and those before it."""
        while self.num_windows <= number:
            self.next_seqs[self.num_windows] = 0
            self.num_windows += 1

    def silent_names(self) -> list[str]:
        """What the worker calls those of its answers of which nothing has been heard."""
        if not self.hears:
            return [self.request_id]
        return [window_name(self.request_id, n) for n, seq in self.next_seqs.items() if not seq]

    def abandoned(self) -> list[Abandoned]:
        """What may hold this request and does not know by itself that it is over."""
        if self.state in (State.QUEUED, State.ADMITTED):
            return [Abandoned(self.request_id, ())]
        lives = (self.tokenizer, None if self.hears else self.worker)
        rooms = tuple(life.room for life in lives if life is not None)
        own = [Abandoned(self.request_id, rooms)]
        if not self.hears or self.worker is None:
            return own
        worker = (self.worker.room,)
        names = [window_name(self.request_id, number) for number in self.next_seqs]
        return [*own, *(Abandoned(name, worker) for name in names)]
