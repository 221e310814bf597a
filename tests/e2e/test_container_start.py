"""What differs in a container: the launcher is process 1, and a health check asks from inside."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e.server import ROOT, RunningServer, running_server

pytestmark = pytest.mark.e2e
GONE_SECONDS = 20.0
UNSHARE = ["unshare", "--user", "--pid", "--fork", "--mount-proc", "--kill-child"]


def health_check(port: int) -> int:
    """The exit status of the container's health check."""
    command = [sys.executable, str(ROOT / "deploy/docker/health_check.py")]
    # A proxy of the environment has no business between a container and itself.
    environ = {**os.environ, "PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
    return subprocess.run(command, env=environ, check=False).returncode


def test_the_health_check_finds_a_healthy_server_on_its_port(demo_server: RunningServer) -> None:
    assert health_check(demo_server.port) == 0


def test_the_health_check_fails_where_nobody_listens() -> None:
    assert health_check(port=1) == 1


def test_serves_as_process_1() -> None:
    if subprocess.run([*UNSHARE, "true"], check=False).returncode != 0:
        pytest.skip("this machine does not let us make a process namespace")
    with running_server("--hf-model", "demo", prefix=UNSHARE) as server:
        assert health_check(server.port) == 0
        (launcher,) = psutil.Process(server.process.pid).children()
        status = Path(f"/proc/{launcher.pid}/status").read_text()
        assert re.search(r"^NSpid:.*\t1$", status, re.MULTILINE)
        launcher.terminate()
        assert server.process.wait(GONE_SECONDS) == 0
