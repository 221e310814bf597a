"""Steps are recorded through the whole server: by a flag from the start, by a signal any time."""

import os
import signal
from pathlib import Path

import httpx
import openai
import orjson
import pytest

from tests.e2e.server import RunningServer, running_server
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def test_a_server_that_ends_reports_what_it_has_recorded(tmp_path: Path) -> None:
    arguments = ["--hf-model", "demo", "--torch-profiling"]
    with running_server(*arguments, "--torch-profiling-directory", str(tmp_path)) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": "hello"}], max_tokens=4
            )
        assert server.stop(within_seconds=20) == 0  # it writes the trace first
        log = "".join(server.log)
    (trace,) = tmp_path.iterdir()
    assert str(trace) in log
    assert "Self CPU time total" in log
    names = {event.get("name") for event in orjson.loads(trace.read_bytes())["traceEvents"]}
    assert {"prefill", "decode"} <= names


TOLD_SECONDS = 20.0
TABLE = "Self CPU time total"  # the last line of a report


def signalled(server: RunningServer, says: str) -> None:
    """Sends the signal to every process of the server, as a service manager may, and waits."""
    before = sum(says in line for line in server.log)
    for pid in (*(child.pid for child in server.children().values()), server.process.pid):
        os.kill(pid, signal.SIGUSR2)
    wait_until(lambda: sum(says in line for line in server.log) > before, TOLD_SECONDS)


def answer(server: RunningServer, max_tokens: int) -> str:
    """What the model says to a greeting."""
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=TOLD_SECONDS)
    content: str = response.raise_for_status().json()["choices"][0]["message"]["content"]
    return content


def num_steps(trace: Path) -> int:
    """How many steps a trace holds."""
    events = orjson.loads(trace.read_bytes())["traceEvents"]
    kinds = {"prefill", "decode", "mixed"}
    return sum(e.get("cat") == "user_annotation" and e["name"] in kinds for e in events)


def test_a_signal_begins_to_record_and_a_second_one_ends_it(tmp_path: Path) -> None:
    directory = ("--torch-profiling-directory", str(tmp_path))
    with running_server("--hf-model", "demo", *directory) as server:
        before = answer(server, 4)
        assert list(tmp_path.iterdir()) == []
        signalled(server, "steps will be recorded")
        assert answer(server, 4) == before
        signalled(server, TABLE)
        (trace,) = tmp_path.iterdir()
        assert str(trace) in "".join(server.log)
        assert 1 <= num_steps(trace) <= 4
        assert answer(server, 4) == before
        signalled(server, "steps will be recorded")
        answer(server, 2)
        assert server.stop(within_seconds=20) == 0  # it writes the second trace first
    assert len(list(tmp_path.iterdir())) == 2


def test_recording_ends_by_itself_at_its_bound(tmp_path: Path) -> None:
    flags = ("--torch-profiling-directory", str(tmp_path), "--torch-profiling-steps", "2")
    with running_server("--hf-model", "demo", *flags) as server:
        signalled(server, "steps will be recorded")
        answer(server, 4)
        wait_until(lambda: any(TABLE in line for line in server.log), TOLD_SECONDS)
    (trace,) = tmp_path.iterdir()
    assert num_steps(trace) == 2
