"""The committed T5 model: it is small, it passes on what it never saw, and the worker serves it."""

from collections.abc import Iterator

import pytest
import torch
from safetensors import safe_open

from demo.evaluate_t5 import REQUIRED_T5_ACCURACY, T5Model
from demo.t5_skills import T5_SKILLS, held_out_pairs
from demo.t5_tokenizer import T5_FOLDER
from gpu_worker.families.encoder_decoder import EncoderDecoder
from gpu_worker.loaded import LoadedModel
from gpu_worker.loading import load
from scheduler.plan import EncoderInput
from scheduler.sequence import Sequence
from shared.config import ModelConfig, WorkerConfig
from tests.builders import GREEDY
from tests.gpu_worker.encoder_decoders import difference, serve_all

NUM_PAIRS = 200  # the figures of demo/README.md
MAX_TOKENS = 60
CONFIG = WorkerConfig(
    model=ModelConfig("demo-t5", 128),
    accelerator_type="cpu",
    torch_dtype="float32",
    cpu_threads=1,
    continuous_batching_batch_size=8,
)
ANSWERS = {
    "spell: banana": "b a n a n a",
    "spell: cat": "c a t",
    "reverse: dog": "god",
    "reverse: apple": "elppa",
    "sort: 7 3 9": "3 7 9",
    "sort: 42 7 19 88": "7 19 42 88",
    "sum: 3 + 4": "7",
    "sum: 17 + 25": "42",
    "translate English to German: the cat sleeps": "die Katze schläft",
    "translate English to German: the old woman sees the small dog": (
        "die alte Frau sieht den kleinen Hund"
    ),
}


@pytest.fixture(scope="module")
def t5() -> Iterator[T5Model]:
    """The model, on one thread: it is too small to gain from more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield T5Model()
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """What the worker makes of `--hf-model demo-t5`."""
    return load(CONFIG)


def answered(t5: T5Model, loaded: LoadedModel, prompts: list[str]) -> list[Sequence]:
    """The prompts, answered by the worker's runner; two arrive with each step."""
    assert loaded.encoder is not None
    sequences = [
        Sequence(
            str(number), loaded.encoder.start_token_ids, MAX_TOKENS, loaded.end_token_ids, GREEDY,
            encoder_input=EncoderInput.text(tuple(t5.tokenizer(prompt)["input_ids"])),
        )
        for number, prompt in enumerate(prompts)
    ]  # fmt: skip
    assert isinstance(loaded.runner, EncoderDecoder)
    serve_all(loaded.runner, loaded.scheduler(CONFIG), sequences)
    return sequences


@pytest.mark.parametrize("skill", T5_SKILLS)
def test_held_out_accuracy(t5: T5Model, skill: str) -> None:
    wrong = t5.wrong(held_out_pairs(skill, NUM_PAIRS, seed=0))
    assert 1 - len(wrong) / NUM_PAIRS >= REQUIRED_T5_ACCURACY, wrong


def test_the_worker_answers_every_skill(t5: T5Model, loaded: LoadedModel) -> None:
    sequences = answered(t5, loaded, [*ANSWERS])
    found = [t5.tokenizer.decode(sequence.token_ids[1:]) for sequence in sequences]
    assert found == [f"{answer}</s>" for answer in ANSWERS.values()]


def test_requests_of_mixed_lengths_are_answered_as_alone(t5: T5Model, loaded: LoadedModel) -> None:
    skills = (T5_SKILLS * 5)[:24]
    prompts = [held_out_pairs(skill, 1, seed)[0].prompt for seed, skill in enumerate(skills)]
    sequences = answered(t5, loaded, prompts)
    assert len({len(sequence.encoder_input.token_ids) for sequence in sequences}) > 5
    assert len({len(sequence.token_ids) for sequence in sequences}) > 5
    assert [found for s in sequences if (found := difference(t5.model, s))] == []


def test_it_is_small(t5: T5Model) -> None:
    assert t5.model.num_parameters() < 1_000_000
    with safe_open(T5_FOLDER / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.bfloat16}


def test_a_prompt_ends_with_the_end_token_and_a_reply_keeps_its_spaces(t5: T5Model) -> None:
    token_ids = t5.tokenizer("  spell:\ncat ")["input_ids"]
    assert token_ids == t5.tokenizer("spell: cat")["input_ids"]
    assert token_ids[-1] == t5.tokenizer.eos_token_id
    assert t5.tokenizer.decode(token_ids, skip_special_tokens=True) == "spell: cat"
