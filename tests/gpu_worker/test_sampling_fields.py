"""Every field of a request about sampling changes what is answered: from JSON to tokens."""

import json
from typing import Any

import pytest
import torch

from frontend import translate
from frontend.served_model import ServedModel
from gpu_worker.intake import IntakeLimits, to_sequence
from gpu_worker.sampler import Sampler
from scheduler.sequence import Sequence, State
from shared.config import FrontendConfig, ModelConfig
from shared.messages import Generate
from shared.parts import TextOptions, TextStart
from tests.builders import ROUTE, make_admission
from tests.gpu_worker.sampling import CPU, ask, decode_plan

MODEL = ServedModel(FrontendConfig(model=ModelConfig(hf_model="org/tiny")), created=1)
RULES = translate.Rules(MODEL, max_choices=8, sampling_defaults={})
END = 1
LIMITS = IntakeLimits(max_model_len=100, vocab_size=8, end_token_ids=frozenset({END}))
PROMPT = (6, 7)
LENGTH = 8
# What the model says at every place: a loop over token 2, then 3, 6, and sometimes the end.
LOGITS = torch.tensor([[0.0, 2.5, 4.0, 3.5, 0.0, 0.0, 3.8, 0.0]])


def to_wanted(**fields: Any) -> Sequence:
    """What the worker schedules for a request with these fields."""
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, **fields}
    wanted = translate.chat(json.dumps(body).encode(), RULES, random_seed=5).submission
    text = TextStart("r", ROUTE, (), TextOptions())
    return to_sequence(Generate("r", PROMPT, LENGTH, wanted.sampling, 1, "", text), LIMITS)


def answer(**fields: Any) -> list[int]:
    """The tokens of a greedy answer, or of one at the temperature in `fields`."""
    sequence = to_wanted(**fields)
    sequence.change(State.RUNNING)
    admission = make_admission(
        0,
        sequence.sampling,
        token_ids=PROMPT,
        num_prompt_tokens=len(PROMPT),
        end_token_ids=sequence.end_token_ids,
    )
    sampler = Sampler(1, LIMITS.vocab_size, CPU)
    sampler.begin(admission)
    while sequence.state is State.RUNNING:
        index = sequence.num_output_tokens
        if index:
            sampler.observe(decode_plan([(0, index, sequence.token_ids[-1])]))
        (token,) = ask(sampler, LOGITS, [0], [index])
        sequence.append(token)
    return sequence.token_ids[len(PROMPT) :]


TO_THE_END = {"logit_bias": {str(END): 100}}


def test_the_plain_answer_is_a_loop() -> None:
    assert answer() == [2] * LENGTH


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"logit_bias": {"5": 100}}, [5] * LENGTH),
        ({"logit_bias": {"2": -100}}, [6] * LENGTH),
        ({"frequency_penalty": 0.3}, [2, 6, 2, 3, 6, 2, 3, 6]),
        ({"presence_penalty": 0.4}, [2, 6, 2, 2, 2, 2, 2, 2]),
        ({"repetition_penalty": 1.2}, [2, 3, 2, 2, 2, 2, 2, 2]),
        ({"stop_token_ids": [2]}, [2]),
        (TO_THE_END, [END]),
        ({**TO_THE_END, "min_tokens": 3}, [2, 2, 2, END]),
        ({**TO_THE_END, "ignore_eos": True}, [END] * LENGTH),
        ({"stop_token_ids": [2], "min_tokens": 2}, [6, 6, 2]),
    ],
)
def test_a_greedy_answer_obeys(fields: dict[str, Any], expected: list[int]) -> None:
    assert answer(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "possible"),
    [
        ({"min_p": 0.8}, {2, 6}),
        ({"top_k": 3}, {2, 3, 6}),
        ({"top_p": 0.1}, {2}),
    ],
)
def test_a_random_answer_obeys(fields: dict[str, Any], possible: set[int]) -> None:
    hot = {"temperature": 1.5, "ignore_eos": True}
    drawn = {token for seed in range(30) for token in answer(**hot, **fields, seed=seed)}
    assert drawn == possible
    assert possible < {token for seed in range(30) for token in answer(**hot, seed=seed)}


def test_a_seed_decides_a_random_answer() -> None:
    answers = {tuple(answer(temperature=2, ignore_eos=True, seed=seed)) for seed in (1, 2, 3, 1)}
    assert len(answers) == 3
