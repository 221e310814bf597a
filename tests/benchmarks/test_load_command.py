"""The load test as it is called: modes, exit status, tables and files; the server is a thread."""

import asyncio
import importlib.util
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from benchmarks.load.command import main
from benchmarks.load.options import parse
from tests.benchmarks.sse_server import DONE, Handler, delta, event, serving, streaming

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks/load_test.py"
TOKENS_PER_WORD, TEMPLATE_TOKENS, OUTPUT_TOKENS = 2, 5, 3


async def answer(request: web.Request) -> web.StreamResponse:
    """Three pieces of text and the usage, by the words of the prompt."""
    words = (await request.json())["messages"][0]["content"].split()
    usage = {
        "prompt_tokens": TEMPLATE_TOKENS + TOKENS_PER_WORD * len(words),
        "completion_tokens": OUTPUT_TOKENS,
    }
    last = event({"choices": [], "usage": usage})
    return await streaming(*[delta(content="word ")] * 3, delta("stop"), last, DONE)(request)


async def refuse(_: web.Request) -> web.Response:
    """A full queue."""
    return web.json_response({"error": {"message": "the queue is full"}}, status=429)


def taking_turns(*handlers: Handler) -> Handler:
    """Answers by one after the other, then by the last."""
    turns = list(handlers)

    async def handle(request: web.Request) -> web.StreamResponse:
        handler = turns.pop(0) if len(turns) > 1 else turns[0]
        return await handler(request)

    return handle


@contextmanager
def server(handler: Handler) -> Iterator[str]:
    """The URL of a server that runs in a thread."""
    url: Future[str] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(handler) as served:
            url.set_result(served)
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield url.result(10)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def custom_file(directory: Path) -> Path:
    """Two prompts: no calibration comes before them."""
    path = directory / "prompts.jsonl"
    path.write_text('{"prompt": "one two"}\n{"prompt": "three"}\n', encoding="utf-8")
    return path


def from_file(directory: Path) -> list[str]:
    """The flags for that file."""
    return ["--dataset-name", "custom", "--dataset-path", str(custom_file(directory))]


def figures_of(printed: str) -> dict[str, Any]:
    """The line of JSON."""
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


# ── modes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "flags",
    [
        ["--max-concurrency", "2", "--num-prompts", "6"],
        ["--request-rate", "1000", "--burstiness", "0.5", "--num-prompts", "6"],
        ["--dataset-name", "prefix_repetition", "--num-prompts", "6", "--num-warmups", "2"],
    ],
)
def test_a_load_of_arrivals_prints_tables_and_a_line_of_json(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with server(answer) as url:
        assert main("", ["--base-url", url, *flags]) == 0
    printed = capsys.readouterr().out
    found = figures_of(printed)
    assert (found["completed"], found["failed"], found["refused"]) == (6, 0, 0)
    assert found["total_output_tokens"] == 6 * OUTPUT_TOKENS
    assert found["model_id"] == "org/served"
    assert found["p99_ttft_ms"] >= found["median_ttft_ms"] > 0
    assert ("max_send_delay_ms" in found) is ("--request-rate" in flags)
    for words in ("Completed requests", "TTFT", "from sending to the first text"):
        assert words in printed


def test_users_send_until_the_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--users", "3", "--spawn-rate", "100", "--duration", "0.3"]
    with server(answer) as url:
        assert main("", ["--base-url", f"{url}/v1/", *flags]) == 0
    found = figures_of(capsys.readouterr().out)
    assert found["users"] == 3
    assert found["completed"] > 3
    assert found["duration"] >= 0.3
    assert found["max_concurrent_requests"] <= 3


def test_a_length_is_the_number_of_tokens_that_the_server_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--random-input-len", "105", "--num-prompts", "4"]
    with server(answer) as url:
        main("", ["--base-url", url, *flags])
    assert figures_of(capsys.readouterr().out)["total_input_tokens"] == 4 * 105


# ── exit status and problems ─────────────────────────────────────────────────────────────────────


def test_a_failed_request_fails_the_test_and_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = streaming(event({"error": {"message": "out of memory"}}))
    with server(taking_turns(answer, broken, answer)) as url:
        assert main("", ["--base-url", url, "--num-prompts", "3", *from_file(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert figures_of(printed)["problems"] == {
        "error event": {"count": 1, "first_message": "out of memory"}
    }
    assert re.search(r"error event +│ +1 +│ +out of memory", printed)


def test_a_refused_request_is_counted_and_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(taking_turns(refuse, refuse, answer)) as url:
        assert main("", ["--base-url", url, "--num-prompts", "5", *from_file(tmp_path)]) == 0
    printed = capsys.readouterr().out
    found = figures_of(printed)
    assert (found["completed"], found["refused"], found["failed"]) == (3, 2, 0)
    assert found["median_refusal_ms"] > 0
    assert "refusals took" in printed


def test_a_load_of_which_nothing_was_answered_fails(tmp_path: Path) -> None:
    with server(taking_turns(refuse)) as url:
        assert main("", ["--base-url", url, "--num-prompts", "3", *from_file(tmp_path)]) == 1


def test_without_a_server_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with server(answer) as url:
        pass
    assert main("", ["--base-url", url]) == 2
    assert "is the server up?" in capsys.readouterr().err


def test_estimated_tokens_are_marked_and_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(streaming(delta(content="word" * 5), DONE)) as url:
        main("", ["--base-url", url, "--num-prompts", "2", *from_file(tmp_path)])
    printed = capsys.readouterr().out
    assert re.search(r"Output tokens +│ +~10 ", printed)
    assert "sent no usage with 2 answers" in printed


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A process that a shell starts behind others ignores SIGINT, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupted_load_reports_what_was_answered(tmp_path: Path) -> None:
    is_held = threading.Event()

    async def hold(_: web.Request) -> web.Response:
        is_held.set()
        await asyncio.Event().wait()  # until the client has left
        raise AssertionError

    with server(taking_turns(answer, hold)) as url:
        flags = ["--base-url", url, "--max-concurrency", "1", *from_file(tmp_path)]
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        assert is_held.wait(60)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert figures_of(printed)["completed"] == 1
    assert "interrupted" in errors


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_figures_are_saved_with_every_request_and_the_metadata(tmp_path: Path) -> None:
    flags = ["--save-detailed", "--result-dir", str(tmp_path / "r"), "--metadata", "commit=1a2b"]
    goals = ["--goodput", "ttft:60000", "e2el:60000", "--label", "ours"]
    with server(answer) as url:
        main("", ["--base-url", url, "--num-prompts", "3", *flags, *goals])
    (path,) = (tmp_path / "r").iterdir()
    assert re.fullmatch(r"ours-infqps-served-\d{8}-\d{6}\.json", path.name)
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["commit"] == "1a2b"
    assert saved["output_lens"] == [OUTPUT_TOKENS] * 3
    assert [len(gaps) for gaps in saved["itls"]] == [2, 2, 2]
    assert saved["request_goodput"] == saved["request_throughput"] > 0


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    path = tmp_path / "plots" / "load"
    with server(answer) as url:
        assert main("", ["--base-url", url, "--num-prompts", "3", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_plot_of_failures_alone_is_one_too(tmp_path: Path) -> None:
    path = tmp_path / "load.png"
    flags = ["--num-prompts", "2", "--plot", str(path), *from_file(tmp_path)]
    with server(taking_turns(refuse)) as url:
        assert main("", ["--base-url", url, *flags]) == 1
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_plot_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main("", ["--base-url", "http://127.0.0.1:1", "--plot", "load.png"]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


# ── command line ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--users 5 --num-prompts 3", "--num-prompts: --users send as fast"),
        ("--spawn-rate 5", "--spawn-rate: needs --users"),
        ("--burstiness 2", "--burstiness: needs a finite --request-rate"),
        ("--base-url localhost:8000", "'localhost:8000' does not begin with http://"),
        ("--request-rate 0", "--request-rate: 0 is not from"),
        ("--request-rate nan", "--request-rate: nan is not from"),
        ("--num-prompts many", "--num-prompts: not a number: 'many'"),
        ("--dataset-name custom", "--dataset-name custom needs --dataset-path"),
        ("--dataset-path x", "--dataset-path: needs --dataset-name custom or sharegpt"),
        ("--custom-output-len 5", "--custom-output-len: needs --dataset-name custom"),
        ("--percentile-metrics ttft,speed", "no such metric: speed"),
        ("--metric-percentiles 50,101", "101 is not from 0 to 100"),
        ("--goodput itl:5", "'itl:5' is not METRIC:MILLISECONDS with one of ttft, tpot, e2el"),
        ("--metadata commit", "'commit' is not KEY=VALUE"),
        ("--extra-body [1]", "--extra-body: not a JSON object"),
        ("--stream", "--stream: needs --audio; texts are always streamed"),
        ("--audio a --endpoint /v1/completions", "--endpoint: --audio sends sounds in place of"),
        ("--audio a --dataset-name random", "--dataset-name: --audio sends sounds in place of"),
        ("--audio a --random-input-len 5", "--random-input-len: --audio sends sounds in place of"),
        ("--audio a --ignore-eos", "--ignore-eos: a transcript ends where its sound does"),
        ("--audio a --percentile-metrics e2el,ttft", "metrics: ttft of a sound needs --stream"),
        ("--audio a --goodput tpot:5", "--goodput: tpot of a sound needs --stream"),
        ('--audio a --extra-body {"stream":1}', "--extra-body: with --audio, stream is set by its"),
        ("--audio a --spawn-rate 5", "--spawn-rate: needs --users"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_flags_name(
    flags: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse("", flags.split())
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("command", [["-m", "benchmarks.load_test"], [str(SCRIPT)]])
def test_it_is_called_as_a_module_and_as_a_file(command: list[str], tmp_path: Path) -> None:
    cwd = ROOT if command[0] == "-m" else tmp_path
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--max-concurrency" in done.stdout
