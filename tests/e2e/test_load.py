"""The load test against the real server: every answer arrives whole, and all tokens are counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load.command import main
from tests.e2e.server import RunningServer
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def measured(server: RunningServer, directory: Path, *flags: str) -> dict[str, Any]:
    """The saved figures of a load without failures."""
    saving = ["--save-detailed", "--result-dir", str(directory), "--result-filename", "load.json"]
    lengths = ["--random-input-len", "100", "--random-output-len", "12", "--ignore-eos"]
    assert main("", ["--base-url", server.url, *lengths, *saving, *flags]) == 0
    found: dict[str, Any] = json.loads((directory / "load.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    "flags", [("--max-concurrency", "4"), ("--request-rate", "40", "--burstiness", "0.5")]
)
def test_arrivals_are_all_answered_in_full(
    demo_server: RunningServer, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    found = measured(demo_server, tmp_path, "--num-prompts", "10", *flags)
    assert found["output_lens"] == [12] * 10
    assert found["estimated"] == found["refused"] == 0
    assert found["total_input_tokens"] == pytest.approx(1000, rel=0.1)
    assert found["median_ttft_ms"] < found["median_e2el_ms"]


def test_users_leave_nothing_open(demo_server: RunningServer, tmp_path: Path) -> None:
    flags = ["--users", "4", "--spawn-rate", "20", "--duration", "1"]
    found = measured(demo_server, tmp_path, *flags)
    assert found["completed"] >= 4
    assert found["max_concurrent_requests"] <= 4
    wait_until(demo_server.is_at_rest, 10)
