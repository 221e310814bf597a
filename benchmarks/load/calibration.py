"""How many tokens the server makes of our words, from two small requests. Needs no tokenizer."""

from random import Random

from benchmarks.load.client import Unreachable
from benchmarks.load.outcome import Completed, Failed
from benchmarks.load.prompts import Prompt, WordLength, draw_words
from benchmarks.load.traffic import Ask

PROBE_WORDS = (16, 144)


async def measure_word_length(ask: Ask) -> WordLength:
    """Two points of a line; one token a word if the server sends no usage.

    They are also the first requests to a server: if one of them is not answered, it raises
    `Unreachable` with the reason, before the load begins.
    """
    random = Random(0)
    points = []
    for num_words in PROBE_WORDS:
        outcome = await ask(Prompt(draw_words(random, num_words), max_tokens=1))
        if not isinstance(outcome, Completed):
            kind = outcome.kind if isinstance(outcome, Failed) else f"HTTP {outcome.status}"
            raise Unreachable(f"the first request failed: {kind}: {outcome.message}")
        if outcome.is_estimated:
            return WordLength()
        points.append((num_words, outcome.prompt_tokens))
    return WordLength.of(*points)
