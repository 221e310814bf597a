"""Steps that are launched ahead: in which order things happen, and that nobody's answer changes."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from gpu_worker.pipeline import Pipeline
from gpu_worker.recovery import STICKY_ERRORS, IsolatingRunner
from gpu_worker.runner import Flight, Runner, launch
from gpu_worker.step_times import StepTimes
from scheduler.outcome import SampledToken
from scheduler.plan import NO_TOKEN, PENDING, Chunk, StepPlan, StepResult
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence, State
from shared.errors import FatalError
from tests.builders import END_TOKEN, GREEDY, make_scheduler
from tests.fakes import POISON, FormulaRunner, formula_answer, formula_score
from tests.scheduler.simulation import MANY_STEPS

ENDS = frozenset({END_TOKEN})
SIZES = {"num_blocks": 64, "block_size": 4, "max_sequences": 6}
SCORED = replace(GREEDY, num_logprobs=1, num_prompt_logprobs=1)


class Stream:
    """A device that works through what is launched in order, and only when somebody waits."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._work: deque[Callable[[], None]] = deque()

    def put(self, name: str, work: Callable[[], None]) -> None:
        """Launches work, which is done later."""
        self.events.append(name)
        self._work.append(work)

    def wait_until(self, is_done: Callable[[], bool]) -> None:
        """Does what was launched until this holds, and nothing after it."""
        while not is_done():
            self._work.popleft()()

    @property
    def is_busy(self) -> bool:
        """True while there is work that nobody has waited for."""
        return bool(self._work)


class RepeatableFormula(FormulaRunner):
    """A formula that may be asked for a step again, as it must be where one breaks late."""

    def _write(self, chunk: Chunk) -> None:
        assert chunk.start <= self._num_seen[chunk.row], "tokens skipped"
        self._num_seen[chunk.row] = chunk.start
        del self.tables[chunk.row][-(-chunk.start // self._block_size) :]
        super()._write(chunk)


class StreamRunner:
    """A formula on such a device."""

    def __init__(self, runner: FormulaRunner, stream: Stream) -> None:
        self._runner = runner
        self._stream = stream

    def execute(self, plan: StepPlan) -> StepResult:
        flight = self.launch(plan)
        flight.sample({})
        return flight.result()

    def launch(self, plan: StepPlan) -> "StreamFlight":
        return StreamFlight(self._runner, self._stream, plan)


class StreamFlight:
    """A step on the stream."""

    def __init__(self, runner: FormulaRunner, stream: Stream, plan: StepPlan) -> None:
        self._stream = stream
        self._step = plan.step
        self._flights: list[Flight] = []
        self._results: list[StepResult] = []
        stream.put(f"forward {plan.step}", lambda: self._flights.append(runner.launch(plan)))

    def sample(self, fed: Mapping[int, int]) -> None:
        self._stream.put(f"sample {self._step}", lambda: self._sample(fed))

    def _sample(self, fed: Mapping[int, int]) -> None:
        self._flights[0].sample(fed)
        self._results.append(self._flights[0].result())

    def result(self) -> StepResult:
        self._stream.wait_until(lambda: bool(self._results))
        self._stream.events.append(f"read {self._step}")
        return self._results[0]


class Bench:
    """A pipeline over the formula on a stream, which may be fragile."""

    def __init__(
        self,
        wrap: Callable[[Runner], Runner] = lambda runner: runner,
        *,
        overlaps: bool = True,
        prefix_caching: bool = False,
        num_blocks: int = 64,
    ) -> None:
        self.stream = Stream()
        sizes = {**SIZES, "num_blocks": num_blocks}
        self.scheduler: Scheduler = make_scheduler(prefix_caching=prefix_caching, **sizes)
        self.formula = RepeatableFormula(**sizes)
        runner = IsolatingRunner(wrap(StreamRunner(self.formula, self.stream)))
        self.pipeline = Pipeline(self.scheduler, runner, StepTimes(), overlaps=overlaps)
        self.sequences: list[Sequence] = []
        self.told: list[SampledToken] = []
        self.num_ahead_of_work = 0  # turns after which the device had something to do

    def add(self, *prompt: int, max_tokens: int = 6, num_answers: int = 1) -> Sequence:
        first = Sequence(str(len(self.sequences)), prompt, max_tokens, ENDS, SCORED)
        siblings = [first, *(first.fork(choice) for choice in range(1, num_answers))]
        self.sequences += siblings
        self.scheduler.add(*siblings)
        return first

    def turn(self) -> None:
        finished = self.pipeline.advance()
        self.scheduler.check()
        self.told += finished.outputs if finished else []
        self.num_ahead_of_work += self.stream.is_busy

    def run(self) -> None:
        for _ in range(MANY_STEPS):
            if self.scheduler.is_idle:
                break
            self.turn()
        assert self.scheduler.is_idle
        assert self.scheduler.pool.num_used == 0

    def assert_right(self, *failed: Sequence) -> None:
        """These failed; all others that nobody aborted answered as they would have alone."""
        assert [s for s in self.sequences if s.state is State.FAILED] == list(failed)
        for sequence in self.sequences:
            prompt = sequence.token_ids[: sequence.num_prompt_tokens]
            answer = sequence.token_ids[sequence.num_prompt_tokens :]
            whole = formula_answer(prompt, sequence.max_tokens, ENDS)
            has_end = sequence.state in (State.STOPPED, State.LENGTH)
            assert answer == (whole if has_end else whole[: len(answer)])
            told = [o for o in self.told if o.sequence is sequence and o.token_id != NO_TOKEN]
            assert [o.token_id for o in told] == answer
            contexts = [[*prompt, *answer[: n + 1]] for n in range(len(answer))]
            assert [o.score for o in told] == [formula_score(context) for context in contexts]
            assert [o.number for o in told] == list(range(len(answer)))


def fill(bench: Bench) -> None:
    """Requests of many lengths; some have several answers."""
    for number in range(14):
        prompt = range(number, number + 1 + 5 * number % 23)
        bench.add(*prompt, max_tokens=1 + 7 * number % 19, num_answers=1 + number % 3 // 2)


# ── order ────────────────────────────────────────────────────────────────────────────────────────


def test_the_next_forward_is_launched_before_tokens_are_read_and_sampling_after() -> None:
    bench = Bench()
    bench.add(5, 6, max_tokens=4)
    bench.run()
    assert bench.stream.events == [
        "forward 1", "sample 1",
        "forward 2", "read 1", "sample 2",
        "forward 3", "read 2", "sample 3",
        "forward 4", "read 3", "sample 4",
        "read 4",
    ]  # fmt: skip
    bench.assert_right()


def test_between_turns_the_device_always_has_work() -> None:
    bench = Bench()
    bench.add(5, 6, max_tokens=9)
    for _ in range(8):
        bench.turn()
    assert bench.num_ahead_of_work == 8


def test_without_overlap_each_step_is_read_before_the_next_is_planned() -> None:
    bench = Bench(overlaps=False)
    bench.add(5, 6, max_tokens=2)
    bench.run()
    assert bench.stream.events == [
        "forward 1",
        "sample 1",
        "read 1",
        "forward 2",
        "sample 2",
        "read 2",
    ]


def test_an_answer_that_ends_by_its_length_wastes_no_row() -> None:
    bench = Bench()
    for max_tokens in (1, 2, 5):
        bench.add(5, 6, max_tokens, max_tokens=max_tokens)
    bench.run()
    answered = sum(s.num_output_tokens for s in bench.sequences)
    assert sum(chunk.samples for plan in bench.formula.plans for chunk in plan.chunks) == answered


def test_an_end_token_wastes_one_row() -> None:
    bench = Bench()
    prompts = ((a, b) for a in range(30) for b in range(30))
    prompt = next(p for p in prompts if 3 < len(formula_answer(p, 30, ENDS)) < 30)
    bench.add(*prompt, max_tokens=40)
    bench.run()
    (sequence,) = bench.sequences
    assert sequence.state is State.STOPPED
    assert len(bench.formula.plans) == sequence.num_output_tokens + 1
    bench.assert_right()


def test_who_can_be_admitted_is_not_made_to_wait_for_a_step_ahead() -> None:
    bench = Bench()
    bench.add(5, 6, max_tokens=9)
    for _ in range(3):
        bench.turn()
    bench.add(7, 8)
    bench.turn()
    bench.turn()
    admitting = [plan.step for plan in bench.formula.plans if plan.admissions]
    assert admitting == [1], "it is launched, and the device has not come to it"
    bench.run()
    steps = [plan.step for plan in bench.formula.plans if plan.admissions]
    assert steps == [1, 4]
    bench.assert_right()


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("num_blocks", [64, 14])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_every_answer_is_what_it_would_have_been_alone(
    overlaps: bool, num_blocks: int, prefix_caching: bool
) -> None:
    bench = Bench(overlaps=overlaps, num_blocks=num_blocks, prefix_caching=prefix_caching)
    fill(bench)
    bench.run()
    bench.assert_right()
    assert (bench.scheduler.counters.num_preemptions > 0) is (num_blocks == 14)
    assert any(plan.is_ahead for plan in bench.formula.plans) is overlaps


@pytest.mark.parametrize("turn", range(12))
def test_an_abort_at_any_time_changes_nobody_elses_answer(turn: int) -> None:
    bench = Bench()
    fill(bench)
    for _ in range(turn):
        bench.turn()
    for name in ("0", "2", "9"):
        bench.scheduler.abort(name)
        bench.scheduler.check()
    num_told = len(bench.told)
    bench.run()
    aborted = [s for s in bench.sequences if s.state is State.ABORTED]
    assert not {o.sequence for o in bench.told[num_told:]} & set(aborted)
    bench.assert_right()


def test_logits_that_are_no_numbers_fail_their_own_row() -> None:
    bench = Bench()
    bench.add(5, 6, max_tokens=9)
    bad = bench.add(7, POISON, max_tokens=9)
    bench.add(8, 9, max_tokens=9)
    bench.run()
    bench.assert_right(bad)


# ── a step that raises ───────────────────────────────────────────────────────────────────────────


class Fragile:
    """Raises at a phase of the steps in which `is_bad` finds something."""

    def __init__(
        self, runner: Runner, phase: str, is_bad: Callable[[StepPlan], bool], error: Exception
    ) -> None:
        self._runner = runner
        self._phase = phase
        self._is_bad = is_bad
        self._error = error

    def execute(self, plan: StepPlan) -> StepResult:
        if self._is_bad(plan):
            raise self._error
        return self._runner.execute(plan)

    def launch(self, plan: StepPlan) -> Flight:
        if self._is_bad(plan) and self._phase == "launch":
            raise self._error
        return FragileFlight(launch(self._runner, plan), self, plan)

    def pass_phase(self, phase: str, plan: StepPlan) -> None:
        """Raises if it is time."""
        if phase == self._phase and self._is_bad(plan):
            raise self._error


class FragileFlight:
    """A flight that may raise."""

    def __init__(self, flight: Flight, fragile: Fragile, plan: StepPlan) -> None:
        self._flight = flight
        self._fragile = fragile
        self._plan = plan

    def sample(self, fed: Mapping[int, int]) -> None:
        self._fragile.pass_phase("sample", self._plan)
        self._flight.sample(fed)

    def result(self) -> StepResult:
        result = self._flight.result()
        self._fragile.pass_phase("result", self._plan)
        return result


PHASES = ("launch", "sample", "result")


def of_row(row: int, output_index: int) -> Callable[[StepPlan], bool]:
    """Steps in which this row samples this token of its answer."""
    return lambda plan: any((c.row, c.output_index) == (row, output_index) for c in plan.chunks)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("output_index", [0, 1, 4])
def test_a_culprit_fails_alone_wherever_its_step_raises(phase: str, output_index: int) -> None:
    error = ValueError("this row breaks the model")
    bench = Bench(lambda runner: Fragile(runner, phase, of_row(1, output_index), error))
    first = [bench.add(n, 20 + n, max_tokens=8) for n in range(4)]
    bench.run()
    assert first[1].num_output_tokens == output_index
    bench.assert_right(first[1])
    assert any(plan.is_ahead for plan in bench.formula.plans)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("step", range(1, 9))
def test_a_passing_fault_harms_nobody(phase: str, step: int) -> None:
    faults = Counter({step: 1})

    def is_bad(plan: StepPlan) -> bool:
        faults[plan.step] -= 1
        return faults[plan.step] == 0

    bench = Bench(lambda runner: Fragile(runner, phase, is_bad, RuntimeError("a passing fault")))
    fill(bench)
    bench.run()
    bench.assert_right()


@pytest.mark.parametrize("phase", PHASES)
def test_after_a_fault_steps_run_ahead_again(phase: str) -> None:
    bench = Bench(
        lambda runner: Fragile(runner, phase, of_row(0, 2), RuntimeError("this row breaks"))
    )
    bad = bench.add(5, 6, max_tokens=12)
    bench.add(7, 8, max_tokens=12)
    bench.run()
    bench.assert_right(bad)
    ahead = [plan.step for plan in bench.formula.plans if plan.is_ahead]
    assert max(ahead) == max(plan.step for plan in bench.formula.plans)


@pytest.mark.parametrize("phase", PHASES)
def test_a_lost_gpu_ends_the_process(phase: str) -> None:
    error = RuntimeError(f"CUDA error: {STICKY_ERRORS[0]}")
    bench = Bench(lambda runner: Fragile(runner, phase, of_row(0, 2), error))
    bench.add(5, 6)
    with pytest.raises(FatalError, match="the GPU is lost"):
        bench.run()


def test_nothing_pending_is_ever_executed_in_parts() -> None:
    seen: list[int] = []

    def is_bad(plan: StepPlan) -> bool:
        seen.extend(t for chunk in plan.chunks for t in chunk.token_ids if plan.step % 3 == 0)
        return plan.step % 3 == 0 and len(plan.chunks) > 1

    bench = Bench(lambda runner: Fragile(runner, "result", is_bad, ValueError("too many")))
    fill(bench)
    bench.run()
    bench.assert_right()
    assert PENDING in seen, "some were launched ahead"
