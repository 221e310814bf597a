"""A `Transcribe` becomes windows for the worker, with the checkpoint's own tokens and rules."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, WhisperConfig, WhisperFeatureExtractor

from shared.config import Identity, ModelConfig, TokenizerConfig
from shared.errors import BadRequest, FatalError
from shared.messages import (
    Abort,
    CreditGranted,
    Listen,
    RequestFailed,
    Transcribe,
    WindowRead,
    WindowTaken,
)
from shared.parts import ModelFacts, Peer, TranscriptOptions
from shared.sampling import SamplingParams
from shared.windows import sound_of, window_name
from tests.builders import ROUTE
from tests.e2e.whispers import SECONDS, SPECIAL, save_whisper
from tests.fakes import FakeMailbox
from tests.tokenizer_proc.sounds import RATE, encoded, tone
from tests.tokenizer_proc.test_tokenizer import ENCODER
from tokenizer_proc.loading import load_listener
from tokenizer_proc.sound import Samples
from tokenizer_proc.tokenizer import CREDIT, Tokenizer
from tokenizer_proc.transcription import WINDOWS_AT_ONCE, Listener, Transcribing
from tokenizer_proc.transcripts import language_code, read_format

SAMPLING = SamplingParams(seed=3, temperature=0.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def vocabulary(checkpoint: Path) -> dict[str, int]:
    found: dict[str, int] = AutoTokenizer.from_pretrained(checkpoint).get_vocab()
    return found


@pytest.fixture(scope="module")
def listener(checkpoint: Path) -> Listener:
    config = TokenizerConfig(model=ModelConfig(str(checkpoint)), max_audio_seconds=60.0)
    found = load_listener(config, AutoTokenizer.from_pretrained(checkpoint))
    assert found is not None
    return found


def transcribe(samples: Samples, name: str = "t", **options: Any) -> Transcribe:
    audio = encoded(samples, "WAV")
    return Transcribe(name, ROUTE, 0, TranscriptOptions(**options), SAMPLING, audio)


def all_windows(listener: Listener, message: Transcribe) -> list[tuple[WindowRead, Listen]]:
    sound, found = Transcribing(message, listener), []
    while not sound.is_over:
        sound.num_wanted = 1
        found.append(sound.go_on())
    return found


def test_every_window_has_its_place_its_name_and_its_features(listener: Listener) -> None:
    found = all_windows(listener, transcribe(tone(5.3)))
    reads = [read for read, _ in found]
    assert [read.number for read in reads] == [0, 1, 2]
    assert [read.is_last for read in reads] == [False, False, True]
    assert reads[0].start_seconds == 0.0
    ends = [read.start_seconds + read.seconds for read in reads]
    assert ends[-1] == pytest.approx(5.3)
    assert [read.start_seconds for read in reads[1:]] == pytest.approx(ends[:-1])
    assert [sound_of(listen.request_id) for _, listen in found] == [("t", 0), ("t", 1), ("t", 2)]
    seeds = [listen.sampling.seed for _, listen in found]
    assert seeds == [3, 4, 5]


def test_features_are_those_of_the_checkpoints_extractor(
    listener: Listener, checkpoint: Path
) -> None:
    exact = encoded(tone(1.5), "WAV", subtype="FLOAT")
    ((_, listen),) = all_windows(listener, replace(transcribe(tone(1.5)), audio=exact))
    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
    found = extractor(tone(1.5), sampling_rate=RATE, return_tensors="np")["input_features"][0]
    features = np.frombuffer(listen.features, "<f4").reshape(found.shape)
    assert found.shape == (80, 100 * SECONDS)
    assert np.array_equal(features, found)


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({}, [("<|en|>", "<|de|>"), ("<|transcribe|>",)]),
        ({"language": "German"}, [("<|de|>",), ("<|transcribe|>",)]),
        ({"language": "EN", "task": "translate"}, [("<|en|>",), ("<|translate|>",)]),
        (
            {"language": "de", "marks_times": False},
            [("<|de|>",), ("<|transcribe|>",), ("<|notimestamps|>",)],
        ),
    ],
)
def test_the_heads_say_what_the_answer_is(
    listener: Listener,
    vocabulary: dict[str, int],
    options: dict[str, Any],
    heads: list[tuple[str, ...]],
) -> None:
    rules = listener.format.rules(TranscriptOptions(**options))
    assert [set(head) for head in rules.heads] == [{vocabulary[n] for n in h} for h in heads]
    assert rules.end_token_id == vocabulary["<|endoftext|>"]
    assert rules.no_speech_id == vocabulary["<|nospeech|>"]
    times = vocabulary["<|0.00|>"] if options.get("marks_times", True) else None
    assert rules.first_time_id == times
    assert set(rules.suppressed) == {vocabulary[n] for n in SPECIAL if n != "<|endoftext|>"}


def test_a_prompt_comes_before_the_start_and_is_text(
    listener: Listener, vocabulary: dict[str, int]
) -> None:
    assert listener.format.prompt_ids("") == (vocabulary["<|startoftranscript|>"],)
    typed = listener.format.prompt_ids("a<|endoftext|>")
    assert typed[0] == vocabulary["<|startofprev|>"]
    assert typed[-1] == vocabulary["<|startoftranscript|>"]
    assert vocabulary["<|endoftext|>"] not in typed
    long = listener.format.prompt_ids("abc " * 100)
    assert len(long) == 1 + listener.format.max_text_tokens - 1 + 1
    ((_, listen),) = all_windows(listener, transcribe(tone(1.0), prompt="abc " * 100))
    assert len(listen.prompt_token_ids) + listen.max_tokens <= listener.format.max_positions


@pytest.mark.parametrize(
    ("language", "code"),
    [("en", "en"), ("EN", "en"), ("english", "en"), (" German ", "de"), ("pt-BR", "pt"),
     ("", None), ("null", None), (None, None), ("castilian", "es")],
)  # fmt: skip
def test_languages_have_codes_and_names(language: str | None, code: str | None) -> None:
    assert language_code(language) == code


@pytest.mark.parametrize("language", ["zz", "xx", "klingon", "fr"])
def test_a_language_that_is_not_known_is_refused(listener: Listener, language: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Transcribing(transcribe(tone(1.0), language=language), listener)
    assert caught.value.param == "language"


def test_a_model_of_english_alone_translates_nothing(listener: Listener) -> None:
    english = replace(listener.format, languages={}, tasks={})
    assert english.rules(TranscriptOptions(language="en")).heads == ()
    for options in (TranscriptOptions(task="translate"), TranscriptOptions(language="de")):
        with pytest.raises(BadRequest, match="English alone"):
            english.rules(options)


def test_a_vocabulary_without_its_tokens_ends_the_start(checkpoint: Path) -> None:
    with pytest.raises(FatalError, match=r"no token <\|notimestamps\|>"):
        read_format(str(checkpoint), "some/model", ENCODER_TOKENIZER, WhisperConfig())


class _Words:
    """A vocabulary of something else."""

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}


ENCODER_TOKENIZER = _Words()


# ── the room ─────────────────────────────────────────────────────────────────────────────────────


def room(listener: Listener | None) -> tuple[FakeMailbox, Tokenizer]:
    mailbox = FakeMailbox(Identity("tokenizer", 0, 1, "/nowhere"), "frontend-0")
    facts = ModelFacts(64, 400, {}, {}, hears=True)
    mailbox.peers["worker-0"] = Peer("worker-0", 1, "ipc:///nowhere/worker-0", True, facts)
    return mailbox, Tokenizer(mailbox, ENCODER, None, listener)


def test_no_more_windows_are_under_way_than_may_be(listener: Listener) -> None:
    mailbox, tokenizer = room(listener)
    tokenizer._handle(transcribe(tone(20.0)))
    for _ in range(10):
        tokenizer._take_a_turn()
    assert len(mailbox.of_type(Listen)) == WINDOWS_AT_ONCE
    assert [grant.count for grant in mailbox.of_type(CreditGranted)] == [1], "at once"
    tokenizer._handle(WindowTaken("t"))
    for _ in range(10):
        tokenizer._take_a_turn()
    assert len(mailbox.of_type(Listen)) == WINDOWS_AT_ONCE + 1
    for _ in range(20):
        tokenizer._handle(WindowTaken("t"))
        tokenizer._take_a_turn()
    names = [listen.request_id for listen in mailbox.of_type(Listen)]
    assert names == [window_name("t", number) for number in range(len(names))]
    assert [read.is_last for read in mailbox.of_type(WindowRead)][-1]
    assert [grant.count for grant in mailbox.of_type(CreditGranted)] == [1]


def test_sounds_take_turns(listener: Listener) -> None:
    mailbox, tokenizer = room(listener)
    mailbox.deliver(transcribe(tone(5.0), "a"), transcribe(tone(5.0), "b"))
    tokenizer.run()
    names = [sound_of(listen.request_id)[0] for listen in mailbox.of_type(Listen)]
    assert names == ["a", "b"] * 3
    assert sum(grant.count for grant in mailbox.of_type(CreditGranted)) == CREDIT + 2


def test_a_sound_that_nobody_wants_any_more_is_dropped(listener: Listener) -> None:
    mailbox, tokenizer = room(listener)
    tokenizer._handle(transcribe(tone(20.0)))
    tokenizer._take_a_turn()
    tokenizer._handle(Abort("t"))
    tokenizer._take_a_turn()
    assert len(mailbox.of_type(Listen)) == 1
    assert [grant.count for grant in mailbox.of_type(CreditGranted)] == [1]


def test_what_breaks_in_the_middle_fails_its_request_alone(listener: Listener) -> None:
    mailbox, tokenizer = room(listener)
    long = transcribe(tone(62.0), "long")  # two seconds over the limit
    mailbox.deliver(long, transcribe(tone(1.0), "good"))
    for _ in range(60):
        mailbox.deliver(WindowTaken("long"))
    tokenizer.run()
    (failed,) = mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.param) == ("long", "file")
    assert "60 seconds" in failed.message
    assert "good#0" in [listen.request_id for listen in mailbox.of_type(Listen)]


def test_a_model_of_text_hears_nothing() -> None:
    mailbox, tokenizer = room(None)
    mailbox.deliver(transcribe(tone(1.0)))
    tokenizer.run()
    (failed,) = mailbox.of_type(RequestFailed)
    assert failed.request_id == "t"
