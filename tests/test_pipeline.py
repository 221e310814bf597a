"""The rooms together in one thread: a formula for a model, lists for sockets, the real wire.

Clients ask for several answers, leave, are refused and meet failures in any order; every request
has one outcome, every answer is the one that it would have been alone, and nothing is left behind.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from hypothesis import example, given
from hypothesis import strategies as st

from frontend.admission import Limits
from frontend.engine_client import EngineClient
from frontend.events import Aborted, Event, Failed, Finished, TextAdded
from frontend.generation import Generation
from frontend.health import Health
from frontend.metrics import Metrics
from frontend.occupancy import Occupancy
from frontend.sheet import Sheet
from frontend.submission import Submission
from gpu_worker.intake import IntakeLimits
from gpu_worker.recovery import IsolatingRunner
from gpu_worker.worker import Worker
from scheduler.plan import NO_TOKEN, StepPlan, StepResult
from shared import wire
from shared.config import Identity
from shared.errors import ErrorCode, RequestError
from shared.messages import CreditGranted, Generate, Message, PromptAccepted, Tokenize
from shared.parts import Prompt, TextOptions, TextStart
from shared.sampling import SamplingParams
from tests.builders import END_TOKEN, make_scheduler
from tests.examples import examples
from tests.fakes import POISON, SHUTDOWN, FakeMailbox, FormulaRunner, ManualClock, formula
from tests.tokenizer_proc.vocabularies import make_byte_tokenizer
from tokenizer_proc.detokenizer import Detokenizer

ROOMS = ("frontend-0", "tokenizer-0", "detokenizer-0", "worker-0")
SIZES = {"num_blocks": 40, "block_size": 4, "max_sequences": 4}
LIMITS = IntakeLimits(max_model_len=160, vocab_size=256, end_token_ids=frozenset({END_TOKEN}))
MAX_CONCURRENT = 8
FOR_EVER = 10_000  # turns: to the end of the answer
BOMB = 98  # a prompt token that makes every step that holds it raise
VOCABULARY = make_byte_tokenizer().backend_tokenizer
LETTERS = VOCABULARY.decode([*range(2, 40)])  # what a formula may say


@dataclass(frozen=True)
class Visit:
    """What one client does; times are turns of the worker's loop."""

    arrives: int
    prompt: tuple[int, ...]
    num_choices: int
    max_tokens: int
    seed: int
    stop: tuple[str, ...]
    cache_salt: str
    stays: int


class SeededFormula(FormulaRunner):
    """A formula whose answers to one prompt differ, and that breaks on a bomb."""

    def __init__(self) -> None:
        super().__init__(**SIZES)
        self.seeds: dict[int, int] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        if any(BOMB in chunk.token_ids for chunk in plan.chunks):
            raise ValueError("this prompt breaks the model")
        self.seeds |= {admission.row: admission.sampling.seed for admission in plan.admissions}
        super().execute(plan)
        rows = [chunk.row for chunk in plan.chunks if chunk.samples]
        return StepResult(tuple(formula([self.seeds[r], *self._context(r)]) for r in rows))


class WiredMailbox(FakeMailbox):
    """A mailbox whose messages reach the others."""

    def __init__(self, network: dict[str, FakeMailbox], room: str, clock: ManualClock) -> None:
        kind, _, index = room.partition("-")
        super().__init__(Identity(kind, int(index), 1, ""), *ROOMS, clock=clock)
        self._network = network
        network[room] = self

    def send(self, room: str, message: Message) -> bool:
        is_sent = super().send(room, message)
        if is_sent:
            self._network[room].deliver(wire.decode(wire.encode(message)))
        return is_sent


class WorkerMailbox(WiredMailbox):
    """The worker's; whenever the worker looks into it, everybody else has a turn."""

    pipeline: "Pipeline"

    def receive(
        self, timeout_seconds: float | None = 0.0, descriptors: Collection[int] = ()
    ) -> list[Message]:
        self.pipeline.take_turn()
        return super().receive(timeout_seconds, descriptors)


class Pipeline:
    """All rooms; the tokenizer is played, and looks into its inbox every `lag` turns only."""

    def __init__(self, visits: list[Visit], tokenizer_lag: int, detokenizer_lag: int) -> None:
        clock, network = ManualClock(), dict[str, FakeMailbox]()
        frontend, self.tokenizer, detokenizer, inbox = (
            WiredMailbox(network, "frontend-0", clock),
            WiredMailbox(network, "tokenizer-0", clock),
            WiredMailbox(network, "detokenizer-0", clock),
            WorkerMailbox(network, "worker-0", clock),
        )
        inbox.pipeline = self
        inbox.when_waiting = self._end_when_all_have_come
        sheet = Sheet.private()
        self.metrics = Metrics("m", sheet)
        limits = Limits(
            MAX_CONCURRENT,
            max_queue=0,
            queue_timeout_seconds=30.0,
            request_timeout_seconds=600.0,
            first_token_timeout_seconds=300.0,
        )
        health = Health(60.0)
        self.engine = EngineClient(
            frontend, self.metrics, health, limits, Occupancy(sheet, 0), clock=lambda: 0.0
        )
        self.detokenizer = Detokenizer(detokenizer, VOCABULARY)
        scheduler = make_scheduler(prefix_caching=True, **SIZES)
        runner = IsolatingRunner(SeededFormula())
        self.worker = Worker(
            inbox, scheduler, runner, LIMITS, microsleep_seconds=0.001, clock=clock
        )
        self.generations: dict[Visit, Generation] = {}
        self.refused: dict[Visit, ErrorCode] = {}
        self._visits = visits
        self._lags = (tokenizer_lag, detokenizer_lag)
        self._turn = 0
        self._last_turn = max(visit.arrives for visit in visits) + 2 * tokenizer_lag
        self.tokenizer.send("frontend-0", CreditGranted("tokenizer-0", 1, 1000))
        self.engine.receive()

    def run(self) -> None:
        """Serves all visits, and hands out what is still under way when the worker is idle."""
        self.worker.run()
        for _ in range(2):
            self.detokenizer.serve_once(0.0)
            self.engine.receive()

    def take_turn(self) -> None:
        """What happens elsewhere while the worker computes a step."""
        self._turn += 1
        for visit in self._visits:
            if visit.arrives == self._turn:
                self._arrive(visit)
            if visit.arrives + visit.stays == self._turn and visit in self.generations:
                self.generations[visit].__exit__(None, None, None)
        tokenizer_lag, detokenizer_lag = self._lags
        if self._turn % tokenizer_lag == 0:
            self._tokenize()
        if self._turn % detokenizer_lag == 0:
            self.detokenizer.serve_once(0.0)
        self.engine.receive()

    def _arrive(self, visit: Visit) -> None:
        wanted = Submission(
            id_prefix="cmpl",
            prompts=(Prompt(token_ids=visit.prompt),),
            max_tokens=visit.max_tokens,
            is_strict=False,
            echo=False,
            text=TextOptions(visit.stop),
            sampling=SamplingParams(seed=visit.seed),
            num_choices=visit.num_choices,
            cache_salt=visit.cache_salt,
        )
        try:
            self.generations[visit] = self.engine.submit(wanted)
        except RequestError as error:
            self.refused[visit] = error.code

    def _tokenize(self) -> None:
        for message in self.tokenizer.receive():
            if not isinstance(message, Tokenize):
                continue
            prompt = message.prompt.token_ids or ()
            generate = Generate(
                request_id=message.request_id,
                prompt_token_ids=prompt,
                max_tokens=message.max_tokens or 1,
                sampling=message.sampling,
                num_choices=message.num_choices,
                cache_salt=message.cache_salt,
                text=TextStart(message.request_id, message.route, prompt[-2:], message.text),
            )
            accepted = PromptAccepted(message.request_id, len(prompt), None)
            self.tokenizer.send("frontend-0", accepted)
            self.tokenizer.send("worker-0", generate)

    def _end_when_all_have_come(self, _: float | None) -> None:
        if self._turn > self._last_turn and self.worker.scheduler.is_idle:
            self.worker.mailbox.stop = SHUTDOWN


@dataclass(frozen=True)
class Said:
    """One answer, as its client saw it."""

    text: str
    finish_reason: str | None
    num_tokens: int


def expected(visit: Visit, choice: int) -> Said:
    """What the answer is when nobody else is there."""
    tokens: list[int] = []
    text = ""
    while len(tokens) < visit.max_tokens:
        tokens.append(formula([visit.seed + choice, *visit.prompt, *tokens]))
        assert tokens[-1] != NO_TOKEN
        if tokens[-1] == END_TOKEN:
            return Said(text, "stop", len(tokens))
        text += VOCABULARY.decode([tokens[-1]])
        if cuts := [text.index(stop) for stop in visit.stop if stop in text]:
            return Said(text[: min(cuts)], "stop", len(tokens))
    return Said(text, "length", len(tokens))


def said(events: list[Event], choice: int) -> Said:
    """The answer of one choice, so far."""
    pieces = [e for e in events if isinstance(e, TextAdded) and e.choice == choice]
    if not pieces:
        return Said("", None, 0)
    text = "".join(piece.text for piece in pieces)
    return Said(text, pieces[-1].finish_reason, pieces[-1].completion_tokens)


def assert_as_promised(visit: Visit, events: list[Event]) -> None:
    """One outcome, the right one, and no word that is not in the answer."""
    outcome = events[-1]
    assert sum(isinstance(event, Aborted | Failed | Finished) for event in events) == 1
    if {BOMB, POISON} & set(visit.prompt):
        assert isinstance(outcome, Failed | Aborted)
        return
    answers = [expected(visit, choice) for choice in range(visit.num_choices)]
    found = [said(events, choice) for choice in range(visit.num_choices)]
    assert not isinstance(outcome, Failed)
    if isinstance(outcome, Finished):
        assert found == answers
        assert outcome.completion_tokens == sum(answer.num_tokens for answer in answers)
        assert 0 <= outcome.cached_tokens < len(visit.prompt)
    for so_far, answer in zip(found, answers, strict=True):
        assert answer.text.startswith(so_far.text)


SHARED = (60, 61, 62, 63, 64, 65, 66, 67, 68)
TOKENS = st.integers(50, 54) | st.sampled_from([BOMB, POISON])
VISITS = st.builds(
    Visit,
    arrives=st.integers(1, 12),
    prompt=st.builds(
        lambda shared, own: (*SHARED[:shared], *own),
        st.sampled_from([0, 4, 9]),
        st.lists(TOKENS, min_size=1, max_size=12),
    ),
    num_choices=st.integers(1, 5),
    max_tokens=st.integers(1, 30),
    seed=st.integers(0, 50),
    stop=st.lists(st.text(LETTERS, min_size=1, max_size=2), max_size=2).map(tuple),
    cache_salt=st.sampled_from(["", "", "x"]),
    stays=st.integers(0, 20) | st.just(FOR_EVER),
)
PATIENT = Visit(1, (*SHARED, 50), 4, 30, 3, ("!",), "", FOR_EVER)


@examples(80)
@given(
    visits=st.lists(VISITS, min_size=1, max_size=8, unique=True),
    tokenizer_lag=st.integers(1, 4),
    detokenizer_lag=st.integers(1, 4),
)
@example(visits=[PATIENT], tokenizer_lag=1, detokenizer_lag=1)
def test_every_request_gets_its_own_answers_whatever_happens_beside_it(
    visits: list[Visit], tokenizer_lag: int, detokenizer_lag: int
) -> None:
    pipeline = Pipeline(visits, tokenizer_lag, detokenizer_lag)
    pipeline.run()
    assert {*pipeline.generations, *pipeline.refused} == {*visits}
    assert set(pipeline.refused.values()) <= {ErrorCode.QUEUE_FULL}
    for visit, generation in pipeline.generations.items():
        events = asyncio.run(generation.next_events())
        assert_as_promised(visit, events)
        if visit.stays == FOR_EVER:
            assert not isinstance(events[-1], Aborted)
    assert pipeline.detokenizer.num_answers == 0
    assert pipeline.worker.scheduler.is_idle
    assert pipeline.worker.scheduler.pool.num_used == 0
    assert pipeline.worker._unheard == {}
    assert b'open_requests{engine="0",model_name="m"} 0.0' in pipeline.metrics.render()
