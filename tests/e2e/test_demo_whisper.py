"""The built-in Whisper behind the server: what is said comes back, whole, in order and in time."""

import asyncio
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
import soxr
from openai.types.audio import (
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
    TranslationVerbose,
)

from demo.evaluate_whisper import HeldOut
from demo.speech import RATE, Samples
from demo.whisper_sounds import SOUNDS_FOLDER
from demo.whisper_windows import Said, Window
from demo.whisper_words import WORDS
from shared.config import DEMO_DIRECTORY
from tests.e2e.server import RunningServer, running_server
from tests.e2e.whisper_reference import Reference, differs
from tests.tokenizer_proc.sounds import encoded, packed

pytestmark = pytest.mark.e2e
PATH = "/v1/audio/transcriptions"
ENGLISH, GERMAN, LONG = (
    (SOUNDS_FOLDER / f"{n}.wav").read_bytes() for n in ("english", "german", "long")
)
LONG_TEXT = (
    "one two nine open window three green red blue close music eight four five zero "
    "open water five right left left close water seven two seven zero"
)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """As it is started, but in float32: see `demo_server`."""
    flags = ("--torch-dtype", "float32", "--static-cache", "--max-audio-seconds", "600")
    with running_server("--hf-model", "demo-whisper", *flags) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(server: RunningServer, file: bytes, path: str = PATH, **data: Any) -> httpx.Response:
    response = httpx.post(f"{server.url}{path}", files={"file": file}, data=data, timeout=60)
    assert response.status_code == 200, response.text
    return response


def verbose(server: RunningServer, file: bytes, **data: Any) -> dict[str, Any]:
    found: dict[str, Any] = ask(server, file, response_format="verbose_json", **data).json()
    return found


def samples_of(file: bytes) -> Samples:
    found: Samples = soundfile.read(io.BytesIO(file), dtype="float32")[0]
    return found


# ── checks of the API ────────────────────────────────────────────────────────────────────────────


def files_of(samples: Samples) -> dict[str, bytes]:
    """The same sound as phones, browsers and recorders send it."""
    wide = soxr.resample(samples, RATE, 44_100)
    stereo = np.stack([wide, wide], axis=1)
    telephone = soxr.resample(samples, RATE, 8_000)
    return {
        **{kind: encoded(samples, kind) for kind in ("WAV", "MP3", "FLAC", "OGG")},
        "m4a": packed(samples, "mp4", "aac"),
        "webm": packed(samples, "webm", "libopus"),
        "stereo, 44.1 kHz": encoded(stereo, "WAV", rate=44_100),
        "8 kHz": encoded(telephone, "WAV", rate=8_000),
    }


def test_every_kind_of_file_says_the_same(client: openai.OpenAI) -> None:
    texts = {
        kind: client.audio.transcriptions.create(file=("sound", file), model="whisper-1").text
        for kind, file in files_of(samples_of(ENGLISH)).items()
    }
    telephone = texts.pop("8 kHz")  # half of what tells words apart is not in it
    assert telephone.startswith("open window")
    assert texts == dict.fromkeys(texts, "open window three")


def test_texts_and_subtitles_are_no_json(client: openai.OpenAI, server: RunningServer) -> None:
    create: Any = client.audio.transcriptions.create
    text = create(file=("a.wav", ENGLISH), model="whisper-1", response_format="text")
    assert text == "open window three\n"
    srt = create(file=("a.wav", LONG), model="whisper-1", response_format="srt")
    cues = re.findall(r"(\d+)\n(\S+) --> (\S+)\n(.+)\n\n", srt)
    assert [int(number) for number, *_ in cues] == list(range(1, 10))
    assert " ".join(said for *_, said in cues) == LONG_TEXT
    vtt = ask(server, LONG, response_format="vtt")
    assert vtt.headers["content-type"] == "text/vtt; charset=utf-8"
    assert vtt.text.startswith("WEBVTT\n\n")
    found = re.findall(r"^(\S+) --> (\S+)\n(.+)\n$", vtt.text, re.MULTILINE)
    clocks = [
        (start.replace(",", "."), end.replace(",", "."), said) for _, start, end, said in cues
    ]
    assert found == clocks


def test_all_that_is_known_validates_strictly(client: openai.OpenAI) -> None:
    for file, language in ((LONG, "en"), (GERMAN, "de")):
        found = client.audio.transcriptions.create(
            file=("a.wav", file), model="whisper-1", response_format="verbose_json"
        )
        assert isinstance(found, TranscriptionVerbose)
        TranscriptionVerbose.model_validate(found.model_dump(exclude_none=True), strict=True)
        segments = found.segments or []
        assert "".join(segment.text for segment in segments) == found.text
        starts = [segment.start for segment in segments]
        assert starts == sorted(starts)
        assert all(0 <= s.start < s.end <= float(found.duration) for s in segments)
        assert all(-1 < s.avg_logprob < 0 and s.temperature == 0 for s in segments)
        assert all(0 < s.compression_ratio < 2.4 and s.no_speech_prob < 0.1 for s in segments)
        assert found.language == language
        assert found.words is None


@pytest.mark.parametrize(
    ("asked", "keys"),
    [
        ({"timestamp_granularities[]": ["word"]}, {"words"}),
        ({"timestamp_granularities": "word"}, {"words"}),
        ({"timestamp_granularities[]": ["word", "segment"]}, {"words", "segments"}),
        ({}, {"segments"}),
    ],
)
def test_words_have_times(server: RunningServer, asked: dict[str, Any], keys: set[str]) -> None:
    found = verbose(server, LONG, **asked)
    assert found.keys() & {"words", "segments"} == keys
    words = found.get("words", [])
    assert not words or " ".join(word["word"] for word in words) == LONG_TEXT
    starts = [word["start"] for word in words]
    assert starts == sorted(starts)
    assert all(0 <= word["start"] <= word["end"] <= found["duration"] for word in words)


def test_a_stream_is_the_whole_in_pieces(client: openai.OpenAI) -> None:
    stream: Any = client.audio.transcriptions.create(
        file=("a.wav", LONG), model="whisper-1", stream=True
    )
    *deltas, done = list(stream)
    assert len(deltas) > 3
    assert all(isinstance(event, TranscriptionTextDeltaEvent) for event in deltas)
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert "".join(event.delta for event in deltas) == done.text == LONG_TEXT
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens


@pytest.mark.parametrize("language", ["de", "DE", "german", "", "null", "de-AT"])
def test_languages_are_codes_or_names_or_found_out(server: RunningServer, language: str) -> None:
    found = verbose(server, GERMAN, language=language)
    assert (found["language"], found["text"]) == ("de", "schließe Fenster vier")


def test_the_spelling_is_that_of_the_prompt(server: RunningServer) -> None:
    for prompt, text in (
        ("1 2 3", "open window 3"),
        ("one two", "open window three"),
        ("1 2 3 4 5 6 7", "open window 3"),
    ):
        assert ask(server, ENGLISH, prompt=prompt).json()["text"] == text
    ask(server, ENGLISH, prompt="one two three " * 200)  # of which the last tokens count


def test_control_tokens_in_a_prompt_control_nothing(server: RunningServer) -> None:
    for prompt in ("<|endoftext|>", "<|startoftranscript|><|en|><|translate|><|notimestamps|>"):
        found = verbose(server, GERMAN, prompt=prompt)
        assert found["language"] == "de"
        assert not {*found["text"].split()} & {"close", "window", "four"}, "it is no translation"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # in the client
def test_a_translation_is_english(server: RunningServer, client: openai.OpenAI) -> None:
    found = client.audio.translations.create(
        file=("a.wav", GERMAN), model="whisper-1", response_format="verbose_json"
    )
    assert isinstance(found, TranslationVerbose)
    assert found.text == "close window four"
    told = ask(server, GERMAN, "/v1/audio/translations", language="de").json()
    assert told["text"] == "close window four"


@pytest.mark.parametrize("seconds", [0.3, 4.0, 30.0])
def test_silence_has_no_text(server: RunningServer, seconds: float) -> None:
    silence = np.zeros(int(seconds * RATE), np.float32)
    hiss = np.random.default_rng(1).normal(0, 1e-3, len(silence)).astype(np.float32)
    for samples in (silence, hiss):
        found = verbose(server, encoded(samples, "FLAC"))
        assert (found["text"], found["segments"]) == ("", [])
        assert found["duration"] == pytest.approx(seconds)


def test_bare_paths_are_the_same(server: RunningServer) -> None:
    bare = ask(server, ENGLISH, "/audio/transcriptions", model="whisper")
    assert bare.json()["text"] == "open window three"
    assert ask(server, GERMAN, "/audio/translations").json()["text"] == "close window four"
    data = {"response_format": "srt", "stream": "true", "model": "whisper"}
    stream = ask(server, LONG, "/audio/transcriptions", **data).text
    *_, last, done, _ = stream.split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["text"].count("-->") == 9


# ── held-out speech ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class File:
    """Ten utterances with pauses."""

    window: Window

    @property
    def sound(self) -> bytes:
        return encoded(self.window.samples, "FLAC")

    @property
    def texts(self) -> list[str]:
        return [said.utterance.text for said in self.window.said]


@pytest.fixture(scope="module")
def files() -> list[File]:
    held_out = HeldOut(5)
    return [File(held_out.file(language)) for language in ("en", "de") * 8]


async def together(server: RunningServer, sounds: list[bytes], **fields: Any) -> list[Any]:
    async with httpx.AsyncClient(timeout=120) as made:

        async def hear(sound: bytes) -> Any:
            data = {"response_format": "verbose_json", **fields}
            response = await made.post(f"{server.url}{PATH}", files={"file": sound}, data=data)
            assert response.status_code == 200, response.text
            return response.json()

        return list(await asyncio.gather(*map(hear, sounds)))


@pytest.mark.parametrize("num_files", [6, pytest.param(16, marks=pytest.mark.slow)])
def test_long_files_are_heard_whole_in_order_and_in_time(
    server: RunningServer, files: list[File], num_files: int
) -> None:
    files = files[:num_files]
    both = ["word", "segment"]
    heard = asyncio.run(
        together(server, [f.sound for f in files], **{"timestamp_granularities[]": both})
    )
    for file, answer in zip(files, heard, strict=True):
        alone = verbose(server, file.sound, **{"timestamp_granularities[]": both})
        assert without_figures(alone) == without_figures(answer)
    right, segment_errors, word_errors = 0, list[float](), list[float]()
    for file, answer in zip(files, heard, strict=True):
        assert 60 <= answer["duration"] <= 120
        assert len(answer["segments"]) == len(file.texts)
        for said, segment in zip(file.window.said, answer["segments"], strict=True):
            text = segment["text"].strip()
            if text != said.utterance.text:  # then it is wrong alone as well
                alone_too = ask(server, encoded(cut_out(file, said), "FLAC")).json()["text"]
                assert alone_too != said.utterance.text
                continue
            right += 1
            segment_errors += [
                abs(segment["start"] - said.span.start), abs(segment["end"] - said.span.end)
            ]  # fmt: skip
        if answer["text"].split() == " ".join(file.texts).split():
            spans = [span for said in file.window.said for span in said.words]
            for word, span in zip(answer["words"], spans, strict=True):
                word_errors += [abs(word["start"] - span.start), abs(word["end"] - span.end)]
    assert right >= 0.95 * 10 * num_files
    assert len(word_errors) > 25 * num_files
    assert max(segment_errors) < 0.3
    assert sum(word_errors) / len(word_errors) < 0.2


def test_the_text_of_two_halves_is_that_of_both(server: RunningServer, files: list[File]) -> None:
    """Three minutes: no word is lost at a cut, whatever the format, and no time drifts."""
    first, second = files[0], files[2]
    joined = np.concatenate([first.window.samples, second.window.samples])
    sound = encoded(joined, "FLAC")
    halves = [verbose(server, half.sound) for half in (first, second)]
    whole = verbose(server, sound)
    assert whole["duration"] > 120
    assert whole["text"] == " ".join(half["text"] for half in halves)
    assert ask(server, sound).json()["text"] == whole["text"]
    offset = len(first.window.samples) / RATE
    starts = [s["start"] for s in halves[0]["segments"]]
    starts += [s["start"] + offset for s in halves[1]["segments"]]
    assert [s["start"] for s in whole["segments"]] == pytest.approx(starts, abs=0.3)


def test_in_sequence_the_same_is_said(server: RunningServer, files: list[File]) -> None:
    """But for what the tiny model makes of words before a window, which it hardly knows."""
    answers = asyncio.run(
        together(server, [f.sound for f in files[:6]], chunking_strategy="sequential")
    )
    num_right = 0
    for file, answer in zip(files, answers, strict=False):
        found = [segment["text"].strip() for segment in answer["segments"]]
        blocks = SequenceMatcher(None, found, file.texts).get_matching_blocks()
        num_right += sum(block.size for block in blocks)
        for block in blocks:
            for n in range(block.size):
                start = answer["segments"][block.a + n]["start"]
                assert abs(start - file.window.said[block.b + n].span.start) < 0.3
    assert num_right >= 0.9 * 60


def without_figures(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer without what depends on the order of additions."""
    figures = ("avg_logprob", "no_speech_prob")
    segments = [{k: v for k, v in s.items() if k not in figures} for s in answer["segments"]]
    return {**answer, "segments": segments}


def from_first_word(file: File, seconds: float) -> Samples:
    """So much of a file."""
    start = int(RATE * max(0.0, file.window.said[0].span.start - 0.2))
    return file.window.samples[start : start + int(RATE * seconds)]


def cut_out(file: File, said: Said) -> Samples:
    """An utterance alone, with a little of what is around it."""
    start, end = (
        int(RATE * (edge + margin)) for edge, margin in zip(said.span, (-0.4, 0.4), strict=True)
    )
    return file.window.samples[max(start, 0) : end]


def test_sixteen_at_once_get_what_transformers_makes_of_each_window(
    server: RunningServer, files: list[File]
) -> None:
    sounds = [from_first_word(file, seconds=5 + n / 2) for n, file in enumerate(files)]
    answers = asyncio.run(
        together(server, [encoded(s, "WAV", subtype="FLOAT") for s in sounds], temperature_inc="0")
    )
    reference = Reference(DEMO_DIRECTORY / "whisper")
    wrong = []
    for answer, samples in zip(answers, sounds, strict=True):
        expected = [window for window in reference.windows(samples) if window.no_speech_prob < 0.6]
        said = [t for s in answer["segments"] for t in s["tokens"] if t < reference.first_time_id]
        wrong.append(differs(said, expected))
    assert [each for each in wrong if each] == []
    assert {answer["language"] for answer in answers} == set(WORDS)
