"""By what a request is known again, and for how long."""

import dataclasses
from typing import Any

import pytest

from frontend.life import Life
from frontend.quarantine import QUARANTINE_SECONDS, Quarantine, digests_of
from frontend.submission import Embedding, Submission
from shared.errors import BadRequest
from shared.parts import Prompt, TextOptions, TextPrompt
from shared.sampling import SamplingParams
from tests.frontend.bench import WANTED

PROMPT = Prompt(text=TextPrompt("kill"))


def digest_of(prompt: Prompt, wanted: Submission) -> bytes:
    """What a request for an answer to this prompt alone is known by."""
    (digest,) = digests_of(dataclasses.replace(wanted, prompts=(prompt,)))
    return digest


DIGEST = digest_of(PROMPT, WANTED)
FIRST, SECOND = Life("worker-0", 1), Life("worker-0", 2)


@pytest.mark.parametrize(
    ("prompt", "changes"),
    [
        (Prompt(text=TextPrompt("kill!")), {}),
        (Prompt(token_ids=(1,)), {}),
        (PROMPT, {"max_tokens": 7}),
        (PROMPT, {"sampling": SamplingParams(seed=1, temperature=0.5)}),
        (PROMPT, {"text": TextOptions(stop=("x",))}),
        (PROMPT, {"num_choices": 2}),
    ],
)
def test_another_request_has_another_digest(prompt: Prompt, changes: dict[str, Any]) -> None:
    assert digest_of(prompt, dataclasses.replace(WANTED, **changes)) != DIGEST


def test_a_client_that_tries_again_is_known_by_more_than_its_seed() -> None:
    again = dataclasses.replace(WANTED, sampling=dataclasses.replace(WANTED.sampling, seed=9))
    assert digest_of(PROMPT, again) == DIGEST


def test_a_request_for_vectors_has_one_digest_of_its_own() -> None:
    several = Embedding((PROMPT, PROMPT), None, "")
    (whole,) = digests_of(several)
    others = (Embedding((PROMPT,), None, ""), dataclasses.replace(several, dimensions=3))
    assert len({whole, DIGEST, *(digests_of(other)[0] for other in others)}) == 4


def test_one_death_with_the_request_twice_counts_once() -> None:
    quarantine = Quarantine()
    quarantine.note_death(FIRST, [DIGEST, DIGEST], now=0.0)
    quarantine.check([DIGEST], now=1.0)
    quarantine.note_death(SECOND, [DIGEST], now=2.0)
    with pytest.raises(BadRequest):
        quarantine.check([b"another", DIGEST], now=3.0)


def test_two_deaths_that_are_far_apart_are_no_pattern() -> None:
    quarantine = Quarantine()
    quarantine.note_death(FIRST, [DIGEST], now=0.0)
    quarantine.note_death(SECOND, [DIGEST], now=QUARANTINE_SECONDS)
    quarantine.check([DIGEST], now=QUARANTINE_SECONDS)
