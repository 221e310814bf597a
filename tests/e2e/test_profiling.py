"""`--torch-profiling` through the whole server: its report comes when the server ends."""

from pathlib import Path

import openai
import orjson
import pytest

from tests.e2e.server import running_server

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
