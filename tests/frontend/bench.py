"""An engine client whose mailbox is filled by hand, and what is asked of it."""

import asyncio
import dataclasses

import pytest

from frontend.admission import Limits
from frontend.engine_client import EngineClient
from frontend.events import Event, Failed
from frontend.generation import Generation
from frontend.health import Health, Problem
from frontend.metrics import Metrics
from frontend.occupancy import Occupancy
from frontend.sheet import Sheet
from frontend.submission import Submission
from shared.errors import ErrorCode, RequestError
from shared.messages import CreditGranted, Message, Tokenize
from shared.parts import ChatPrompt, Prompt, TextOptions
from shared.sampling import SamplingParams
from tests.frontend.fakes import PipeMailbox, make_book

WANTED = Submission(
    id_prefix="chatcmpl",
    prompts=(Prompt(chat=ChatPrompt(({"role": "user", "content": "x"},), {})),),
    max_tokens=None,
    is_strict=False,
    echo=False,
    text=TextOptions(),
    sampling=SamplingParams(seed=1),
    num_choices=1,
    cache_salt="",
)


class Bench:
    """An engine client with its mailbox, a clock that is set by hand, and three ready rooms."""

    def __init__(
        self,
        *,
        credit: int = 8,
        max_concurrent: int = 4,
        max_queue: int = 0,
        first_token_timeout: float = 300.0,
        index: int = 0,
        sheet: Sheet | None = None,
    ) -> None:
        self.now = 0.0
        self.mailbox = PipeMailbox(index)
        self.sheet = sheet or Sheet.private()
        self.metrics = Metrics("m", self.sheet)
        limits = Limits(
            max_concurrent=max_concurrent,
            max_queue=max_queue,
            queue_timeout_seconds=30.0,
            request_timeout_seconds=100.0,
            first_token_timeout_seconds=first_token_timeout,
        )
        health = Health(60.0)
        self.engine = EngineClient(
            self.mailbox,
            self.metrics,
            health,
            limits,
            Occupancy(self.sheet, index),
            clock=lambda: self.now,
        )
        self.arrive(make_book())
        if credit:
            self.grant("tokenizer-0", credit)

    def arrive(self, *messages: Message) -> None:
        self.mailbox.deliver(*messages)
        self.engine.receive()

    def grant(self, room: str, count: int, epoch: int = 1) -> None:
        self.arrive(CreditGranted(room, epoch, count))

    def submit(self, num_choices: int = 1) -> Generation:
        return self.engine.submit(dataclasses.replace(WANTED, num_choices=num_choices))

    def tokenised(self, room: str = "tokenizer-0") -> list[str]:
        return [m.request_id for m in self.mailbox.sent_to(room) if isinstance(m, Tokenize)]

    def value(self, name: str, **labels: str) -> float:
        labels = {"model_name": "m", "engine": "0", **labels}
        text = self.metrics.render().decode()
        pairs = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        lines = [x for x in text.splitlines() if x.startswith(f"{name}{{{pairs}}}")]
        return float(lines[0].split()[-1]) if lines else 0.0


def status(problem: Problem | None) -> str | None:
    return None if problem is None else problem.status


def refusal(bench: Bench, num_choices: int = 1) -> ErrorCode:
    with pytest.raises(RequestError) as caught:
        bench.submit(num_choices)
    return caught.value.code


def failure(generation: Generation) -> ErrorCode:
    async def read() -> Event:
        return (await generation.next_events())[-1]

    event = asyncio.run(read())
    assert isinstance(event, Failed)
    return event.error.code
