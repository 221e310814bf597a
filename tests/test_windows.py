"""start.ps1, as far as it can be judged without Windows, and the script that it runs in WSL2.

Where PowerShell is installed, its own parser reads the file; elsewhere only the rest is checked.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.config import LauncherConfig
from shared.errors import EXIT_CONFIGURATION

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "start.ps1"
IN_WSL = ROOT / "deploy/windows/serve_in_wsl.sh"
POWERSHELL = shutil.which("pwsh")
# Of PowerShell 7; Windows brings 5.1.
NEWER_SYNTAX = ("&&", "||", "??", "?.", " ? ")
ALIASES = {
    "cat", "cd", "copy", "cp", "curl", "del", "dir", "echo", "gc", "gci", "gcm", "iex", "ls", "mv",
    "ps", "pwd", "rm", "select", "set", "sl", "sort", "start", "where", "wget",
}  # fmt: skip
LISTED = (  # by `wsl.exe --list --verbose`, without the zeros of its UTF-16
    "  NAME                   STATE           VERSION",
    "  docker-desktop         Running         2",
    "  Old                    Stopped         1",
    "* Ubuntu-24.04           En cours        2",
)


def code() -> str:
    """The script without comments and with empty strings."""
    text = re.sub(r"<#.*?#>", "", SCRIPT.read_text(encoding="ascii"), flags=re.DOTALL)
    return re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "''", text)


@pytest.mark.skipif(POWERSHELL is None, reason="PowerShell is not installed here")
def test_powershell_understands_the_script() -> None:
    parse = (
        "$errors = $null; [void][System.Management.Automation.Language.Parser]::ParseFile("
        f"'{SCRIPT}', [ref]$null, [ref]$errors); $errors | ForEach-Object {{ $_.Message }}"
    )
    command = [str(POWERSHELL), "-NoProfile", "-Command", parse]
    assert subprocess.check_output(command, text=True).strip() == ""


def test_windows_own_powershell_can_read_the_script() -> None:
    """Version 5.1 takes a file without a mark for one of the local alphabet: so only ASCII."""
    assert SCRIPT.read_text(encoding="utf-8").isascii()
    for syntax in NEWER_SYNTAX:
        assert syntax not in code(), syntax


def test_brackets_are_closed_in_order() -> None:
    expected: list[str] = []
    for sign in re.findall(r"[(){}\[\]]", code()):
        if sign in "({[":
            expected.append({"(": ")", "{": "}", "[": "]"}[sign])
        else:
            assert expected.pop() == sign
    assert expected == []


def test_functions_are_defined_once_and_all_are_used() -> None:
    defined = re.findall(r"^function ([A-Z]\w+-\w+)", code(), re.MULTILINE)
    assert len(defined) == len(set(defined))
    for name in defined:
        assert len(re.findall(rf"\b{name}\b", code())) > 1, name


def test_commands_have_their_full_names() -> None:
    first_words = re.findall(r"(?:^|[({;|=])[ \t]*([a-z]+)(?= |$)", code(), re.MULTILINE)
    assert not ALIASES & set(first_words)
    for program in ("wsl", "docker", "nvidia-smi"):
        assert not re.search(rf"(?<![\w/-]){program} ", code()), f"{program}.exe is meant"


def test_a_wsl2_distribution_of_the_user_is_found() -> None:
    pattern = re.search(r"\$line -match '(.*?)' -and", SCRIPT.read_text())
    assert pattern is not None
    found = [re.match(pattern[1], line) for line in LISTED]
    assert [match and match[1] for match in found] == [None, "docker-desktop", None, "Ubuntu-24.04"]
    assert "-notlike 'docker-desktop*'" in SCRIPT.read_text()


@pytest.mark.parametrize(
    ("model", "is_windows_path"),
    [
        (r"C:\models\mine", True),
        (r"\\server\models", True),
        (r".\mine", True),
        ("../mine", True),
        (".", True),
        ("demo", False),
        ("Qwen/Qwen3-0.6B", False),
        ("/home/me/mine", False),
        ("~/mine", False),
    ],
)
def test_a_model_that_is_a_windows_path_is_told_from_a_name(
    model: str, is_windows_path: bool
) -> None:
    pattern = re.search(r"\$model -notmatch '(.*?)'\)", SCRIPT.read_text())
    assert pattern is not None
    assert bool(re.match(pattern[1], model)) == is_windows_path


def test_what_the_script_names_is_there() -> None:
    text = SCRIPT.read_text()
    assert str(IN_WSL.relative_to(ROOT)) in text
    assert f"$port = '{LauncherConfig().port}'" in text
    assert text.count(f"exit {EXIT_CONFIGURATION}\n") == 2


# ── inside WSL2 ──────────────────────────────────────────────────────────────────────────────────


def serve_in_wsl(data: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """The script with its packages under `data`; `path` comes before the usual PATH."""
    environ = {
        **os.environ,
        "XDG_DATA_HOME": str(data),
        "PATH": f"{path}:{os.environ['PATH']}",
    }
    command = ["bash", str(IN_WSL), *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_once_installed_the_launcher_starts_with_the_arguments(tmp_path: Path) -> None:
    home = tmp_path / "transformers-openai-api"
    home.mkdir()
    (home / "venv").symlink_to(sys.prefix)
    shutil.copy(ROOT / "requirements.txt", home)
    done = serve_in_wsl(tmp_path, "--port", "no number")
    assert "--port: 'no number' is not a whole number" in done.stderr
    assert done.returncode == EXIT_CONFIGURATION


def test_a_python_that_is_too_old_is_one_sentence_with_the_way_out(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = serve_in_wsl(tmp_path / "data", path=str(tmp_path))
    assert done.stderr.startswith("Python 3.11 or newer")
    assert "sudo apt install" in done.stderr
    assert done.returncode == EXIT_CONFIGURATION


def test_scripts_keep_the_line_ends_of_linux() -> None:
    assert "* text=auto eol=lf" in (ROOT / ".gitattributes").read_text()
    assert b"\r" not in IN_WSL.read_bytes()
