"""The launcher as a program: what it says, how fast, and how it ends where it cannot serve."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shared.errors import EXIT_CONFIGURATION
from shared.launching import flags

ROOT = Path(__file__).resolve().parents[1]
HELP_SECONDS = 0.3
HELP_RUNS = 5
HEAVY = {"torch", "transformers", "tokenizers", "huggingface_hub", "numpy", "litestar", "yaml"}


def launch(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the launcher to its end, in a directory of its own for sockets and with no key."""
    with tempfile.TemporaryDirectory(prefix="la-") as run_directory:
        command = [sys.executable, str(ROOT / "launcher.py"), *arguments]
        return subprocess.run(
            command,
            env={**os.environ, "RUN_DIRECTORY": run_directory, "PORT": "0", **environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


def processor_seconds_of_help() -> float:
    """Seconds of processor time that one `--help` takes: other processes make it no longer."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "launcher.py"), "--help"], stdout=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_answers_at_once() -> None:
    assert min(processor_seconds_of_help() for _ in range(HELP_RUNS)) < HELP_SECONDS


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, launcher\n"
        "sys.argv[1:] = ['--help']\n"
        "try: launcher.main()\n"
        "except SystemExit: pass\n"
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "shared.launching.flags" in done.stderr
    assert not {name for name in HEAVY if f"'{name}'" in done.stderr}


def test_the_configuration_is_printed_with_its_origins(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("max-n: 3\nport: 5\n")
    done = launch(
        "--print-config",
        "--hf-model",
        "demo",
        "--config",
        str(file),
        MAX_QUEUE="7",
        API_KEY="s3cret",
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(list(flags.flag_fields()))
    for expected in (
        '--hf-model "demo"  (command line)',
        "--max-queue 7  (environment variable MAX_QUEUE)",
        "--port 0  (environment variable PORT)",
        f"--max-n 3  (file {file})",
        "--api-key ***  (environment variable API_KEY)",
        "--queue-timeout 30.0  (default)",
        '--accelerator-type ""  (default: cuda if there is a GPU, else cpu)',
    ):
        assert expected in lines
    assert "s3cret" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environ", "sentence"),
    [
        (["--hqq", "--quantization", "int8"], {}, "--hqq and --quantization int8"),
        (["--quantization", "int8"], {"HQQ": "TRUE"}, "--hqq and --quantization int8"),
    ],
)
def test_what_is_not_built_is_refused_at_once(
    arguments: list[str], environ: dict[str, str], sentence: str
) -> None:
    done = launch("--hf-model", "demo", *arguments, **environ)
    assert done.returncode == EXIT_CONFIGURATION
    (line,) = done.stderr.splitlines()
    assert sentence in line


def test_old_spellings_are_accepted_with_one_warning_each() -> None:
    done = launch(
        "--attn-implementation", "sdpa", "--reload", "true", "--hf-model", "./nothing",
        ATTN_IMPLEMENTATION="sdpa", HOTLOAD="true", CACHE_TYPE="none",
    )  # fmt: skip
    *warnings, refusal = done.stderr.splitlines()
    given = ["--attn-implementation", "--reload", "ATTN_IMPLEMENTATION", "CACHE_TYPE", "HOTLOAD"]
    ends = [f"WARNING launcher {name} has no effect" for name in given]
    seen = [line for line in warnings if "HOSTNAME" not in line]
    assert len(seen) == len(ends)
    assert all(line.endswith(end) for line, end in zip(seen, ends, strict=True))
    assert "./nothing" in refusal


def test_a_hostname_that_is_not_used_is_logged_unless_a_host_was_named() -> None:
    refused = ("--hf-model", "./nothing")
    assert "HOSTNAME=3f2a9c is no address" in launch(*refused, HOSTNAME="3f2a9c").stderr
    assert "HOSTNAME" not in launch(*refused, HOSTNAME="3f2a9c", HOST="127.0.0.1").stderr
    assert "HOSTNAME" not in launch(*refused, HOSTNAME="127.0.0.1").stderr


def test_an_open_server_without_a_key_is_warned_of() -> None:
    refused = {"HF_MODEL": "demo", "RUN_DIRECTORY": "/dev/null"}  # after the port is bound
    assert "--api-key" in launch("--host", "0.0.0.0", **refused).stderr
    assert "--api-key" not in launch("--host", "127.0.0.1", **refused).stderr
    assert "--api-key" not in launch("--host", "0.0.0.0", API_KEY="k", **refused).stderr


def test_logs_for_machines_are_an_object_a_line() -> None:
    done = launch("--log-format", "json", "--reload", "--hf-model", "./nothing", HOST="127.0.0.1")
    line = json.loads(done.stderr.splitlines()[0])
    assert (line["level"], line["room"]) == ("WARNING", "launcher")
    assert line["message"] == "--reload has no effect"


def test_a_log_level_hides_what_is_below() -> None:
    quiet = launch("--loglevel", "error", "--reload", "--hf-model", "./nothing")
    assert quiet.stderr.count("\n") == 1
    assert "no such directory" in quiet.stderr


@pytest.mark.parametrize(("platform", "named"), [("win32", "WSL2"), ("darwin", "Docker")])
def test_another_system_is_told_where_the_server_runs(platform: str, named: str) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.platform = {platform!r}\n"
        "sys.modules['fcntl'] = None\n"  # as on Windows
        "runpy.run_path('launcher.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert named in line
