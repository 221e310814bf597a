"""Random lives against the formula: whatever comes in whatever order, every answer is right."""

from collections import Counter
from dataclasses import replace
from typing import ClassVar

from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from gpu_worker.runner import Flight, launch
from scheduler.outcome import SampledToken
from scheduler.plan import NO_TOKEN, StepPlan, StepResult
from scheduler.scheduler import Scheduler
from scheduler.sequence import MAX_PREEMPTIONS, Sequence, State
from scheduler.waiting import MAX_OVERTAKES
from shared.sampling import SamplingParams
from tests.builders import GREEDY
from tests.fakes import FORMULA_VOCABULARY, POISON, FormulaRunner
from tests.scheduler.answers import END_TOKENS, check_answer, check_scores, rows_of, with_failure

SCORING = replace(GREEDY, num_prompt_logprobs=1)
TOKENS = st.integers(0, FORMULA_VOCABULARY - 1)
PREFIX = list(range(6, 20))  # what many prompts begin with
ALIVE = (State.WAITING, State.RUNNING)


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, forks, aborts, fails and steps at random; a runner that trusts nothing computes."""

    ids = Bundle("ids")
    seen: ClassVar[Counter[str]] = Counter()  # what happened, over all lives

    @initialize(
        num_blocks=st.integers(4, 20),
        block_size=st.sampled_from([1, 1, 2, 3, 4]),
        max_sequences=st.integers(1, 6),
        budget=st.integers(1, 10),
        prefix_caching=st.booleans(),
    )
    def start(
        self,
        num_blocks: int,
        block_size: int,
        max_sequences: int,
        budget: int,
        prefix_caching: bool,
    ) -> None:
        self.block_size = block_size
        self.capacity = num_blocks * block_size
        self.scheduler = Scheduler(
            num_blocks=num_blocks,
            block_size=block_size,
            max_sequences=max_sequences,
            max_tokens_per_step=budget,
            prefix_caching=prefix_caching,
        )
        self.budget = max(budget, max_sequences)
        self.runner = FormulaRunner(
            num_blocks=num_blocks, block_size=block_size, max_sequences=max_sequences
        )
        self._begin()

    def _begin(self) -> None:
        self.requests: dict[str, list[Sequence]] = {}
        self.num_answers_since = 0  # the last vector was begun
        self.vectors: dict[Sequence, bytes | None] = {}
        self.aborted: set[Sequence] = set()
        self.failed: set[Sequence] = set()
        self.arrived: list[Sequence] = []
        self.admitted: list[Sequence] = []
        self.flight: tuple[StepPlan, Flight] | None = None  # a step under way
        self.sampled: dict[int, int] = {}  # by the rows of the last step that is over

    @rule(
        target=ids,
        prompt=st.lists(TOKENS, min_size=1, max_size=6),
        num_shared=st.integers(0, len(PREFIX)),
        max_tokens=st.integers(1, 40),
        is_poisoned=st.sampled_from([False] * 7 + [True]),
        num_answers=st.sampled_from([1, 1, 1, 2, 4]),
        sampling=st.sampled_from([GREEDY, GREEDY, SCORING]),
        is_pooled=st.sampled_from([False] * 7 + [True]),
    )
    def submit(
        self,
        prompt: list[int],
        num_shared: int,
        max_tokens: int,
        is_poisoned: bool,
        num_answers: int,
        sampling: SamplingParams,
        is_pooled: bool,
    ) -> str:
        request_id = f"r-{len(self.requests)}"
        whole = PREFIX[:num_shared] + [POISON] * is_poisoned + prompt
        if is_pooled:
            self._add_inputs(request_id, whole, num_answers)
        else:
            self._add(request_id, whole, max_tokens, num_answers, sampling)
        return request_id

    @rule(lengths=st.lists(st.integers(5, 25), min_size=3, max_size=6))
    def submit_a_crowd(self, lengths: list[int]) -> None:
        for max_tokens in lengths:  # more than the pool can hold in the end: the newest must yield
            number = len(self.requests)
            prompt = [number % FORMULA_VOCABULARY] * (1 + number % 9)
            self._add(f"crowd-{number}", prompt, max_tokens, 1, (GREEDY, SCORING)[number % 2])

    @rule(prompt=st.lists(TOKENS, min_size=1, max_size=4))
    def submit_after_its_abort(self, prompt: list[int]) -> None:
        request_id = f"early-{len(self.requests)}"
        assert self.scheduler.abort(request_id) == []
        self._add(request_id, prompt, 3, 2, SCORING)
        self.aborted.update(self.requests[request_id])

    @rule(request_id=ids, choice=st.sampled_from([None, None, 0, 1]))
    def abort(self, request_id: str, choice: int | None) -> None:
        siblings = self.requests[request_id]
        alive = [s for s in siblings if s.state in ALIVE and choice in (None, s.choice)]
        for sequence in alive:
            self._note(f"a {sequence.state} one is aborted", True)
            self._note("a preempted one is aborted", sequence.num_preemptions > 0)
        assert self.scheduler.abort(request_id, choice) == alive
        assert all(sequence.state is State.ABORTED for sequence in alive)
        self.aborted.update(alive)
        self.scheduler._early_aborts.clear()  # a second abort of an ended request is remembered

    @rule(place=st.integers(-2, 2))
    def abort_one_that_lives(self, place: int) -> None:
        alive = [sequence for sequence in self.arrived if sequence.state in ALIVE]
        alive.sort(key=lambda sequence: -sequence.num_preemptions)
        if alive:
            sequence = alive[place % len(alive)]
            self.abort(sequence.request_id, sequence.choice)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        self._land()
        for _ in range(count):
            plan = self._plan()
            self._apply(plan, self.runner.execute(plan))

    @rule(count=st.integers(1, 6))
    def step_ahead(self, count: int) -> None:
        """Launches steps one ahead of those that are recorded; the last stays under way."""
        for _ in range(count):
            if self.flight is None:
                self._launch(self._plan())
                continue
            plan = self.scheduler.schedule_ahead()
            self.scheduler.check()
            self._land() if plan is None else self._launch(plan)

    @rule(request_id=ids, place=st.integers(0, 4))
    def fail_one_ahead_of_which_a_step_runs(self, request_id: str, place: int) -> None:
        """One fails, another is aborted, while the step after the one that says so runs."""
        if self.flight is None:
            return
        ahead = self.scheduler.schedule_ahead()
        if ahead is None:
            return
        plan, flight = self.flight
        result = flight.result()
        chunk = plan.chunks[place % len(plan.chunks)]
        victim = self._owner(chunk.row)
        self._launch(ahead, result=with_failure(plan, result, chunk.row))
        if victim is not None and victim.state is State.FAILED:
            self.failed.add(victim)
            self._note("one fails that is in the step ahead", chunk.row in rows_of(ahead))
        self.abort(request_id, None)

    def _launch(self, plan: StepPlan, result: StepResult | None = None) -> None:
        """Launches a step; then the one before it is over."""
        self._note("a step is planned ahead", plan.is_ahead)
        before, self.flight = self.flight, None
        if plan.is_empty:
            return
        flight = launch(self.runner, plan)
        if before is not None:
            self._finish(*before, result)
        flight.sample(self.sampled if plan.is_ahead else {})
        self.flight = plan, flight

    def _land(self) -> None:
        """Records the step under way, if there is one."""
        before, self.flight = self.flight, None
        if before is not None:
            self._finish(*before)

    def _finish(self, plan: StepPlan, flight: Flight, result: StepResult | None = None) -> None:
        result = result or flight.result()
        self.sampled = result.by_row(plan)
        ends = [s for s in map(self._owner, rows_of(plan)) if s is not None and s.num_flying > 1]
        self._apply(plan, result)
        self.scheduler.check()
        wasted = any(s.state in (State.STOPPED, State.FAILED) for s in ends)
        self._note("an end wastes a row", wasted)

    @rule(request_id=ids)
    def step_with_an_abort_before_its_result(self, request_id: str) -> None:
        self._land()
        plan = self._plan()
        result = self.runner.execute(plan)
        self.abort(request_id, None)
        outputs = self._apply(plan, result)
        assert not {output.sequence for output in outputs} & self.aborted

    @rule(place=st.integers(0, 4), samples=st.booleans())
    def step_that_fails_for_one(self, place: int, samples: bool) -> None:
        self._land()
        plan = self._plan()
        result = self.runner.execute(plan)
        if not plan.chunks:
            return
        chunks = [chunk for chunk in plan.chunks if chunk.samples is samples] or plan.chunks
        chunk = chunks[place % len(chunks)]
        victim = self._running_on(chunk.row)
        num_full = victim.num_computed // self.block_size
        blocks = victim.blocks[num_full:]
        self.failed.add(victim)
        outputs = self._apply(plan, with_failure(plan, result, chunk.row))
        assert victim.state is State.FAILED
        assert [o.token_id for o in outputs if o.sequence is victim] == [NO_TOKEN]
        assert not self.scheduler.pool._key_of.keys() & set(blocks), "a failed block can be found"
        self._note("one fails that samples", chunk.samples)
        self._note("one fails within its prompt", not chunk.samples)

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()
            self._check_flight()
            num_alive = self.scheduler.num_running + self.scheduler.num_waiting
            assert self.scheduler.is_idle == (num_alive == 0 and self.flight is None)

    def _check_flight(self) -> None:
        """What a step under way writes belongs to somebody, and cannot be found yet."""
        if self.flight is None:
            return
        pool = self.scheduler.pool
        for chunk in self.flight[0].chunks:
            owner = self.scheduler._places.rows.owner(chunk.row)
            assert owner is not None, "its row was given back"
            written = owner.blocks[chunk.start // self.block_size :]
            assert written, "its blocks were given back"
            assert not pool._key_of.keys() & set(written), "what is being written can be found"
            is_over = owner.state not in ALIVE
            self._note("one that has ended keeps its place", is_over)

    def _owner(self, row: int) -> Sequence | None:
        owners = (s for s in self.arrived if s.row == row and s.num_flying)
        return next(owners, None)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self._land()
        for _ in range(10_000):
            if self.scheduler.is_idle:
                break
            self.step(1)
            self.scheduler.check()
        assert self.scheduler.is_idle, "the scheduler never comes to rest"
        assert self.scheduler.pool.num_used == 0
        for sequence in self.arrived:
            check_answer(sequence, self.aborted, self.failed, self.vectors)
            check_scores(sequence)
            self._note("a vector is found", self.vectors.get(sequence))
        for is_pooled in (False, True):
            alone = [s for s in self.admitted if s.leader is None and s.is_pooled is is_pooled]
            arrivals = [sequence.arrival for sequence in alone]
            assert arrivals == sorted(arrivals), "somebody was overtaken"

    def _add(
        self,
        request_id: str,
        prompt: list[int],
        max_tokens: int,
        num_answers: int,
        sampling: SamplingParams,
    ) -> None:
        first = self._sequence(request_id, prompt, max_tokens, sampling)
        self._queue([first, *(first.fork(choice) for choice in range(1, num_answers))])

    def _add_inputs(self, request_id: str, prompt: list[int], count: int) -> None:
        prompts = [prompt[number % len(prompt) :] for number in range(count)]
        inputs = [self._sequence(request_id, p, 1, GREEDY, is_pooled=True) for p in prompts]
        for number, sequence in enumerate(inputs):
            sequence.choice = number
        self._queue(inputs)

    def _sequence(
        self,
        request_id: str,
        prompt: list[int],
        max_tokens: int,
        sampling: SamplingParams,
        *,
        is_pooled: bool = False,
    ) -> Sequence:
        prompt = prompt[: self.capacity]
        max_tokens = min(max_tokens, self.capacity - len(prompt) + 1)
        ends = frozenset() if is_pooled else END_TOKENS
        return Sequence(request_id, tuple(prompt), max_tokens, ends, sampling, is_pooled=is_pooled)

    def _queue(self, siblings: list[Sequence]) -> None:
        self.requests[siblings[0].request_id] = siblings
        self.arrived += siblings
        self.scheduler.add(*siblings)

    def _apply(self, plan: StepPlan, result: StepResult) -> list[SampledToken]:
        outputs = self.scheduler.apply(plan, result)
        for output in outputs:
            if output.sequence.is_pooled:
                assert output.sequence not in self.vectors, "a second vector"
                self.vectors[output.sequence] = output.vector
        return outputs

    def _plan(self) -> StepPlan:
        pool = self.scheduler.pool
        cached = pool._cached.copy()
        plan = self.scheduler.schedule()
        self.scheduler.check()
        self._note("a cached block is evicted", cached.keys() - pool._key_of.keys())
        assert plan.is_empty == self.scheduler.is_idle, "work waits, but nothing is planned"
        assert plan.num_tokens <= self.budget
        newly = [self._running_on(admission.row) for admission in plan.admissions]
        self._check_turns(newly)
        self.admitted += [s for s in newly if s.num_preemptions == 0]
        for sequence in newly:
            self._note_admission(sequence)
        is_cut = any(chunk.targets and not chunk.samples for chunk in plan.chunks)
        self._note("a prompt is scored by chunks", is_cut)
        return plan

    def _check_turns(self, newly: list[Sequence]) -> None:
        """Answers go before vectors, but for one after so many answers."""
        has_answers = any(s.state is State.WAITING and not s.is_pooled for s in self.arrived)
        for sequence in newly:
            if not sequence.is_pooled:
                self.num_answers_since += 1
                continue
            assert not has_answers or self.num_answers_since >= MAX_OVERTAKES
            self.num_answers_since = 0

    def _note_admission(self, sequence: Sequence) -> None:
        self._note("a prefix is found", sequence.num_cached and sequence.leader is None)
        self._note("siblings share a prompt", sequence.num_cached and sequence.leader is not None)
        self._note("a preempted one is back", sequence.num_preemptions > 0)
        self._note("it finds its own blocks", sequence.num_preemptions and sequence.num_computed)
        self._note("it is back for good", sequence.num_preemptions == MAX_PREEMPTIONS)
        if sequence.num_to_score:
            is_halfway = 0 < sequence.num_scored < sequence.num_to_score
            self._note("one is preempted while it scores", is_halfway)
            found = sequence.num_preemptions and sequence.num_computed
            self._note("a scored prompt finds its own blocks", found)
            assert sequence.is_scored or sequence.num_computed <= sequence.num_scored
        if (leader := sequence.leader) is not None:
            shares = leader.num_to_score and sequence.num_cached
            self._note("siblings share a scored prompt", shares)
            assert leader.is_scored or leader.state not in ALIVE, "it may start the request"

    def _note(self, what: str, has_happened: object) -> None:
        if has_happened:
            event(what)
            self.seen[what] += 1

    def _running_on(self, row: int) -> Sequence:
        (sequence,) = (s for s in self.arrived if s.state is State.RUNNING and s.row == row)
        return sequence


def run_machine(
    max_examples: int, num_steps: int, *, machine: type[SchedulerMachine], is_fixed: bool = False
) -> None:
    """Lets hypothesis look for a life that goes wrong; a fixed run is the same every time."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=num_steps,
            derandomize=is_fixed,
        ),
    )
