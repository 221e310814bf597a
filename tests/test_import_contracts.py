"""Every contract of `pyproject.toml` is broken once, in a copy of the tree, and must be reported.

import-linter passes over a forbidden name that nobody imports, so a misspelt one would never show.
"""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
LINT = (
    "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
)

# Contract, file, and the import that it must refuse there.
VIOLATIONS = [
    ("Rooms are independent; imports point down", "frontend/planted.py", "gpu_worker"),
    ("Rooms are independent; imports point down", "gpu_worker/planted.py", "tokenizer_proc"),
    ("Rooms are independent; imports point down", "scheduler/planted.py", "gpu_worker"),
    ("Rooms are independent; imports point down", "shared/planted.py", "scheduler"),
    ("Only the GPU worker knows the scheduler", "tokenizer_proc/planted.py", "scheduler.plan"),
    ("The scheduler is pure", "scheduler/planted.py", "time"),
    ("The scheduler is pure", "scheduler/planted.py", "torch"),
    ("The scheduler is pure", "shared/sampling.py", "os"),  # it reaches the scheduler through this
    ("No torch outside the GPU worker", "tokenizer_proc/planted.py", "torch"),
    ("No torch outside the GPU worker", "shared/planted.py", "hqq"),
    ("The frontend and the corridor know no models", "frontend/planted.py", "tokenizers"),
    (
        "Of transformers the detokenizer loads the response parser alone",
        "tokenizer_proc/stopping.py",
        "transformers",
    ),
    (
        "Of transformers the detokenizer loads the response parser alone",
        "tokenizer_proc/thoughts.py",
        "torch",
    ),
    ("ZeroMQ lives in shared.sockets", "scheduler/planted.py", "zmq"),
    ("ZeroMQ lives in shared.sockets", "gpu_worker/planted.py", "zmq"),
    ("The web framework lives in the frontend", "shared/planted.py", "litestar"),
]


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    """The rooms and their contracts, free to be spoilt."""
    for package in SETTINGS["root_packages"]:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def broken_contracts(directory: Path) -> set[str]:
    """The names of the contracts that import-linter finds broken."""
    command = [sys.executable, "-c", LINT]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    names = {contract["name"] for contract in SETTINGS["contracts"]}
    broken = {name for name in names if f"{name} BROKEN" in done.stdout}
    kept = {name for name in names if f"{name} KEPT" in done.stdout}
    assert broken | kept == names, done.stdout + done.stderr
    assert bool(broken) == bool(done.returncode)
    return broken


def test_every_contract_is_put_to_the_test() -> None:
    assert {name for name, _, _ in VIOLATIONS} == {c["name"] for c in SETTINGS["contracts"]}


def test_contracts_hold_without_a_violation(copied_tree: Path) -> None:
    assert broken_contracts(copied_tree) == set()


@pytest.mark.parametrize(("contract", "file", "module"), VIOLATIONS)
def test_contract_refuses_a_violation(
    contract: str, file: str, module: str, copied_tree: Path
) -> None:
    path = copied_tree / file
    before = path.read_text() if path.exists() else ""
    path.write_text(f"{before}\nimport {module}\n")
    assert contract in broken_contracts(copied_tree)
