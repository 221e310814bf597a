"""The commands that the original's users have for Whisper start this server, and it answers them.

Their model is `openai/whisper-large-v3`; here it is the built-in one.
"""

import json
from pathlib import Path

import httpx
import orjson
import pytest

from demo.whisper_sounds import SOUNDS_FOLDER
from tests.e2e.server import RunningServer, running_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MODEL = ("--hf-model", "demo-whisper")
SPELLED = (
    *("--attn-implementation", "sdpa", "--processor-type", "AutoProcessor"),
    *("--serving-type", "whisper", "--torch-dtype", "bfloat16", "--cache-type", "none"),
)
DOTTED = "transformers_openai.models.WhisperForConditionalGeneration"
COMMANDS = {
    "in batches": (*SPELLED, "--model-type", DOTTED, "--continous-batching", "true"),
    "one by one": (*SPELLED, "--model-type", "WhisperForConditionalGeneration"),
    "fixed lengths": (
        *SPELLED, "--model-type", DOTTED, "--continuous-batching", "true",
        "--continuous-batching-batch-size", "4", "--static-cache", "true",
        "--static-cache-encoder-max-length", "1500", "--static-cache-decoder-max-length", "446",
    ),
}  # fmt: skip


def answered(server: RunningServer) -> tuple[str, int]:
    """What the original's own requests get, without `/v1`: a text, and a stream of so many cues."""
    url = f"{server.url}/audio/transcriptions"
    sound = (SOUNDS_FOLDER / "long.wav").read_bytes()
    whole = {"model": "model", "response_format": "verbose_json"}
    found = httpx.post(url, files={"file": ("a.wav", sound)}, data=whole, timeout=60)
    assert found.status_code == 200, found.text
    stream = {"model": "whisper", "response_format": "srt", "stream": "true"}
    events = httpx.post(url, files={"file": ("a.wav", sound)}, data=stream, timeout=60).text
    *_, last, done, _ = events.split("\n\n")
    assert done == "data: [DONE]"
    cues = json.loads(last.removeprefix("data: "))["text"]
    assert cues.startswith("1\n00:00:01,")
    return found.json()["text"], cues.count(" --> ")


@pytest.mark.parametrize("name", ["one by one", "fixed lengths"])
def test_it_starts_and_answers(name: str) -> None:
    with running_server(*MODEL, *COMMANDS[name]) as server:
        text, num_cues = answered(server)
    assert text.startswith("one two nine open window three")
    assert num_cues == 9


def test_it_starts_and_answers_and_its_steps_are_profiled(tmp_path: Path) -> None:
    flags = ("--torch-autograd-profiling", "--torch-profiling-directory", str(tmp_path))
    with running_server(*MODEL, *COMMANDS["in batches"], *flags) as server:
        assert answered(server)[1] == 9
        assert server.stop(within_seconds=60) == 0  # it writes the trace first
    (trace,) = tmp_path.iterdir()
    names = {event.get("name") for event in orjson.loads(trace.read_bytes())["traceEvents"]}
    assert {"prefill", "decode"} <= names
