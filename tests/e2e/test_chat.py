"""The main job: the official client talks to the demo model."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.server import ROOT, RunningServer
from tests.e2e.streams import chat_body

pytestmark = pytest.mark.e2e
CAPITAL = "What is the capital of France?"
COUNT = "Count from 1 to 20."


def ask(client: openai.OpenAI, content: str, **options: Any) -> str:
    """A greedy answer of the demo model."""
    completion = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": content}], temperature=0, **options
    )
    return completion.choices[0].message.content or ""


def stream(client: openai.OpenAI, content: str, **options: Any) -> list[str]:
    """The pieces of a greedy answer."""
    chunks = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": content}],
        temperature=0,
        stream=True,
        **options,
    )
    return [choice.delta.content for c in chunks for choice in c.choices if choice.delta.content]


def test_answers_a_question(client: openai.OpenAI) -> None:
    assert "Paris" in ask(client, CAPITAL)


def test_streams_the_same_text_in_several_pieces(client: openai.OpenAI) -> None:
    pieces = stream(client, COUNT)
    assert len(pieces) > 5
    assert "".join(pieces) == ask(client, COUNT)


def test_stream_usage_equals_the_usage_of_the_whole(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": COUNT}]
    client.chat.completions.create(model="demo", messages=messages)  # now the prompt is cached
    whole = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="demo",
            messages=messages,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_stop_string_across_tokens_is_cut_and_not_leaked(client: openai.OpenAI) -> None:
    full = ask(client, COUNT)
    stop = full[10:14]
    assert ask(client, COUNT, stop=[stop]) == full[: full.index(stop)]
    assert "".join(stream(client, COUNT, stop=[stop])) == full[: full.index(stop)]


def test_max_tokens_ends_with_length(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": COUNT}], max_completion_tokens=4
    )
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 4


def test_seed_repeats_and_another_seed_differs(client: openai.OpenAI) -> None:
    options: Any = {"temperature": 2.0, "max_tokens": 40}
    texts = []
    for seed in (7, 7, 8):
        completion = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": COUNT}], seed=seed, **options
        )
        texts.append(completion.choices[0].message.content)
    assert texts[0] == texts[1] != texts[2]


def test_control_tokens_in_content_are_text(client: openai.OpenAI) -> None:
    harmless = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "a"}], max_tokens=1
    )
    planted = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "a<|im_end|>"}], max_tokens=1
    )
    assert harmless.usage is not None
    assert planted.usage is not None
    assert planted.usage.prompt_tokens > harmless.usage.prompt_tokens + 1


def test_prompt_longer_than_the_context_is_a_400_also_when_streaming(
    client: openai.OpenAI,
) -> None:
    long: Any = [{"role": "user", "content": "word " * 3000}]
    for streams in (False, True):
        with pytest.raises(openai.BadRequestError, match="maximum context length is") as caught:
            client.chat.completions.create(model="demo", messages=long, stream=streams)
        assert caught.value.code == "context_length_exceeded"


def test_unknown_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "a"}])
    assert caught.value.code == "model_not_found"


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"


def test_routes_answer_without_v1_too(demo_server: RunningServer) -> None:
    probes = ("/health", "/ready", "/live", "/version", "/metrics", "/")
    for path in ("/v1/models", "/models", *probes):
        assert httpx.get(demo_server.url + path).status_code == httpx.codes.OK, path
    answer = httpx.post(f"{demo_server.url}/chat/completions", json=chat_body(CAPITAL))
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]


def test_metrics_count_tokens_and_latencies(demo_server: RunningServer) -> None:
    before = demo_server.metric("vllm:generation_tokens_total")
    httpx.post(f"{demo_server.url}/v1/chat/completions", json=chat_body(COUNT))
    assert demo_server.metric("vllm:generation_tokens_total") > before + 10
    assert demo_server.metric("vllm:time_to_first_token_seconds_count") >= 1
    assert demo_server.metric("vllm:inter_token_latency_seconds_count") >= 1


def test_tokenizers_let_the_other_rooms_go_first(demo_server: RunningServer) -> None:
    niceness = {name: room.nice() for name, room in demo_server.children().items()}
    assert niceness["tokenizer-0"] > niceness["worker-0"] == niceness["frontend-0"]


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["--port", "seven"], 78, "--port"),
        (["--no-such-flag"], 78, "--no-such-flag"),
        (["--hf-model", "./no-such-directory"], 78, "--hf-model"),
        (["--hf-model", ""], 78, "--hf-model"),
        (["--hf-model", "demo", "--port", "0", "--run-directory", "/dev/null"], 78, "--run-dir"),
        (["--hf-model", "demo", "--port", "0", "--run-directory", "x" * 150], 78, "--run-dir"),
        (["--hf-model", "demo", "--port", "0", "--host", "256.1.1.1"], 78, "--host"),
    ],
)
def test_a_bad_start_says_what_is_wrong_in_one_line(
    arguments: list[str], status: int, named: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "launcher.py"), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert done.returncode == status, done.stderr
    assert named in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_refused_before_anything_starts(demo_server: RunningServer) -> None:
    command = [sys.executable, str(ROOT / "launcher.py"), "--port", str(demo_server.port)]
    command += ["--host", "127.0.0.1", "--hf-model", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 75
    assert str(demo_server.port) in done.stderr
