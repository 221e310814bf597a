"""A step that raises is run again in parts: the culprit fails, nobody else notices."""

import math
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.recovery import STICKY_ERRORS, IsolatingRunner
from gpu_worker.runner import Runner
from scheduler.plan import NO_TOKEN, StepPlan, StepResult
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence, State
from shared.errors import EXIT_FAILED, FatalError
from shared.parts import SequenceEnded
from tests.builders import GREEDY, make_scheduler
from tests.fakes import FormulaRunner, formula_answer, formula_score
from tests.gpu_worker.stage import Stage, expected_answer, generate, make_stage

BOMB = 70  # a prompt token on which the fragile runner raises
SCORING = replace(GREEDY, num_prompt_logprobs=1)  # each position must be scored just once
OUT_OF_MEMORY: tuple[Exception, ...] = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


class FragileRunner:
    """Raises before it computes anything, where `error_of` finds a reason in the plan."""

    def __init__(self, runner: Runner, error_of: Callable[[StepPlan], Exception | None]) -> None:
        self.plans: list[StepPlan] = []
        self._runner = runner
        self._error_of = error_of

    def execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        error = self._error_of(plan)
        if error is not None:
            raise error
        return self._runner.execute(plan)


def has_bomb(plan: StepPlan) -> Exception | None:
    is_bad = any(BOMB in chunk.token_ids for chunk in plan.chunks)
    return ValueError("this prompt breaks the model") if is_bad else None


def more_than(limit: int, error: Exception) -> Callable[[StepPlan], Exception | None]:
    """A device with memory for so many tokens of a step."""
    return lambda plan: error if plan.num_tokens > limit else None


class Bench:
    """A scheduler and a fragile formula, of blocks as large as the worker's."""

    def __init__(
        self, num_sequences: int, error_of: Callable[[StepPlan], Exception | None] = has_bomb
    ) -> None:
        num_blocks = 8 * num_sequences
        self.scheduler: Scheduler = make_scheduler(
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_sequences=num_sequences,
            max_tokens_per_step=10_000,
        )
        formula = FormulaRunner(
            num_blocks=num_blocks, block_size=BLOCK_SIZE, max_sequences=num_sequences
        )
        self.fragile = FragileRunner(formula, error_of)
        self._runner = IsolatingRunner(self.fragile)
        self.sequences: list[Sequence] = []

    def add(self, *prompt: int, max_tokens: int = 3) -> Sequence:
        sequence = Sequence(str(len(self.sequences)), prompt, max_tokens, frozenset(), SCORING)
        self.sequences.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> StepPlan:
        plan = self.scheduler.schedule()
        self.scheduler.apply(plan, self._runner.execute(plan))
        self.scheduler.check()
        return plan

    def run(self) -> None:
        while not self.scheduler.is_idle:
            self.step()

    def assert_all_right_but(self, *failed: Sequence) -> None:
        """These failed; all others answered as they would have alone."""
        assert [s for s in self.sequences if s.state is State.FAILED] == list(failed)
        for sequence in self.sequences:
            if sequence not in failed:
                prompt = sequence.token_ids[: sequence.num_prompt_tokens]
                answer = sequence.token_ids[sequence.num_prompt_tokens :]
                assert answer == formula_answer(prompt, sequence.max_tokens, frozenset())
                scores = [formula_score(prompt[:end]) for end in range(2, len(prompt) + 1)]
                assert sequence.take_prompt_scores() == tuple(scores)
        assert self.scheduler.pool.num_used == 0


def test_a_step_that_does_not_raise_is_run_once() -> None:
    bench = Bench(4)
    for number in range(4):
        bench.add(number, 20)
    assert bench.step() is bench.fragile.plans[0]
    assert len(bench.fragile.plans) == 1


@pytest.mark.parametrize("num_sequences", [1, 2, 16, 64])
@pytest.mark.parametrize("place", [0.0, 0.4, 1.0])
def test_one_culprit_is_found_in_twice_the_logarithm_of_steps(
    num_sequences: int, place: float
) -> None:
    bench = Bench(num_sequences)
    culprit_number = round(place * (num_sequences - 1))
    for number in range(num_sequences):
        bench.add(number, *([BOMB] if number == culprit_number else [20]))
    bench.step()
    least = 2  # one that is alone gets a second try
    assert len(bench.fragile.plans) <= max(2 * math.log2(num_sequences) + 1, least)
    bench.run()
    bench.assert_all_right_but(bench.sequences[culprit_number])


def test_what_fails_once_is_computed_again_also_where_nobody_shares_its_step() -> None:
    errors = iter([ValueError("a passing fault")])
    bench = Bench(1, lambda _: next(errors, None))
    bench.add(0, 20)
    bench.run()
    bench.assert_all_right_but()


def test_one_culprit_among_decodes_harms_none_of_them() -> None:
    bench = Bench(16)
    for number in range(12):
        bench.add(number, 20, max_tokens=2 + number)
    bench.step()
    bench.step()
    culprit = bench.add(20, BOMB)
    for number in range(30, 33):
        bench.add(number)
    assert bench.step().is_mixed
    bench.run()
    bench.assert_all_right_but(culprit)


def test_a_sequence_that_breaks_while_it_decodes_fails_alone() -> None:
    def breaks(plan: StepPlan) -> Exception | None:
        is_bad = any(chunk.row == 3 and chunk.output_index == 2 for chunk in plan.chunks)
        return IndexError("no such thing") if is_bad else None

    bench = Bench(16, breaks)
    for number in range(16):
        bench.add(number, 20, max_tokens=5)
    bench.run()
    (culprit,) = [s for s in bench.sequences if s.state is State.FAILED]
    assert culprit.num_output_tokens == 2
    bench.assert_all_right_but(culprit)


def test_several_culprits_fail_and_no_other() -> None:
    bench = Bench(16)
    for number in range(16):
        bench.add(number, *([BOMB] if number in {0, 7, 8, 15} else [20]))
    bench.run()
    bench.assert_all_right_but(*(bench.sequences[number] for number in (0, 7, 8, 15)))


def test_a_model_that_always_raises_fails_everybody_and_goes_on() -> None:
    bench = Bench(4, lambda _: RuntimeError("broken"))
    for number in range(4):
        bench.add(number)
    bench.run()
    bench.assert_all_right_but(*bench.sequences)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_a_step_too_large_for_memory_is_split_and_nobody_fails(error: Exception) -> None:
    bench = Bench(8, more_than(40, error))
    for number in range(8):
        bench.add(*range(number, number + 5 + 9 * number))
    bench.run()
    bench.assert_all_right_but()


@pytest.mark.parametrize("limit", [1, 7, 16, 60])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 97])
def test_a_single_long_prompt_is_cut_into_pieces_that_fit(limit: int, length: int) -> None:
    bench = Bench(1, more_than(limit, torch.OutOfMemoryError()))
    bench.add(*range(length))
    bench.run()
    bench.assert_all_right_but()
    computed = [plan for plan in bench.fragile.plans if plan.num_tokens <= limit]
    assert sum(plan.num_tokens for plan in computed) == length + 2, "nothing is computed twice"


def test_a_sequence_without_memory_for_one_token_fails_alone_and_its_rest_is_not_run() -> None:
    def is_full(plan: StepPlan) -> Exception | None:
        return torch.OutOfMemoryError() if any(c.row == 1 for c in plan.chunks) else None

    bench = Bench(3, is_full)
    for number in range(3):
        bench.add(*range(number, number + 32))
    bench.step()
    alone = [plan.num_tokens for plan in bench.fragile.plans if len(plan.chunks) == 1]
    assert [size for size in alone if size < 32] == [16, 8, 4, 2, 1]
    bench.run()
    bench.assert_all_right_but(bench.sequences[1])


def test_the_tensors_of_a_failed_run_are_gone_before_the_next() -> None:
    class Tensor:
        """Something that a weak reference can watch."""

    alive: list[weakref.ref[Tensor]] = []

    def allocate(plan: StepPlan) -> Exception | None:
        assert not [tensor for tensor in alive if tensor() is not None]
        held = Tensor()
        alive.append(weakref.ref(held))
        if plan.num_tokens > 2:
            raise torch.OutOfMemoryError  # here, so that this frame is in the traceback
        return None

    bench = Bench(8, allocate)
    for number in range(8):
        bench.add(number, number)
    bench.run()
    bench.assert_all_right_but()


@pytest.mark.parametrize("reason", STICKY_ERRORS)
def test_a_lost_gpu_ends_the_process(reason: str) -> None:
    error = RuntimeError(
        f"CUDA error: an {reason} was encountered\nCompile with TORCH_USE_CUDA_DSA"
    )
    bench = Bench(2, lambda _: error)
    bench.add(1)
    bench.add(2)
    with pytest.raises(FatalError, match=f"the GPU is lost to this process.*{reason}") as caught:
        bench.step()
    assert caught.value.exit_status == EXIT_FAILED == 70
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)
    assert len(bench.fragile.plans) == 1, "nothing is tried again"


def test_a_gpu_that_is_lost_while_parts_run_ends_the_process() -> None:
    def lost(plan: StepPlan) -> Exception | None:
        return RuntimeError("GPU is lost" if len(plan.chunks) == 1 else "something else")

    bench = Bench(2, lost)
    bench.add(1)
    bench.add(2)
    with pytest.raises(FatalError):
        bench.step()


def test_a_prompt_that_speaks_of_a_lost_gpu_fails_alone() -> None:
    bench = Bench(1, lambda _: ValueError("a device-side assert, said the prompt"))
    bench.add(1)
    bench.run()
    bench.assert_all_right_but(*bench.sequences)


def test_a_fatal_error_passes_as_it_is() -> None:
    fatal = FatalError("no more", 78)
    bench = Bench(2, lambda _: fatal)
    bench.add(1)
    bench.add(2)
    with pytest.raises(FatalError) as caught:
        bench.step()
    assert caught.value is fatal
    assert len(bench.fragile.plans) == 1


# ── in the worker ────────────────────────────────────────────────────────────────────────────────


def fragile_stage(*, prefix_caching: bool = False) -> Stage:
    return make_stage(
        lambda runner: IsolatingRunner(FragileRunner(runner, has_bomb)),
        prefix_caching=prefix_caching,
    )


@pytest.mark.parametrize("position", [3, 20, 39], ids=["first chunk", "mid-prefill", "last chunk"])
def test_a_prompt_that_breaks_the_model_is_told_to_its_caller_alone(position: int) -> None:
    stage = fragile_stage()
    prompt = [*range(40)]
    prompt[position] = BOMB
    bad, good = generate("bad", *prompt), generate("good", 21, max_tokens=6)
    stage.run(bad, good)
    assert stage.starts.count(bad.text) == 1, "the detokenizer must know whose end it is"
    assert [end for end in stage.ends if end.request_id == "bad"] == [
        SequenceEnded("bad", 0, "error", hides_last_token=False)
    ]
    assert stage.answer("good") == expected_answer(good)
    assert stage.answer("bad") == []
    assert stage.worker.scheduler.pool.num_used == 0


def test_nobody_finds_the_blocks_of_a_sequence_that_broke() -> None:
    stage = fragile_stage(prefix_caching=True)
    prompt = range(20, 40)  # longer than a step: its first blocks are known when it breaks
    stage.run_with(generate("bad", *prompt, BOMB), generate("good", *prompt), step=4)
    assert {started.text.request_id: started.cached_tokens for started in stage.started} == {
        "bad": 0, "good": 0
    }  # fmt: skip
    assert stage.answer("good") == expected_answer(generate("good", *prompt))


def test_a_failed_row_samples_nothing() -> None:
    bench = Bench(2)
    bench.add(1)
    bench.add(BOMB)
    result = IsolatingRunner(bench.fragile).execute(bench.scheduler.schedule())
    assert result.token_ids[1] == NO_TOKEN
    assert len(result.token_ids) == 2
    assert len(result.failed_rows) == 1
