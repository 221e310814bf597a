"""Stand-ins with predictable answers: a formula for a model, lists for sockets, a clock by hand."""

import select
from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

from scheduler.plan import NO_TOKEN, Admission, Chunk, Move, StepPlan, StepResult, TokenScore
from shared.config import Identity
from shared.errors import ErrorCode
from shared.mailbox import Mailbox
from shared.messages import AddressBook, Message, Stop
from shared.parts import Peer

MessageT = TypeVar("MessageT")

FORMULA_VOCABULARY = 40
POISON = 99  # a prompt token that makes the formula's logits NaN
SHUTDOWN = Stop(ErrorCode.SHUTTING_DOWN, "the test is over")
WAITS_FOR_EVER_SECONDS = 1.0  # a receive this long has nothing else to do
DECODES_SECONDS = 20.0  # in which another process has something to say


def formula(tokens: Sequence[int]) -> int:
    """The token after these: every token and every position matters; NO_TOKEN after poison."""
    if POISON in tokens:
        return NO_TOKEN
    state = 17
    for token in tokens:
        state = (state * 31 + token) % 1_000_003
    return state % FORMULA_VOCABULARY


def formula_score(tokens: Sequence[int]) -> TokenScore | None:
    """How likely the last of these tokens was after the others; None after poison."""
    *before, token = tokens
    likeliest = formula(before)
    if likeliest == NO_TOKEN:
        return None
    return TokenScore(-len(before) - token / 100, (likeliest,), (-float(len(before)),))


def formula_answer(
    prompt: Sequence[int], max_tokens: int, end_token_ids: frozenset[int]
) -> list[int]:
    """What a sequence answers when it is alone in the world."""
    answer: list[int] = []
    while len(answer) < max_tokens and not end_token_ids.intersection(answer):
        token_id = formula([*prompt, *answer])
        if token_id == NO_TOKEN:
            break
        answer.append(token_id)
    return answer


def formula_vector(tokens: Sequence[int]) -> bytes | None:
    """The vector of these tokens; None after poison."""
    number = formula(tokens)
    return None if number == NO_TOKEN else array("f", (number, len(tokens))).tobytes()


class FormulaRunner:
    """Executes plans on a paged cache that holds token ids in place of keys and values.

    It knows only what the plans say, and reads every context back through the row's block table:
    a wrong start, a missing block or a block that two sequences share gives a wrong token.
    """

    def __init__(self, *, num_blocks: int, block_size: int, max_sequences: int) -> None:
        self.plans: list[StepPlan] = []
        self.num_written = 0  # tokens whose keys and values were computed
        self.tables: dict[int, list[int]] = {}
        self._num_seen: dict[int, int] = {}
        self._asking: set[int] = set()  # rows whose sampled tokens are told with logprobs
        self._block_size = block_size
        self._num_rows = max_sequences
        self._slots: list[int | None] = [None] * ((num_blocks + 1) * block_size)
        self._last: dict[int, int] = {}  # what was sampled last, by row: the device's memory

    @property
    def num_mixed(self) -> int:
        """Steps so far that held both decode and prefill."""
        return sum(plan.is_mixed for plan in self.plans)

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step, after looking at the plan as a suspicious reader."""
        flight = self.launch(plan)
        flight.sample({})
        return flight.result()

    def launch(self, plan: StepPlan) -> "FormulaFlight":
        """Writes the step's tokens, those that are pending from its own memory."""
        self.plans.append(plan)
        plan = plan.fed(self._last)
        for admission in plan.admissions:
            self._begin(admission)
        for chunk in plan.chunks:
            self._write(chunk)
        self._check_order(plan)
        return FormulaFlight(self, plan)

    def sample(self, plan: StepPlan) -> StepResult:
        """What a step that has been written comes to, before another is."""
        rows = [chunk.row for chunk in plan.chunks if chunk.samples]
        self._last.update((row, formula(self._context(row))) for row in rows)
        return StepResult(
            tuple(self._last[row] for row in rows),
            scores=tuple(self._score(row) for row in rows) if self._asking else (),
            prompt_scores=tuple(score for chunk in plan.chunks for score in self._scores(chunk)),
            vectors=tuple(formula_vector(self._context(c.row)) for c in plan.chunks if c.pools),
        )

    def _score(self, row: int) -> TokenScore | None:
        """The score of the row's next token, where it is asked for."""
        context = self._context(row)
        return formula_score([*context, formula(context)]) if row in self._asking else None

    def _scores(self, chunk: Chunk) -> Iterator[TokenScore | None]:
        """The scores of a chunk's targets; a position outside the chunk has no logits."""
        context = self._context(chunk.row)
        for position, target in enumerate(chunk.targets, start=chunk.first_scored):
            assert chunk.start <= position < len(context), "scored without its logits"
            yield formula_score([*context[: position + 1], target])

    def _begin(self, admission: Admission) -> None:
        assert 0 <= admission.row < self._num_rows
        num_cached = len(admission.cached_blocks) * self._block_size
        self._asking.discard(admission.row)
        if admission.sampling.num_logprobs is not None:
            self._asking.add(admission.row)
        self.tables[admission.row] = list(admission.cached_blocks)
        self._num_seen[admission.row] = num_cached
        assert num_cached < len(admission.token_ids), "nothing is left to compute"
        found = tuple(self._context(admission.row))
        assert found == admission.token_ids[:num_cached], "a cached block holds something else"

    def _write(self, chunk: Chunk) -> None:
        assert chunk.token_ids, "an empty chunk"
        assert chunk.start == self._num_seen[chunk.row], "tokens skipped or computed twice"
        num_old = -(-chunk.start // self._block_size)
        table = self.tables[chunk.row]
        assert len(table) == num_old, "blocks and tokens do not match"
        table += chunk.new_blocks
        assert 0 not in table, "block 0 is scratch"
        end = chunk.start + len(chunk.token_ids)
        assert len(table) == -(-end // self._block_size), "blocks and tokens do not match"
        for position, token_id in enumerate(chunk.token_ids, start=chunk.start):
            self._slots[self._slot(chunk.row, position)] = token_id
        self._num_seen[chunk.row] = end
        self.num_written += len(chunk.token_ids)

    def _check_order(self, plan: StepPlan) -> None:
        rows = [chunk.row for chunk in plan.chunks]
        assert len(rows) == len(set(rows)), "a row is twice in one step"
        readers = Counter(block for row in rows for block in set(self.tables[row]))
        for chunk in plan.chunks:
            written = self.tables[chunk.row][chunk.start // self._block_size :]
            assert all(readers[block] == 1 for block in written), "somebody reads what is written"
        decodes = plan.chunks[: plan.num_decodes]
        assert all(len(chunk.token_ids) == 1 and chunk.output_index for chunk in decodes)

    def _context(self, row: int) -> list[int]:
        slots = [self._slot(row, position) for position in range(self._num_seen[row])]
        return [token for slot in slots if (token := self._slots[slot]) is not None]

    def _slot(self, row: int, position: int) -> int:
        block, offset = divmod(position, self._block_size)
        return self.tables[row][block] * self._block_size + offset


class FormulaFlight:
    """A step of the formula under way: its tokens are sampled when that is launched."""

    def __init__(self, runner: FormulaRunner, plan: StepPlan) -> None:
        self._runner = runner
        self._plan = plan  # with what was fed
        self._result: StepResult | None = None

    def sample(self, fed: Mapping[int, int]) -> None:
        """Samples; what the host says was fed must be what the device has fed."""
        assert self._result is None, "sampled twice"
        for chunk in self._plan.chunks:
            token_id = fed.get(chunk.row, NO_TOKEN)
            assert token_id == NO_TOKEN or chunk.token_ids == (token_id,), "it was fed another"
        self._result = self._runner.sample(self._plan)

    def result(self) -> StepResult:
        assert self._result is not None, "nothing was sampled"
        return self._result


class SlotFormulaRunner:
    """Executes plans of an encoder-decoder, whose rows hold what was read and what was fed."""

    def __init__(self) -> None:
        self.num_moves = 0
        self._inputs: dict[int, tuple[int, ...]] = {}
        self._fed: dict[int, list[int]] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step; a move or an admission that is missing gives a wrong token."""
        assert not {m.source for m in plan.moves} & {a.row for a in plan.admissions}
        for move in plan.moves:
            self._move(move)
        for admission in plan.admissions:
            self._inputs[admission.row], self._fed[admission.row] = (
                admission.encoder_input.token_ids,
                [],
            )
        for chunk in plan.chunks:
            assert chunk.start == len(self._fed[chunk.row]), "tokens skipped or computed twice"
            self._fed[chunk.row] += chunk.token_ids
        contexts = {c.row: [*self._inputs[c.row], *self._fed[c.row]] for c in plan.chunks}
        return StepResult(
            tuple(formula(contexts[c.row]) for c in plan.chunks if c.samples),
            vectors=tuple(formula_vector(contexts[c.row]) for c in plan.chunks if c.pools),
        )

    def _move(self, move: Move) -> None:
        self.num_moves += 1
        target, admission = move.admission.row, move.admission
        assert tuple(self._fed[move.source]) == admission.token_ids
        assert self._inputs[move.source] == admission.encoder_input.token_ids
        self._fed[target] = self._fed.pop(move.source)
        self._inputs[target] = self._inputs.pop(move.source)


class ManualClock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += seconds


def is_readable(descriptors: Collection[int]) -> bool:
    """Waits, in real time, for one of the descriptors; false if there is none."""
    readable, _, _ = select.select([*descriptors], [], [], DECODES_SECONDS if descriptors else 0)
    return bool(readable)


class FakeMailbox(Mailbox):
    """A mailbox of lists: `deliver` fills it, `sent` is what left it, and waiting takes no time.

    A receive that may wait lets the clock run to the next delivery. If none comes in time it calls
    `when_waiting`, which by default orders the room to stop once it would wait for ever.
    """

    def __init__(self, identity: Identity, *rooms: str, clock: ManualClock | None = None) -> None:
        self.identity = identity
        self.peers = {room: Peer(room, 1, f"ipc:///nowhere/{room}", True, None) for room in rooms}
        self.is_warm = True
        self.is_draining = False
        self.num_beats = 0
        self.stop: Stop | None = None
        self.sent: list[tuple[str, Message]] = []
        self.unreachable: set[str] = set()
        self.clock = clock or ManualClock()
        self.when_waiting: Callable[[float | None], None] = self._stop_when_waiting_for_ever
        self._deliveries: deque[tuple[float, Message]] = deque()  # when and what, in order

    def deliver(self, *messages: Message, at: float = 0.0) -> None:
        """Lets messages arrive together, at this time or as soon as it can be."""
        self._deliveries.extend((at, message) for message in messages)

    def of_type(self, cls: type[MessageT]) -> list[MessageT]:
        """Everything sent of one class, in order."""
        return [message for _, message in self.sent if isinstance(message, cls)]

    def fileno(self) -> int:
        return -1

    def join(self) -> None:
        pass

    def close(self) -> None:
        pass

    def receive(
        self, timeout_seconds: float | None = 0.0, descriptors: Collection[int] = ()
    ) -> list[Message]:
        arrived = self._take_due()
        if not arrived and timeout_seconds != 0.0 and not is_readable(descriptors):
            self._wait(timeout_seconds)
            arrived = self._take_due()
        return self._work(arrived)

    def send(self, room: str, message: Message) -> bool:
        is_known = room in {*self.peers, "launcher-0"} - self.unreachable
        if is_known:
            self.sent.append((room, message))
        return is_known

    def update_peers(self, book: AddressBook) -> None:
        self.peers = {peer.room: peer for peer in book.peers}
        self.is_warm, self.is_draining = book.is_warm, book.is_draining

    def beat(self) -> None:
        self.num_beats += 1

    def _take_due(self) -> list[Message]:
        due: list[Message] = []
        while self._deliveries and self._deliveries[0][0] <= self.clock():
            due.append(self._deliveries.popleft()[1])
        return due

    def _wait(self, timeout_seconds: float | None) -> None:
        until_next = self._deliveries[0][0] - self.clock() if self._deliveries else None
        if until_next is not None and (timeout_seconds is None or until_next <= timeout_seconds):
            self.clock.now = self._deliveries[0][0]
            return
        self.clock.advance(timeout_seconds or WAITS_FOR_EVER_SECONDS)
        self.when_waiting(timeout_seconds)

    def _work(self, messages: list[Message]) -> list[Message]:
        work: list[Message] = []
        for message in messages:
            match message:
                case AddressBook():
                    self.update_peers(message)
                case Stop():
                    self.stop = message
                case _:
                    work.append(message)
        return work

    def _stop_when_waiting_for_ever(self, timeout_seconds: float | None) -> None:
        if timeout_seconds is None or timeout_seconds >= WAITS_FOR_EVER_SECONDS:
            self.stop = SHUTDOWN
