"""The load test with sounds: forms that carry files, and transcripts whole and streamed."""

import asyncio
import io
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from benchmarks.load.client import Client, open_session
from benchmarks.load.command import main
from benchmarks.load.outcome import Completed, Failed, Outcome
from benchmarks.load.prompts import DatasetError
from benchmarks.load.sounds import Sound, SoundTarget, read_sounds
from benchmarks.load.transcripts import read_streamed, read_whole
from tests.benchmarks.sse_server import (
    DONE,
    HandClock,
    Handler,
    begin_stream,
    event,
    serving,
    streaming,
)
from tests.benchmarks.test_load_command import figures_of, refuse, server, taking_turns

DELTA = event({"type": "transcript.text.delta", "delta": "word "})
LAST = event({
    "type": "transcript.text.done",
    "text": "word word",
    "usage": {"type": "tokens", "input_tokens": 100, "output_tokens": 4, "total_tokens": 104},
})  # fmt: skip
VERBOSE = {"text": "word", "duration": 2.5, "usage": {"type": "duration", "seconds": 3}}


def wav(seconds: float) -> bytes:
    """Silence."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(2 * round(8000 * seconds)))
    return file.getvalue()


def folder(directory: Path) -> Path:
    """A sound of two seconds and what this program cannot read."""
    path = directory / "sounds"
    path.mkdir()
    (path / "b.wav").write_bytes(wav(2.0))
    (path / "a.raw").write_bytes(b"no sound")
    return path


def ask(
    handler: Handler, sound: Sound, clock: Callable[[], float], *, is_streamed: bool = False
) -> Outcome:
    """What becomes of one request."""

    async def run() -> Outcome:
        async with serving(handler) as url, open_session("key", 60.0) as session:
            fields = {"language": "en", "temperature": 0.5, "timestamp_granularities[]": ["word"]}
            target = SoundTarget(url, "org/served", is_streamed, fields)
            return await Client(session, target, clock).ask(sound)

    return asyncio.run(run())


async def transcribe(_: web.Request) -> web.Response:
    """A whole answer."""
    return web.json_response(VERBOSE)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_the_files_of_a_directory_go_round_in_the_order_of_their_names(tmp_path: Path) -> None:
    sounds = read_sounds(folder(tmp_path))
    found = [next(sounds) for _ in range(3)]
    assert [sound.name for sound in found] == ["a.raw", "b.wav", "a.raw"]
    assert [sound.seconds for sound in found] == [None, 2.0, None]
    (single,) = {next(read_sounds(tmp_path / "sounds" / "b.wav")).name for _ in range(2)}
    assert single == "b.wav"


def test_a_path_without_files_is_refused_by_its_name(tmp_path: Path) -> None:
    for path, complaint in ((tmp_path, "holds no files"), (tmp_path / "x.wav", "No such file")):
        with pytest.raises(DatasetError, match=complaint):
            read_sounds(path)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_form_carries_the_file_and_every_field(is_streamed: bool) -> None:
    content = wav(90.0)  # more than a mebibyte
    seen: dict[str, Any] = {}

    async def handle(request: web.Request) -> web.StreamResponse:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        seen.update(form, file=(file.filename, file.file.read()))
        seen["key"] = request.headers["Authorization"]
        return await (streaming(LAST, DONE) if is_streamed else transcribe)(request)

    outcome = ask(handle, Sound("a.wav", content, 90.0), HandClock(), is_streamed=is_streamed)
    assert isinstance(outcome, Completed)
    own = {"stream": "true"} if is_streamed else {"response_format": "verbose_json"}
    assert seen == {
        "file": ("a.wav", content),
        "model": "org/served",
        "language": "en",
        "temperature": "0.5",
        "timestamp_granularities[]": "word",
        "key": "Bearer key",
        **own,
    }


def test_a_streamed_transcript_has_the_times_of_its_pieces() -> None:
    clock = HandClock()

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = await begin_stream(request)
        for seconds, piece in ((1.0, DELTA), (3.0, DELTA), (4.0, LAST + DONE)):
            await clock.was_read_at(seconds)
            await response.write(piece)
        return response

    answer = ask(handle, Sound("a.wav", wav(1.0), 1.0), clock, is_streamed=True)
    assert isinstance(answer, Completed)
    assert (answer.ttft, answer.itls, answer.e2el) == (1.0, [2.0], 4.0)
    assert (answer.prompt_tokens, answer.output_tokens, answer.audio_seconds) == (100, 4, 1.0)
    assert answer.tpot == 3.0 / 3


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "file_seconds", "seconds"),
    [
        (VERBOSE, 2.0, 2.5),
        ({**VERBOSE, "duration": "2.5"}, 2.0, 2.5),  # some servers send a string
        ({"text": "", "usage": {"seconds": 3}}, 2.0, 2.0),
        ({"text": "", "usage": {"seconds": 3}}, None, 3.0),
        ({"text": ""}, None, None),
    ],
)
def test_the_length_is_the_servers_else_the_files_else_the_usages(
    answer: dict[str, Any], file_seconds: float | None, seconds: float | None
) -> None:
    outcome = read_whole(1.0, 3.0, file_seconds, json.dumps(answer).encode())
    assert outcome == Completed(1.0, 3.0, (), 0, 0, is_streamed=False, audio_seconds=seconds)


def test_what_is_no_transcript_fails_and_is_shown() -> None:
    for body in (b'{"choices": []}', b"plain words"):
        failure = read_whole(0.0, 1.0, 2.0, body)
        assert isinstance(failure, Failed)
        assert failure.kind == "no transcript"
        assert failure.message.endswith(body.decode())


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ((DELTA,), "cut stream"),
        ((b'{"text": "word"}',), "cut stream"),
        ((DELTA, event({"error": {"message": "out of memory"}}), DONE), "error event"),
        ((b"data: {oops\n\n",), "bad event"),
    ],
)
def test_a_stream_that_is_not_whole_fails(pieces: tuple[bytes, ...], kind: str) -> None:
    failure = read_streamed(0.0, 2.0, [(1.0, piece) for piece in pieces])
    assert isinstance(failure, Failed)
    assert failure.kind == kind


# ── the whole run ────────────────────────────────────────────────────────────────────────────────


def test_a_load_of_sounds_has_their_seconds_and_no_first_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "load.png"
    flags = ["--audio", str(folder(tmp_path)), "--num-prompts", "4", "--max-concurrency", "2"]
    with server(taking_turns(refuse, transcribe)) as url:
        assert main("", ["--base-url", url, *flags, "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    found = figures_of(printed)
    assert (found["completed"], found["refused"], found["failed"]) == (3, 1, 0)
    assert found["total_audio_seconds"] == 7.5
    assert found["rtfx"] == pytest.approx(7.5 / found["duration"])
    assert (found["backend"], found["without_length"]) == ("openai-audio", 0)
    assert found["p99_e2el_ms"] >= found["median_e2el_ms"] > 0
    assert "median_ttft_ms" not in found
    assert "Seconds of sound a second" in printed
    assert "Output tokens" not in printed
    assert "had no text" not in printed


def test_streamed_sounds_have_first_tokens_and_users_send_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traffic = ["--users", "2", "--spawn-rate", "100", "--duration", "0.3"]
    flags = ["--audio", str(folder(tmp_path)), "--stream", "--goodput", "ttft:60000", *traffic]
    with server(streaming(DELTA, DELTA, LAST, DONE)) as url:
        assert main("", ["--base-url", url, *flags]) == 0
    printed = capsys.readouterr().out
    found = figures_of(printed)
    assert found["median_ttft_ms"] > 0
    assert found["total_output_tokens"] == 4 * found["completed"]
    assert found["request_goodput"] == found["request_throughput"]
    assert found["without_length"] == (found["completed"] + 1) // 2  # of the file first in order
    assert "sounds is unknown" in printed
    assert "Output tokens" in printed


def test_a_path_without_sounds_ends_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(transcribe) as url:
        assert main("", ["--base-url", url, "--audio", str(tmp_path)]) == 2
    assert "holds no files" in capsys.readouterr().err
