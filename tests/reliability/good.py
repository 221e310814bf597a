"""Good requests without end, each with the answer that it must have: the load beside every fault.

No two are alike: requests that were under way at two deaths are refused, and rightly.
"""

import asyncio
import itertools
import json
import math
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Protocol, Self

import uvloop
from tokenizers import Tokenizer as Vocabulary

from benchmarks.formula.alphabet import alphabet
from benchmarks.formula.formula import Formula
from shared.sampling import SamplingParams
from tests.e2e.models import DEMO_DIRECTORY
from tests.reliability.client import CHAT, COMPLETION, Outcome, ask

NUM_STREAMS = 8
CANARY = "canary7f3a"  # in every prompt; it must be in no log
PAUSE_SECONDS = 0.1  # after a failure, as a client that tries again makes it
_NUMBERS = itertools.count()


def good_request(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body."""
    prompt = f"{CANARY} tells story {next(_NUMBERS)} of {chance.randrange(10**6)}"
    body = {"temperature": 0, "max_tokens": chance.randrange(20, 120), "stream": True}
    if chance.random() < 0.5:
        return COMPLETION, {"prompt": prompt, **body}
    return CHAT, {"messages": [{"role": "user", "content": prompt}], **body}


def reference(outcome: Outcome) -> str:
    """What the formula answers to a request when it is alone in the world."""
    vocabulary, formula = _formula()
    body = outcome.body
    if outcome.path == CHAT:
        (message,) = body["messages"]
        prompt = f"<|im_start|>user\n{message['content']}<|im_end|>\n<|im_start|>assistant\n"
    else:
        prompt = body["prompt"]
    prompt_ids = vocabulary.encode(prompt, add_special_tokens=False).ids
    ends = frozenset({formula.end_token_id})
    sampling = SamplingParams(seed=0, temperature=0.0)
    answer = formula.answer(prompt_ids, body["max_tokens"], sampling, ends)
    return str(vocabulary.decode(answer))


@cache
def _formula() -> tuple[Vocabulary, Formula]:
    vocabulary = Vocabulary.from_file(str(DEMO_DIRECTORY / "tokenizer.json"))
    end = json.loads((DEMO_DIRECTORY / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    return vocabulary, Formula(alphabet(vocabulary, "plain", end), end)


@dataclass(frozen=True)
class Death:
    """A process that died, and when another had taken its place."""

    room: str
    died_at: float
    mended_at: float
    stood_still_at: float = math.inf  # before it died

    TOLD_SECONDS = 2.0
    NOTICED_SECONDS = 0.5  # after which nothing is given to the dead any more

    def explains(self, failed: Outcome) -> bool:
        """True if a good request may have failed of it."""
        begun_at = min(self.died_at, self.stood_still_at)
        if failed.ended < begun_at or failed.started > self.mended_at:
            return False
        if failed.started < self.died_at and failed.ended > self.died_at + self.TOLD_SECONDS:
            return False
        if self.room.startswith("tokenizer"):  # the others go on; only what was inside fails
            had_text = failed.first_text_at is not None and failed.first_text_at < self.died_at
            is_inside = failed.started < self.died_at + self.NOTICED_SECONDS and not had_text
            return is_inside and failed.code == "engine_dead"
        if self.room.startswith("frontend"):
            return failed.is_cut or failed.code == "model_loading"
        return failed.code in ("engine_dead", "model_loading")


class Excuse(Protocol):
    """Something for which a good request may fail: a death, or a drain."""

    def explains(self, failed: Outcome) -> bool:
        """True if this request may have failed of it."""


class GoodLoad:
    """Keeps good streams open, from a thread of its own, while a test does its harm."""

    def __init__(
        self,
        port: int,
        num_streams: int = NUM_STREAMS,
        request: Callable[[random.Random], tuple[str, dict[str, Any]]] = good_request,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.num_open = 0
        self._port = port
        self.num_streams = num_streams
        self._request = request
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._ask_all())

    async def _ask_all(self) -> None:
        await asyncio.gather(*(self._ask_on(random.Random(n)) for n in range(self.num_streams)))

    async def _ask_on(self, chance: random.Random) -> None:
        while not self._is_over.is_set():
            self.num_open += 1
            outcome = await ask(self._port, *self._request(chance))
            self.num_open -= 1
            self.outcomes.append(outcome)
            if not outcome.is_whole:
                await asyncio.sleep(PAUSE_SECONDS)

    @property
    def num_whole(self) -> int:
        """Whole answers so far."""
        return sum(outcome.is_whole for outcome in self.outcomes)

    def unharmed(self, excuses: Sequence[Excuse] = ()) -> int:
        """The number of whole answers, once the load is over; fails if any request was harmed."""
        assert self._is_over.is_set()
        for outcome in self.outcomes:
            assert outcome.num_ends == 1, outcome
            if outcome.is_whole:
                assert outcome.num_done == 1
                assert outcome.text == reference(outcome), outcome
            else:
                assert any(excuse.explains(outcome) for excuse in excuses), (outcome, excuses)
        return self.num_whole
