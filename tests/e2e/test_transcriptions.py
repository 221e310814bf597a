"""Sound into words over HTTP, on a Whisper of random weights: shapes, limits, and many at once."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types.audio import Transcription, TranscriptionVerbose

from tests.e2e.server import RunningServer, running_server
from tests.e2e.whisper_reference import Reference, differs
from tests.e2e.whispers import SPECIAL, save_whisper
from tests.tokenizer_proc.sounds import RATE, encoded, packed, tone
from tokenizer_proc.samples import Samples

pytestmark = pytest.mark.e2e
PATH = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def whisper(checkpoint: Path) -> Iterator[RunningServer]:
    flags = ("--torch-dtype", "float32", "--max-audio-seconds", "60")
    with running_server("--hf-model", str(checkpoint), *flags) as server:
        yield server


@pytest.fixture
def client(whisper: RunningServer) -> Iterator[openai.OpenAI]:
    url = f"{whisper.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def noise(seconds: float, seed: int = 0) -> Samples:
    """Sound that the model says something about."""
    random = np.random.default_rng(seed)
    loud = 0.1 + 0.3 * np.sin(np.arange(int(seconds * RATE)) / RATE * (3 + seed)) ** 2
    return (random.normal(0, 1, int(seconds * RATE)) * loud).clip(-1, 1).astype(np.float32)


CLIP = encoded(noise(5.3), "FLAC")
FIRST_TIME_ID = 256 + len(SPECIAL)


def test_sixteen_at_once_get_what_transformers_makes_of_each_window(
    whisper: RunningServer, checkpoint: Path
) -> None:
    sounds = [noise(0.4 + 0.25 * n, n) for n in range(16)]
    clips = [encoded(samples, "WAV", subtype="FLOAT") for samples in sounds]
    found = asyncio.run(_together(f"{whisper.url}{PATH}", clips, temperature_inc="0"))
    reference = Reference(checkpoint)
    wrong, num_windows = [], 0
    for answer, samples in zip(found, sounds, strict=True):
        expected = reference.windows(samples)
        num_windows += len(expected)
        said = [t for segment in answer["segments"] for t in segment["tokens"]]
        wrong.append(differs([t for t in said if t < FIRST_TIME_ID], expected))
        assert answer["language"] == expected[0].language
        silences = {round(window.no_speech_prob, 4) for window in expected}
        assert {round(s["no_speech_prob"], 4) for s in answer["segments"]} <= silences
    assert [each for each in wrong if each] == []
    assert num_windows == 29


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "OGG", "m4a", "webm"])
def test_every_kind_of_file_is_heard(client: openai.OpenAI, kind: str) -> None:
    samples = noise(1.5)
    container = {"m4a": ("mp4", "aac"), "webm": ("webm", "libopus")}.get(kind)
    sound = packed(samples, *container) if container else encoded(samples, kind)
    found = client.audio.transcriptions.create(file=("sound", sound), model="whisper-1")
    assert isinstance(found, Transcription)
    assert found.text


def test_each_format_has_its_shape(client: openai.OpenAI, whisper: RunningServer) -> None:
    ask = client.audio.transcriptions.create
    verbose = ask(file=("a", CLIP), model="whisper-1", response_format="verbose_json")
    assert isinstance(verbose, TranscriptionVerbose)
    TranscriptionVerbose.model_validate(verbose.model_dump(exclude_none=True), strict=True)
    segments = verbose.segments or []
    assert "".join(segment.text for segment in segments) == verbose.text
    starts = [segment.start for segment in segments]
    assert starts == sorted(starts)
    assert all(0 <= s.start <= s.end <= verbose.duration for s in segments)
    assert float(verbose.duration) == pytest.approx(5.3)
    assert verbose.language in ("en", "de")
    assert ask(file=("a", CLIP), model="whisper-1").text == verbose.text
    for kind, media_type in (("text", "text/plain"), ("srt", "text/plain"), ("vtt", "text/vtt")):
        response = httpx.post(
            f"{whisper.url}{PATH}", files={"file": CLIP}, data={"response_format": kind}
        )
        assert response.headers["content-type"].startswith(media_type)
        assert not response.text.startswith('"')
        assert response.text.count("-->") == (0 if kind == "text" else len(segments))
        assert response.text.startswith("WEBVTT\n\n") == (kind == "vtt")


def test_logprobs_are_told_with_json(client: openai.OpenAI) -> None:
    found = client.audio.transcriptions.create(
        file=("a", CLIP), model="whisper-1", include=["logprobs"]
    )
    logprobs: Any = found.logprobs or []
    spelled = bytes(int(octet) for token in logprobs for octet in token.bytes)
    assert spelled.decode(errors="replace").strip() == found.text
    assert all(token.logprob is not None and token.logprob <= 0 for token in logprobs)


@pytest.mark.parametrize("response_format", ["json", "srt", "vtt"])
def test_a_stream_is_the_whole_in_pieces(whisper: RunningServer, response_format: str) -> None:
    data = {"response_format": response_format, "stream": "true"}
    body = httpx.post(f"{whisper.url}{PATH}", files={"file": CLIP}, data=data).text
    lines = [line for line in body.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    kinds = [event["type"] for event in events]
    assert kinds == ["transcript.text.delta"] * (len(kinds) - 1) + ["transcript.text.done"]
    assert len(kinds) > 3, "an event for each window in which something was said"
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"]
    assert events[-1]["usage"]["input_tokens"] == 265
    whole = httpx.post(f"{whisper.url}{PATH}", files={"file": CLIP}, data={**data, "stream": "0"})
    text = whole.json()["text"] if response_format == "json" else whole.text
    assert events[-1]["text"].strip() == text.strip()


def test_the_client_reads_a_stream(client: openai.OpenAI) -> None:
    stream: Any = client.audio.transcriptions.create(
        file=("a", CLIP), model="whisper-1", stream=True
    )
    kinds = [event.type for event in stream]
    assert kinds[-1] == "transcript.text.done"


def test_a_translation_is_told_as_one(whisper: RunningServer) -> None:
    data = {"response_format": "verbose_json", "language": "de", "model": "whisper-1"}
    url = f"{whisper.url}/v1/audio/translations"
    response = httpx.post(url, files={"file": CLIP}, data=data)
    assert response.status_code == 200, response.text
    assert (response.json()["task"], response.json()["language"]) == ("translate", "de")


def test_many_at_once_are_heard_as_each_alone(whisper: RunningServer) -> None:
    """Also where the first tries of all of them fail."""
    clips = [encoded(noise(0.4 + 0.3 * n, n), "FLAC") for n in range(8)]
    url, wanted = f"{whisper.url}{PATH}", {"timestamp_granularities[]": ["word", "segment"]}
    together = asyncio.run(_together(url, clips, **wanted))
    alone = [asyncio.run(_together(url, [clip], **wanted))[0] for clip in clips]
    assert [_without_figures(answer) for answer in together] == [
        _without_figures(answer) for answer in alone
    ]
    assert len({answer["text"] for answer in alone}) > 4
    assert {s["temperature"] for answer in alone for s in answer["segments"]} > {0.0}


def _without_figures(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer without what depends on the order of additions."""
    for segment in answer["segments"]:
        del segment["avg_logprob"], segment["no_speech_prob"]
    return answer


async def _together(url: str, clips: list[bytes], **fields: Any) -> list[dict[str, Any]]:
    """The verbose answers to all of these at once."""
    async with httpx.AsyncClient(timeout=60) as client:

        async def hear(clip: bytes) -> dict[str, Any]:
            data = {"response_format": "verbose_json", **fields}
            response = await client.post(url, files={"file": clip}, data=data)
            assert response.status_code == 200, response.text
            answer: dict[str, Any] = response.json()
            return answer

        return list(await asyncio.gather(*map(hear, clips)))


@pytest.mark.parametrize(
    ("file", "data", "status", "param"),
    [
        (b"not a sound at all", {}, 400, "file"),
        (CLIP[:30], {}, 400, "file"),
        (encoded(tone(61.0), "FLAC"), {}, 400, "file"),
        (CLIP, {"language": "zz"}, 400, "language"),
        (CLIP, {"language": "fr"}, 400, "language"),
        (CLIP, {"model": "gpt-4"}, 404, "model"),
        (CLIP, {"temperature": "x"}, 400, "temperature"),
        (None, {}, 400, "sound"),
        (b"\0" * (26 * 1024 * 1024), {}, 413, None),
    ],
)
def test_what_cannot_be_heard_is_refused(
    whisper: RunningServer,
    file: bytes | None,
    data: dict[str, str],
    status: int,
    param: str | None,
) -> None:
    files: Any = {"sound" if file is None else "file": file or b"x"}
    response = httpx.post(f"{whisper.url}{PATH}", files=files, data=data)
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param


def test_silence_and_bare_paths_and_languages(whisper: RunningServer) -> None:
    for language in ("en", "EN", "english", "", "null"):
        response = httpx.post(
            f"{whisper.url}/audio/transcriptions", files={"file": CLIP}, data={"language": language}
        )
        assert response.status_code == 200, response.text


def test_a_model_of_sound_answers_no_text(client: openai.OpenAI, whisper: RunningServer) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.NotFoundError, match="/v1/audio/transcriptions"):
        client.chat.completions.create(model="whisper-1", messages=messages)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="whisper-1", prompt="hello")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="whisper-1", messages=messages, stream=True)
    with pytest.raises(openai.BadRequestError, match="makes no embeddings"):
        client.embeddings.create(model="whisper-1", input="hello")
    assert whisper.metric("transformers_openai_api:open_requests") == 0


def test_a_model_of_text_hears_nothing(demo_server: RunningServer) -> None:
    response = httpx.post(f"{demo_server.url}{PATH}", files={"file": CLIP})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
