"""A process is killed while streams run: everybody is told, and nothing is left."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.server import GONE_SECONDS, RunningServer, running_server
from tests.e2e.streams import Reply, chat_body, stream_chat
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e
NUM_STREAMS = 8
TOLD_SECONDS = 2.0


async def kill_while_streaming(
    server: RunningServer, victim: psutil.Process
) -> tuple[list[Reply], float]:
    """Kills the process once all streams run; what each client saw, and the time of death."""
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        bodies = [chat_body(f"Story {index}", max_tokens=3000) for index in range(NUM_STREAMS)]
        streams = [asyncio.create_task(stream_chat(client, body)) for body in bodies]
        await asyncio.to_thread(wait_until, lambda: is_streaming(server), 20.0)
        killed_at = time.monotonic()
        victim.kill()
        return await asyncio.gather(*streams), killed_at


def is_streaming(server: RunningServer) -> bool:
    """True when every stream runs and has had some text."""
    return (
        server.metric("vllm:num_requests_running") == NUM_STREAMS
        and server.metric("vllm:time_to_first_token_seconds_count") >= NUM_STREAMS
    )


def test_one_death_too_many_ends_the_service_and_everybody_is_told(endless_model: Path) -> None:
    with running_server("--hf-model", str(endless_model), "--restart-limit", "0") as server:
        children = server.children()
        replies, killed_at = asyncio.run(kill_while_streaming(server, children["worker-0"]))
        assert server.process.wait(GONE_SECONDS) > 0
        assert time.monotonic() - killed_at < GONE_SECONDS
        for reply in replies:
            assert reply.ended_at - killed_at < TOLD_SECONDS
            assert reply.error is not None
            assert reply.finish_reason is None
        wait_until(lambda: not any(child.is_running() for child in children.values()), 1.0)
        assert any("worker-0" in line and "SIGKILL" in line for line in server.log)


def test_starts_answers_and_ends_without_any_network(endless_model: Path) -> None:
    if subprocess.run(["unshare", "-rn", "true"], check=False).returncode != 0:
        pytest.skip("this machine does not let us make a network namespace")
    up = 'ip link set lo up && exec "$@"'
    prefix = ["unshare", "-rn", "sh", "-c", up, "sh"]
    with running_server("--hf-model", str(endless_model), prefix=prefix) as server:
        inside = ["nsenter", "-t", str(server.process.pid), "-U", "-n", "--preserve-credentials"]
        ask = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).status)"
        command = [*inside, sys.executable, "-c", ask, f"{server.url}/ready"]
        assert subprocess.check_output(command, text=True).strip() == "200"
        assert server.stop(signal.SIGINT) == 0
