"""What torch.compile makes is kept from start to start, where the launcher tells the worker."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.launching.environment import child_environment

NUM_GRAPHS = 2 + 2 + 2  # of a decoder, a T5 and a Whisper


def start(cache_directory: Path) -> dict[str, Any]:
    """What the compiler counted in a worker's process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu_worker.compiled_start"],
        env=child_environment("worker", os.environ, str(cache_directory)),
        stdout=subprocess.PIPE,
        check=True,
    )
    counted: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return counted


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_start_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    first, second = start(tmp_path), start(tmp_path)
    assert first["graphs"] == second["graphs"] == NUM_GRAPHS
    assert (first["fxgraph_cache_miss"], first.get("fxgraph_cache_hit", 0)) == (NUM_GRAPHS, 0)
    assert (second.get("fxgraph_cache_miss", 0), second["fxgraph_cache_hit"]) == (0, NUM_GRAPHS)
    assert list((tmp_path / "torch-compile").rglob("*.so"))
