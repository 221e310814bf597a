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
import torch
from openai.types.audio import Transcription, TranscriptionVerbose
from transformers import (
    AutoTokenizer,
    GenerationMixin,
    LogitsProcessorList,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from tests.e2e.server import RunningServer, running_server
from tests.e2e.whispers import SECONDS, save_whisper
from tests.tokenizer_proc.sounds import RATE, encoded, packed, tone
from tokenizer_proc.sound import Samples

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


def test_each_window_gets_the_tokens_that_transformers_generates(
    client: openai.OpenAI, checkpoint: Path
) -> None:
    model: Any = WhisperForConditionalGeneration.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
    heads = ["<|startoftranscript|>", "<|de|>", "<|transcribe|>"]
    start: Any = tokenizer.convert_tokens_to_ids(heads)
    first_time: Any = tokenizer.convert_tokens_to_ids("<|0.00|>")
    for seed in range(6):
        samples = noise(SECONDS - 0.1 * seed, seed)
        sound = encoded(samples, "WAV", subtype="FLOAT")
        found = client.audio.transcriptions.create(
            file=("a.wav", sound), model="whisper-1", response_format="verbose_json", language="de"
        )
        features = extractor(samples, sampling_rate=RATE, return_tensors="pt").input_features
        expected = GenerationMixin.generate(
            model,
            features,
            decoder_input_ids=torch.tensor([start]),
            logits_processor=LogitsProcessorList(processors(model.generation_config)),
            max_new_tokens=32,
            do_sample=False,
        )[0, len(start) :].tolist()
        words = [i for i in expected if i < first_time and i not in tokenizer.all_special_ids]
        segments: Any = found.segments or []
        assert [token for segment in segments for token in segment.tokens] == words


def processors(config: Any) -> list[Any]:
    """What transformers' own `generate()` of Whisper adds for marks of time."""
    begin = 3
    return [
        SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, begin),
        SuppressTokensLogitsProcessor(config.suppress_tokens),
        WhisperTimeStampLogitsProcessor(config, begin_index=begin),
    ]


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
    clips = [encoded(noise(0.7 + 1.1 * n, n), "FLAC") for n in range(16)]
    alone, together = asyncio.run(_alone_and_together(f"{whisper.url}{PATH}", clips))
    assert together == alone
    assert len(set(alone)) > 8


async def _alone_and_together(url: str, clips: list[bytes]) -> tuple[list[str], list[str]]:
    async with httpx.AsyncClient(timeout=60) as client:

        async def hear(clip: bytes) -> str:
            data = {"response_format": "verbose_json"}
            response = await client.post(url, files={"file": clip}, data=data)
            assert response.status_code == 200, response.text
            found = response.json()
            return json.dumps([[s["tokens"], s["start"]] for s in found["segments"]])

        alone = [await hear(clip) for clip in clips]
        return alone, list(await asyncio.gather(*map(hear, clips)))


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
