"""Prompts go before lookups, and lookups one at a time, to tokenizers that are idle."""

from frontend.dispatch import Dispatch
from frontend.life import Life
from shared.messages import Decode, Encode, Tokenize
from shared.parts import (
    Prompt,
    TextOptions,
)
from shared.sampling import SamplingParams
from tests.builders import ROUTE

FIRST, SECOND = Life("tokenizer-0", 1), Life("tokenizer-1", 1)
BOTH = {FIRST, SECOND}


def prompt(request_id: str) -> Tokenize:
    return Tokenize(
        request_id=request_id,
        route=ROUTE,
        worker_id=0,
        prompt=Prompt(token_ids=(1,)),
        max_tokens=None,
        is_strict=False,
        echo=False,
        text=TextOptions(),
        sampling=SamplingParams(seed=1),
        max_tokens_param="max_tokens",
        max_prompt_scores=100,
        num_choices=1,
        cache_salt="",
    )


def lookup(request_id: str) -> Encode:
    return Encode(request_id, 0, Prompt(token_ids=(1,)), wants_strings=False)


def dispatch(**credits: int) -> Dispatch:
    made = Dispatch()
    for name, count in credits.items():
        made.grant({"first": FIRST, "second": SECOND}[name], count)
    return made


def taken(made: Dispatch, count: int = 9) -> list[tuple[str, str]]:
    """Which tokenizer gets which request, until nothing more can be sent."""
    found: list[tuple[str, str]] = []
    while len(found) < count and (pair := made.take(BOTH)) is not None:
        found.append((pair[0].room, pair[1].request_id))
    return found


def test_prompts_overtake_lookups() -> None:
    made = dispatch(first=4)
    for command in (lookup("l"), prompt("p"), Decode("m", 0, (1,)), prompt("q")):
        made.add(command)
    assert taken(made) == [("tokenizer-0", "p"), ("tokenizer-0", "q")]
    made.grant(FIRST, 2)
    assert taken(made) == [("tokenizer-0", "l")]
    made.grant(FIRST, 1)
    assert taken(made) == [("tokenizer-0", "m")]


def test_each_tokenizer_has_one_lookup_at_a_time() -> None:
    made = dispatch(first=4, second=4)
    for number in range(5):
        made.add(lookup(f"l{number}"))
    assert {room for room, _ in taken(made)} == {"tokenizer-0", "tokenizer-1"}
    made.grant(SECOND, 1)
    assert taken(made) == [("tokenizer-1", "l2")]


def test_a_prompt_goes_to_a_tokenizer_without_a_lookup() -> None:
    made = dispatch(first=4, second=4)
    made.add(lookup("l"))
    ((busy, _),) = taken(made)
    made.add(prompt("p"))
    assert taken(made) == [({"tokenizer-0", "tokenizer-1"}.difference({busy}).pop(), "p")]


def test_what_was_removed_is_not_sent() -> None:
    made = dispatch(first=4)
    for command in (lookup("l"), prompt("p"), prompt("q")):
        made.add(command)
    made.remove("p")
    made.remove("l")
    assert taken(made) == [("tokenizer-0", "q")]


def test_a_dead_tokenizer_gets_nothing() -> None:
    made = dispatch(first=4)
    made.add(prompt("p"))
    assert made.take({SECOND}) is None
    made.forget(FIRST)
    assert taken(made) == []
