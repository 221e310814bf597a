"""Starts that cannot work end in one sentence with one fix, whichever process finds out."""

import http.server
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.models import DEMO_DIRECTORY
from tests.e2e.server import LAUNCHER, RunningServer, running_server

pytestmark = pytest.mark.e2e
END_SECONDS = 60.0
EXIT_CONFIGURATION = 78


def refused(*arguments: str, **environ: str) -> str:
    """The one line that says why a start with these settings cannot work."""
    with tempfile.TemporaryDirectory(prefix="st-") as run_directory:
        common = ["--host", "127.0.0.1", "--port", "0", "--run-directory", run_directory]
        variables = [f"{name}={value}" for name, value in environ.items()]
        command = ["env", *variables, *LAUNCHER, *common, *arguments]
        server = RunningServer(command, afresh=bool(environ))  # some are read at an import
        try:
            status = server.process.wait(END_SECONDS)
        finally:
            server.kill()
    said = "".join(server.log)
    assert status == EXIT_CONFIGURATION, said
    assert "Traceback" not in said
    (line,) = [line for line in server.log if "failed:" in line]
    return line


@contextmanager
def hub(status: int, error_code: str) -> Iterator[str]:
    """A Hub that answers everything with this refusal; its address."""

    class Refusal(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Refuses."""
            self.send_response(status)
            self.send_header("X-Error-Code", error_code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 — http.server's name

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def copy_demo(directory: Path, *, without: str = "") -> Path:
    """The built-in model in a directory of its own, without one of its files."""
    directory.mkdir()
    for file in DEMO_DIRECTORY.iterdir():
        if file.name != without:
            (directory / file.name).write_bytes(file.read_bytes())
    return directory


def test_a_hub_model_without_the_hub_is_refused(tmp_path: Path) -> None:
    line = refused("--hf-model", "nobody/nothing", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert "--hf-model nobody/nothing: it is not on this machine" in line
    assert "`demo`" in line


def test_a_gated_model_says_where_to_ask_and_how_to_sign_in(tmp_path: Path) -> None:
    with hub(403, "GatedRepo") as address:
        line = refused(
            "--hf-model",
            "org/gated",
            HF_ENDPOINT=address,
            HF_HOME=str(tmp_path),
            HF_HUB_OFFLINE="0",
        )
    assert "https://huggingface.co/org/gated" in line
    assert "HF_TOKEN" in line


def test_weights_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    directory = copy_demo(tmp_path / "cut")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert "model.safetensors is not whole" in refused("--hf-model", str(directory))


@pytest.fixture(scope="module")
def bare_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server as a user starts it, on a model without a chat template."""
    directory = copy_demo(tmp_path_factory.mktemp("starts") / "bare", without="chat_template.jinja")
    flags = ("--hf-model", str(directory), "--tokenizer-processes", "2")
    with running_server(*flags, afresh=True) as server:
        yield server
        assert server.stop() == 0


def test_a_model_without_a_chat_template_starts_with_a_warning(bare_server: RunningServer) -> None:
    assert {"tokenizer-0", "tokenizer-1"} <= set(bare_server.children())
    (warning,) = [line for line in bare_server.log if "WARNING tokenizer-" in line]
    assert "--chat-template" in warning
    assert "/v1/completions" in warning
    body = {"model": "bare", "messages": [{"role": "user", "content": "hi"}]}
    answer = httpx.post(f"{bare_server.url}/v1/chat/completions", json=body)
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert "no chat template" in answer.json()["error"]["message"]


def test_only_worker_and_tokenizer_hold_torch(bare_server: RunningServer) -> None:
    processes = {**bare_server.children(), "launcher": bare_server.process}
    loaded = set()
    for name, process in processes.items():
        with open(f"/proc/{process.pid}/maps") as maps:  # noqa: PTH123 — a kernel file
            if "libtorch" in maps.read():
                loaded.add(name)
    assert "worker-0" in loaded
    assert not loaded & {"launcher", "frontend-0", "detokenizer-0"}
