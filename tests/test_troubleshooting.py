"""Every sentence that docs/troubleshooting.md quotes is one that the server says."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/troubleshooting.md"
SPEAKING = ("launcher.py", "frontend", "tokenizer_proc", "gpu_worker", "scheduler", "shared")
QUOTED = re.findall(r"^> (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
SHORTEST = 4  # characters of a quoted piece that could be found by chance


@cache
def said() -> str:
    """Every piece of text in the server's code, placeholders left out, one a line."""
    files = [path for name in SPEAKING for path in (ROOT / name, *(ROOT / name).rglob("*.py"))]
    pieces = [(ROOT / "deploy/windows/serve_in_wsl.sh").read_text(encoding="utf-8")]
    for path in filter(Path.is_file, files):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.append(node.value)
    return re.sub(r"%[sd]", "\n", "\n".join(pieces))


@pytest.mark.parametrize("message", QUOTED)
def test_the_server_says_it(message: str) -> None:
    pieces = [piece.strip() for piece in message.split("…")]
    assert max(map(len, pieces)) > SHORTEST
    for piece in pieces:
        assert piece in said(), piece


def test_there_is_something_to_check() -> None:
    assert len(QUOTED) > 20
