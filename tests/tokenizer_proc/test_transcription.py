"""A `Transcribe` becomes windows for the worker, with the checkpoint's own tokens and rules."""

from collections.abc import Iterator
from contextlib import closing
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
    SoundRead,
    Transcribe,
    WindowRead,
    WindowTaken,
)
from shared.parts import ModelFacts, Peer, TranscriptOptions
from shared.sampling import SamplingParams
from shared.windows import sound_of, window_name
from tests.builders import ROUTE
from tests.e2e.whispers import SECONDS, SUPPRESSED, save_whisper
from tests.fakes import FakeMailbox, is_readable
from tests.tokenizer_proc.decoders import children_of, found_on_the_path
from tests.tokenizer_proc.sounds import RATE, encoded, tone
from tests.tokenizer_proc.test_tokenizer import ENCODER
from tests.waiting import wait_until
from tokenizer_proc.loading import load_listener
from tokenizer_proc.samples import Samples
from tokenizer_proc.tokenizer import Tokenizer
from tokenizer_proc.transcription import Listener, Transcribing, spoken
from tokenizer_proc.transcripts import language_code, read_format
from tokenizer_proc.windows import QuietWindows

SAMPLING = SamplingParams(seed=3, temperature=0.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def vocabulary(checkpoint: Path) -> dict[str, int]:
    found: dict[str, int] = AutoTokenizer.from_pretrained(checkpoint).get_vocab()
    return found


@pytest.fixture(scope="module")
def listener(checkpoint: Path) -> Iterator[Listener]:
    config = TokenizerConfig(model=ModelConfig(str(checkpoint)), max_audio_seconds=60.0)
    with found_on_the_path():
        found = load_listener(config, AutoTokenizer.from_pretrained(checkpoint))
    assert found is not None
    with closing(found.decoder):
        found.decoder.wait_started()
        yield found


def transcribe(samples: Samples, name: str = "t", **options: Any) -> Transcribe:
    audio = encoded(samples, "WAV")
    return Transcribe(name, ROUTE, 0, TranscriptOptions(**options), SAMPLING, audio)


def taken(*token_ids: int, temperature: float = 0.0) -> WindowTaken:
    return WindowTaken("t", token_ids, temperature)


def all_windows(
    listener: Listener, message: Transcribe, *said: WindowTaken
) -> list[tuple[WindowRead, Listen]]:
    """All that come of a sound whose windows are understood so, the last ones without a word."""
    left, found = list(said), list[tuple[WindowRead, Listen]]()
    window: WindowRead | SoundRead | None = None
    with closing(Transcribing(message, listener)) as sound:
        while not sound.is_over:
            window, listen = sound.go_on()
            if isinstance(window, WindowRead):
                assert listen is not None
                found.append((window, listen))
                sound.take(left.pop(0) if left else taken())
        assert window == SoundRead(message.request_id)
    return found


def test_every_window_has_its_place_its_name_and_its_features(listener: Listener) -> None:
    found = all_windows(listener, transcribe(tone(5.3)))
    reads = [read for read, _ in found]
    assert [read.number for read in reads] == [0, 1, 2]
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
    assert set(rules.suppressed) == {vocabulary[name] for name in SUPPRESSED}


def test_a_prompt_comes_before_the_start_and_is_text(
    listener: Listener, vocabulary: dict[str, int]
) -> None:
    assert listener.format.prompt_ids([]) == (vocabulary["<|startoftranscript|>"],)
    typed = listener.format.prompt_ids(listener.format.text_ids("a<|endoftext|>"))
    assert typed[0] == vocabulary["<|startofprev|>"]
    assert typed[-1] == vocabulary["<|startoftranscript|>"]
    assert vocabulary["<|endoftext|>"] not in typed
    long = listener.format.prompt_ids(listener.format.text_ids("abc " * 100))
    assert len(long) == 1 + listener.format.max_text_tokens - 1 + 1
    ((_, listen),) = all_windows(listener, transcribe(tone(1.0), prompt="abc " * 100))
    assert len(listen.prompt_token_ids) + listen.max_tokens <= listener.format.max_positions


def test_in_sequence_a_window_begins_where_the_last_one_was_heard_to(
    listener: Listener, vocabulary: dict[str, int]
) -> None:
    heads = [vocabulary[name] for name in ("<|de|>", "<|transcribe|>")]
    first, middle, last = (vocabulary[f"<|{time}|>"] for time in ("0.00", "1.20", "1.90"))
    cut_off = taken(*heads, first, 70, middle, middle, 71)  # the second segment is not over
    whole = taken(*heads, first, 72, last)
    hot = taken(*heads, first, 73, middle, middle, 74, last, last, temperature=0.8)
    silent = taken(temperature=0.8)
    message = transcribe(tone(8.0), is_sequential=True, prompt="a", temperatures=(0.0, 0.8))
    found = all_windows(listener, message, cut_off, silent, whole, hot)
    starts, lengths = zip(*((read.start_seconds, read.seconds) for read, _ in found), strict=True)
    heard = [1.2, lengths[1], lengths[2], 1.9, lengths[4]]
    assert starts == pytest.approx([sum(heard[:number]) for number in range(5)])
    assert sum(heard) == pytest.approx(8.0)
    assert all(1.0 <= length <= SECONDS for length in lengths[:4]), "cut where it is quiet"
    before, sot = vocabulary["<|startofprev|>"], vocabulary["<|startoftranscript|>"]
    typed = listener.format.text_ids("a")
    kept = [first, 70, middle]
    prompts = [listen.prompt_token_ids for _, listen in found]
    assert prompts[0] == (before, *typed, sot)
    assert prompts[1] == (before, *typed, *kept, sot)
    assert prompts[2] == prompts[1], "silence changes nothing"
    assert prompts[3] == (before, *typed, *kept, first, 72, last, sot)
    assert prompts[4] == (sot,), "what was said at a high temperature helps nobody"
    rules = [listen.sampling.transcript for _, listen in found]
    assert [len(each.heads[0]) for each in rules if each] == [2, 1, 1, 1, 1], "one language for all"
    assert {listen.temperatures for _, listen in found} == {(0.0, 0.8)}


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ([], []),
        ([100, 5, 140], [100, 5, 140]),
        ([100, 5, 140, 140, 150, 150, 6, 160], [100, 5, 140, 150, 6, 160]),
        ([100], []),
        ([100, 120], []),
        ([5, 6], [5, 6]),
        ([100, 5, 140, 150], [100, 5, 140]),
        ([100, 5], [100, 5]),
    ],
)
def test_what_was_said_before_has_no_empty_segments(
    token_ids: list[int], expected: list[int]
) -> None:
    assert spoken(token_ids, first_time_id=100) == expected


@pytest.mark.parametrize(("seconds", "num_aligned"), [(1.5, 75), (2.0, 100), (0.001, 1)])
def test_words_are_timed_within_the_sound(
    listener: Listener, seconds: float, num_aligned: int
) -> None:
    ((_, listen),) = all_windows(listener, transcribe(tone(seconds), times_words=True))
    assert listen.num_aligned == num_aligned
    ((_, listen),) = all_windows(listener, transcribe(tone(seconds)))
    assert listen.num_aligned == 0


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
    for options, param in (
        (TranscriptOptions(task="translate"), "model"),
        (TranscriptOptions(language="de"), "language"),
    ):
        with pytest.raises(BadRequest, match="English alone") as caught:
            english.rules(options)
        assert caught.value.param == param


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


def take_turns(tokenizer: Tokenizer) -> None:
    """Lets every sound go on as far as it can."""
    turns = tokenizer._turns
    while turns or is_readable(turns.descriptors):
        tokenizer._take_a_turn()


def test_no_more_windows_are_under_way_than_may_be(listener: Listener) -> None:
    mailbox, tokenizer = room(listener)
    tokenizer._handle(transcribe(tone(20.0)))
    take_turns(tokenizer)
    assert len(mailbox.of_type(Listen)) == QuietWindows.at_once
    assert [grant.count for grant in mailbox.of_type(CreditGranted)] == [1], "at once"
    tokenizer._handle(taken())
    take_turns(tokenizer)
    assert len(mailbox.of_type(Listen)) == QuietWindows.at_once + 1
    for _ in range(20):
        tokenizer._handle(taken())
        take_turns(tokenizer)
    names = [listen.request_id for listen in mailbox.of_type(Listen)]
    assert names == [window_name("t", number) for number in range(len(names))]
    assert mailbox.of_type(SoundRead) == [SoundRead("t")]
    assert [grant.count for grant in mailbox.of_type(CreditGranted)] == [1]


def test_sounds_take_turns(listener: Listener) -> None:
    mailbox, tokenizer = room(listener)
    for name in ("a", "b"):
        tokenizer._handle(transcribe(tone(5.0), name))
    for _ in range(2 * 4):  # the windows, and that there are no more
        wait_until(lambda: all(work.can_go_on for work in tokenizer._turns), 5.0)
        tokenizer._take_a_turn()
    names = [sound_of(listen.request_id)[0] for listen in mailbox.of_type(Listen)]
    assert names == ["a", "b"] * 3
    assert [grant.count for grant in mailbox.of_type(CreditGranted)] == [1, 1]
    assert not list(tokenizer._turns)


def test_a_sound_that_nobody_wants_any_more_is_dropped(listener: Listener) -> None:
    mailbox, tokenizer = room(listener)
    tokenizer._handle(transcribe(tone(50.0)))
    take_turns(tokenizer)
    assert children_of(listener.decoder)
    tokenizer._handle(Abort("t"))
    sent = [listen.request_id for listen in mailbox.of_type(Listen)]
    assert [abort.request_id for abort in mailbox.of_type(Abort)] == sent
    take_turns(tokenizer)
    wait_until(lambda: not children_of(listener.decoder), 5.0)
    assert len(mailbox.of_type(Listen)) == QuietWindows.at_once
    assert [grant.count for grant in mailbox.of_type(CreditGranted)] == [1]


def test_what_breaks_in_the_middle_fails_its_request_alone(listener: Listener) -> None:
    mailbox, tokenizer = room(listener)
    long = transcribe(tone(62.0), "long")  # two seconds over the limit
    mailbox.deliver(long, transcribe(tone(1.0), "good"))
    for _ in range(60):
        mailbox.deliver(WindowTaken("long", (), 0.0))
    tokenizer.run()
    (failed,) = mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.param) == ("long", "file")
    assert "60 seconds" in failed.message
    assert "good#0" in [listen.request_id for listen in mailbox.of_type(Listen)]


def test_a_sound_of_a_frontend_that_is_gone_is_dropped(listener: Listener) -> None:
    mailbox, tokenizer = room(listener)
    tokenizer._handle(transcribe(tone(50.0)))
    mailbox.peers["frontend-0"] = replace(mailbox.peers["frontend-0"], epoch=2)
    tokenizer._drop_what_is_over()
    wait_until(lambda: not children_of(listener.decoder), 5.0)


def test_a_sound_that_is_slow_to_come_lets_others_pass(listener: Listener) -> None:
    mailbox, tokenizer = room(listener)
    tokenizer._handle(transcribe(tone(50.0), "slow"))
    (slow,) = tokenizer._turns
    wait_until(lambda: slow.can_go_on, 5.0)
    (child,) = children_of(listener.decoder)
    child.suspend()
    tokenizer._handle(transcribe(tone(1.0), "quick"))
    while "quick#0" not in [listen.request_id for listen in mailbox.of_type(Listen)]:
        assert tokenizer._turns or is_readable(tokenizer._turns.descriptors)
        tokenizer._take_a_turn()
    child.resume()
    take_turns(tokenizer)
    tokenizer._handle(Abort("slow"))
    names = [sound_of(listen.request_id)[0] for listen in mailbox.of_type(Listen)]
    assert sorted(names) == ["quick"] + ["slow"] * QuietWindows.at_once


def test_what_is_no_sound_fails_its_request_alone(listener: Listener) -> None:
    mailbox, tokenizer = room(listener)
    noise = replace(transcribe(tone(1.0), "noise"), audio=b"no sound at all")
    mailbox.deliver(noise, transcribe(tone(1.0), "good"))
    tokenizer.run()
    (failed,) = mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.code, failed.param) == ("noise", "invalid_value", "file")
    assert [listen.request_id for listen in mailbox.of_type(Listen)] == ["good#0"]


def test_a_model_of_text_hears_nothing() -> None:
    mailbox, tokenizer = room(None)
    mailbox.deliver(transcribe(tone(1.0)))
    tokenizer.run()
    (failed,) = mailbox.of_type(RequestFailed)
    assert failed.request_id == "t"
