"""Whole lives of requests: a scheduler whose plans are computed by a runner that trusts nothing."""

from collections.abc import Callable
from dataclasses import replace

from scheduler.outcome import SampledToken
from scheduler.plan import Admission, StepPlan, StepResult
from scheduler.sequence import Sequence, State
from tests.builders import GREEDY, make_scheduler
from tests.fakes import FormulaRunner, formula_answer

BLOCK_SIZE = 4
MANY_STEPS = 2_000  # no test here needs as many


class Simulation:
    """64 blocks of 4 tokens, 4 rows and 16 tokens a step, unless told otherwise."""

    def __init__(self, *, prefix_caching: bool = True, **overrides: int) -> None:
        self.scheduler = make_scheduler(prefix_caching=prefix_caching, **overrides)
        self.runner = FormulaRunner(
            num_blocks=self.scheduler.pool.num_blocks,
            block_size=BLOCK_SIZE,
            max_sequences=overrides.get("max_sequences", 4),
        )

    @property
    def pool_state(self) -> tuple[int, int]:
        """Blocks in use, and blocks without owner that can be found."""
        return self.scheduler.pool.num_used, self.scheduler.pool.num_cached

    def add(self, *sequences: Sequence) -> None:
        """Queues requests of one answer each."""
        for sequence in sequences:
            self.scheduler.add(sequence)
            self.scheduler.check()

    def fork(self, first: Sequence, num_answers: int) -> list[Sequence]:
        """Queues one request of several answers."""
        siblings = [first, *(first.fork(choice) for choice in range(1, num_answers))]
        self.scheduler.add(*siblings)
        return siblings

    def step(self, *failed: Sequence) -> StepPlan:
        """One step, in which these sequences fail."""
        plan = self.scheduler.schedule()
        self.scheduler.check()
        assert plan.is_empty == self.scheduler.is_idle, "work waits, but nothing is planned"
        result = self.runner.execute(plan)
        rows = frozenset(sequence.row for sequence in failed)
        self.apply(plan, replace(result, failed_rows=rows))
        return plan

    def apply(self, plan: StepPlan, result: StepResult) -> list[SampledToken]:
        """Records a step and looks at the books."""
        outputs = self.scheduler.apply(plan, result)
        self.scheduler.check()
        return outputs

    def run_until(self, condition: Callable[[], bool]) -> StepPlan:
        """Steps until something holds and returns the step that brought it about."""
        plans = []
        while not condition():
            assert not self.scheduler.is_idle, "it did not come to that"
            plans.append(self.step())
        assert plans, "it was so from the start"
        return plans[-1]

    def run_until_preempted(self, sequence: Sequence, times: int = 1) -> StepPlan:
        """Steps until the sequence has lost its blocks so often."""
        return self.run_until(lambda: sequence.num_preemptions == times)

    def run_until_running(self, sequence: Sequence) -> StepPlan:
        """Steps until the sequence is admitted."""
        return self.run_until(lambda: sequence.state is State.RUNNING)

    def run_to_end(self) -> list[StepPlan]:
        """Steps until nothing waits or runs."""
        plans: list[StepPlan] = []
        while not self.scheduler.is_idle:
            plans.append(self.step())
            assert len(plans) < MANY_STEPS, "it never comes to rest"
        assert self.scheduler.pool.num_used == 0
        return plans

    def serve(self, sequence: Sequence) -> Admission:
        """Runs a request to its end, alone, and returns its first admission."""
        self.add(sequence)
        return self.run_to_end()[0].admissions[0]


def numbers(count: int, first: int = 0) -> tuple[int, ...]:
    """A prompt of consecutive tokens; the first one tells prompts apart."""
    return tuple(range(first, first + count))


def request(
    request_id: str, prompt: tuple[int, ...], max_tokens: int = 1, salt: str | None = ""
) -> Sequence:
    """A sequence that ends by its length only."""
    return Sequence(request_id, prompt, max_tokens, frozenset(), GREEDY, cache_salt=salt)


def assert_right(*sequences: Sequence) -> None:
    """Each has said what it would have said alone in the world, and to its full length."""
    for sequence in sequences:
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        answer = sequence.token_ids[sequence.num_prompt_tokens :]
        assert answer == formula_answer(prompt, sequence.max_tokens, frozenset())
        assert sequence.state is State.LENGTH
