"""Random lives against the formula: whatever comes in whatever order, every answer is right."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence, State
from tests.builders import END_TOKEN, GREEDY
from tests.fakes import FORMULA_VOCABULARY, POISON, FormulaRunner, formula_answer

END_TOKENS = frozenset({END_TOKEN, 5})
TOKENS = st.integers(0, FORMULA_VOCABULARY - 1)


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, aborts and steps at random; a runner that trusts nothing computes the plans."""

    ids = Bundle("ids")

    @initialize(
        num_blocks=st.integers(4, 12),
        block_size=st.integers(1, 4),
        max_sequences=st.integers(1, 4),
        budget=st.integers(1, 9),
    )
    def start(self, num_blocks: int, block_size: int, max_sequences: int, budget: int) -> None:
        self.capacity = num_blocks * block_size
        self.scheduler = Scheduler(
            num_blocks=num_blocks,
            block_size=block_size,
            max_sequences=max_sequences,
            max_tokens_per_step=budget,
        )
        self.budget = max(budget, max_sequences)
        self.runner = FormulaRunner(
            num_blocks=num_blocks, block_size=block_size, max_sequences=max_sequences
        )
        self.sequences: dict[str, Sequence] = {}
        self.early: set[str] = set()
        self.aborted: set[str] = set()
        self.arrived: list[str] = []
        self.admitted: list[str] = []

    @rule(
        target=ids,
        prompt=st.lists(TOKENS, min_size=1, max_size=14),
        max_tokens=st.integers(1, 12),
        is_poisoned=st.sampled_from([False] * 7 + [True]),
    )
    def add(self, prompt: list[int], max_tokens: int, is_poisoned: bool) -> str:
        request_id = f"r-{len(self.sequences) + len(self.early)}"
        self._add(request_id, prompt + [POISON] * is_poisoned, max_tokens)
        return request_id

    @rule(prompt=st.lists(TOKENS, min_size=1, max_size=4))
    def add_after_its_abort(self, prompt: list[int]) -> None:
        request_id = f"early-{len(self.sequences)}"
        assert self.scheduler.abort(request_id) is None
        self.aborted.add(request_id)
        self._add(request_id, prompt, 3)
        assert self.sequences[request_id].state is State.ABORTED

    @rule(request_id=ids)
    def abort(self, request_id: str) -> None:
        sequence = self.sequences[request_id]
        was_alive = sequence.state in (State.WAITING, State.RUNNING)
        assert (self.scheduler.abort(request_id) is sequence) == was_alive
        if was_alive:
            self.aborted.add(request_id)
            assert sequence.state is State.ABORTED

    @rule()
    def step(self) -> None:
        self._step(None)

    @rule(request_id=ids)
    def step_with_an_abort_before_its_result(self, request_id: str) -> None:
        self._step(request_id)

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()
            num_alive = self.scheduler.num_running + self.scheduler.num_waiting
            assert self.scheduler.is_idle == (num_alive == 0)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):
            if self.scheduler.is_idle:
                break
            self._step(None)
            self.scheduler.check()
        assert self.scheduler.is_idle, "the scheduler never comes to rest"
        assert self.scheduler.pool.num_used == 0
        for request_id, sequence in self.sequences.items():
            self._check_answer(request_id, sequence)
        waited = [request_id for request_id in self.arrived if request_id in self.admitted]
        assert self.admitted == waited, "somebody overtook"

    def _add(self, request_id: str, prompt: list[int], max_tokens: int) -> None:
        prompt = prompt[: self.capacity]
        max_tokens = min(max_tokens, self.capacity - len(prompt) + 1)
        sequence = Sequence(request_id, tuple(prompt), max_tokens, END_TOKENS, GREEDY)
        self.sequences[request_id] = sequence
        self.scheduler.add(sequence)
        self.arrived.append(request_id)

    def _step(self, aborted: str | None) -> None:
        plan = self.scheduler.schedule()
        assert plan.is_empty == self.scheduler.is_idle, "work waits, but nothing is planned"
        assert plan.num_tokens <= self.budget
        by_row = {s.row: r for r, s in self.sequences.items() if s.state is State.RUNNING}
        self.admitted += [by_row[admission.row] for admission in plan.admissions]
        result = self.runner.execute(plan)
        if aborted is not None:
            self.abort(aborted)
        outputs = self.scheduler.apply(plan, result)
        assert all(output.sequence.request_id not in self.aborted for output in outputs)

    def _check_answer(self, request_id: str, sequence: Sequence) -> None:
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        answer = sequence.token_ids[sequence.num_prompt_tokens :]
        whole = formula_answer(prompt, sequence.max_tokens, END_TOKENS)
        if request_id in self.aborted:
            assert sequence.state is State.ABORTED
            assert answer == whole[: len(answer)]
        else:
            assert answer == whole
            assert sequence.state is self._expected_end(prompt, whole)

    def _expected_end(self, prompt: list[int], answer: list[int]) -> State:
        if POISON in prompt:
            return State.FAILED
        return State.STOPPED if answer[-1] in END_TOKENS else State.LENGTH


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
