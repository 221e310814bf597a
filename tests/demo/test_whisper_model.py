"""The committed Whisper: it is small, it hears what it never heard, and its folder is whole."""

from collections.abc import Iterator

import pytest
import torch
from safetensors import safe_open
from transformers import GenerationConfig, WhisperProcessor

from demo.evaluate_whisper import CHECKS, Check, HeldOut, file_texts
from demo.speech import RATE
from demo.whisper_checkpoint import generation_rules
from demo.whisper_listener import Listener
from demo.whisper_sounds import SAMPLES, read
from demo.whisper_tokenizer import NUM_MARKS, WHISPER_FOLDER
from demo.whisper_windows import WINDOW_SECONDS
from shared.config import BUILT_IN_MODELS

NUM_WINDOWS = 24  # demo/README.md has the figures of more
LEEWAY = 0.08  # of so few: two wrong ones more than the share of all allows


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    """The model, on one thread: it is too small to gain from more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Listener.committed()
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_held_out_speech(listener: Listener, check: Check) -> None:
    rows = list(check(listener, HeldOut(seed=0), NUM_WINDOWS))
    assert rows
    short = [row for row in rows if not row.passes]
    assert not [row for row in short if not row.is_share or row.found < row.wanted - LEEWAY]


@pytest.mark.parametrize("name", SAMPLES)
def test_the_sample_sounds_are_heard(listener: Listener, name: str) -> None:
    wanted = [utterance.text for utterance in SAMPLES[name].utterances]
    assert file_texts(listener, read(name)) == wanted


def test_german_is_written_in_english_and_with_digits(listener: Listener) -> None:
    (answer,) = listener.hear([read("german")], task="translate", previous="1 2 3")
    assert answer.language == "de"
    assert answer.texts == ["close window 4"]


def test_words_have_times(listener: Listener) -> None:
    (answer,) = listener.hear([read("english")], times_words=True)
    ((first, *_, last),) = (segment.words for segment in answer.segments)
    seconds = len(read("english")) / RATE
    assert first.start == pytest.approx(SAMPLES["english"].pause_seconds, abs=0.1)
    assert last.end == pytest.approx(seconds - SAMPLES["english"].pause_seconds, abs=0.15)


def test_it_is_small(listener: Listener) -> None:
    assert listener.model.num_parameters() < 1_500_000
    with safe_open(WHISPER_FOLDER / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.bfloat16}


def test_the_checkpoint_is_whole(listener: Listener) -> None:
    assert BUILT_IN_MODELS["demo-whisper"] == WHISPER_FOLDER
    processor = WhisperProcessor.from_pretrained(WHISPER_FOLDER)
    assert processor.feature_extractor.chunk_length == WINDOW_SECONDS
    assert listener.model.config.max_source_positions == NUM_MARKS
    committed = GenerationConfig.from_pretrained(WHISPER_FOLDER).to_dict()
    rules = generation_rules(processor.tokenizer)
    assert committed.pop("alignment_heads") != rules.pop("alignment_heads"), "they are chosen"
    assert {name: committed[name] for name in rules} == rules
