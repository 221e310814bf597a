"""A worker on a formula, with a detokenizer and frontends that a test plays."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from gpu_worker.intake import IntakeLimits
from gpu_worker.lines import MAX_UNACKNOWLEDGED_STEPS
from gpu_worker.runner import Runner
from gpu_worker.step_times import StepTimes
from gpu_worker.worker import Worker
from scheduler.plan import StepPlan
from shared.config import Identity
from shared.messages import Generate, Message, TokensSampled
from shared.parts import (
    RequestStarted,
    Route,
    SequenceEnded,
    TextOptions,
    TextStart,
)
from shared.sampling import SamplingParams
from tests.builders import END_TOKEN, GREEDY, make_scheduler
from tests.fakes import (
    FakeMailbox,
    FormulaFlight,
    FormulaRunner,
    ManualClock,
    formula_answer,
)

# Of tests that say in which step something comes, which with overlap is one later, or how many
# there are: there it is one more where a token ends an answer.
in_turn = pytest.mark.parametrize("stage", [False], indirect=True)
EPOCH = 3
DETOKENIZER = "detokenizer-0"
LIMITS = IntakeLimits(max_model_len=256, vocab_size=100, end_token_ids=frozenset({END_TOKEN}))
MICROSLEEP_SECONDS = 0.001
STEP_SECONDS = 0.01


@dataclass
class Stage:
    """A worker and everything it talks to."""

    worker: Worker
    mailbox: FakeMailbox
    runner: FormulaRunner

    def run(self, *messages: Message) -> None:
        """Lets these arrive together, and runs until nothing is left to do."""
        self.mailbox.deliver(*messages)
        self.worker.run()
        self.worker.scheduler.check()

    def run_with(self, message: Message, *later: Message, step: int) -> None:
        """Lets the others arrive while this step is computed."""
        self.mailbox.deliver(message)
        self.mailbox.deliver(*later, at=(step - 0.5) * STEP_SECONDS)
        self.run()

    @property
    def steps(self) -> list[TokensSampled]:
        """What the detokenizer was told."""
        return self.mailbox.of_type(TokensSampled)

    @property
    def starts(self) -> list[TextStart]:
        """Every text that the detokenizer was asked to begin."""
        return [started.text for started in self.started]

    @property
    def started(self) -> list[RequestStarted]:
        """Every request that the detokenizer was told of."""
        return [started for step in self.steps for started in step.started]

    @property
    def ends(self) -> list[SequenceEnded]:
        """Every end that the detokenizer was told."""
        return [end for step in self.steps for end in step.ended]

    def answer(self, request_id: str, choice: int = 0) -> list[int]:
        """One answer's tokens, whose numbers have no gap."""
        rows = [
            (seq, token_id)
            for step in self.steps
            for name, number, seq, token_id in zip(
                step.request_ids, step.choices, step.seqs, step.token_ids, strict=True
            )
            if (name, number) == (request_id, choice)
        ]
        assert [seq for seq, _ in rows] == list(range(len(rows)))
        return [token_id for _, token_id in rows]


class SlowRunner(FormulaRunner):
    """A formula that takes its time."""

    def __init__(self, clock: ManualClock, **sizes: int) -> None:
        super().__init__(**sizes)
        self._clock = clock

    def launch(self, plan: StepPlan) -> FormulaFlight:
        self._clock.advance(STEP_SECONDS)
        return super().launch(plan)


def make_stage(
    wrap: Callable[[Runner], Runner] = lambda runner: runner,
    *,
    prefix_caching: bool = False,
    num_blocks: int = 64,
    switch_profiling: Callable[[], None] = lambda: None,
    overlaps: bool = False,
) -> Stage:
    """A worker of four rows with frontends and a detokenizer; each step takes ten milliseconds."""
    sizes = {"num_blocks": num_blocks, "block_size": 4, "max_sequences": 4}
    clock = ManualClock()
    identity = Identity("worker", 0, EPOCH, "")
    mailbox = FakeMailbox(identity, "frontend-0", "frontend-1", DETOKENIZER, clock=clock)
    runner = SlowRunner(clock, **sizes)
    worker = Worker(
        mailbox,
        make_scheduler(prefix_caching=prefix_caching, **sizes),
        wrap(runner),
        LIMITS,
        microsleep_seconds=MICROSLEEP_SECONDS,
        times=StepTimes(clock),
        switch_profiling=switch_profiling,
        overlaps=overlaps,
        clock=clock,
    )
    return Stage(worker, mailbox, runner)


def generate(
    request_id: str,
    *prompt: int,
    max_tokens: int = 3,
    frontend: int = 0,
    detokenizer: int = 0,
    detokenizer_epoch: int = 1,
    num_choices: int = 1,
    cache_salt: str = "",
    sampling: SamplingParams = GREEDY,
) -> Generate:
    """A request whose prompt, unless given, is 10, 11, 12."""
    tokens = prompt or (10, 11, 12)
    return Generate(
        request_id=request_id,
        prompt_token_ids=tokens,
        max_tokens=max_tokens,
        sampling=sampling,
        num_choices=num_choices,
        cache_salt=cache_salt,
        text=TextStart(
            request_id,
            Route(frontend, 1, detokenizer_epoch, detokenizer),
            prompt[-2:],
            TextOptions(stop=("stop",), only_scores_prompt=max_tokens == 0),
            scored_token_ids=tokens if sampling.num_prompt_logprobs is not None else (),
        ),
    )


def expected_answer(message: Generate) -> list[int]:
    """What the formula answers."""
    return formula_answer(message.prompt_token_ids, message.max_tokens, LIMITS.end_token_ids)


def many_steps(stage: Stage) -> int:
    """Delivers a request of far more steps than may be unacknowledged; returns their number."""
    prompts = ((a, b) for a in range(10, 40) for b in range(10, 40))
    messages = (generate("r", *prompt, max_tokens=200) for prompt in prompts)
    message = next(m for m in messages if len(expected_answer(m)) > 2 * MAX_UNACKNOWLEDGED_STEPS)
    stage.mailbox.deliver(message)
    return len(expected_answer(message))
