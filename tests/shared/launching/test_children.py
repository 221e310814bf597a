"""How a room's process is started."""

import os
from pathlib import Path

import pytest

from shared.config import Identity, LauncherConfig, TokenizerConfig
from shared.launching.children import TOKENIZER_NICENESS, start_child


@pytest.mark.parametrize("own", [0, TOKENIZER_NICENESS - 1, TOKENIZER_NICENESS + 5])
def test_a_tokenizer_steps_back_and_never_ahead_of_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: int
) -> None:
    """Whoever is started by nice(1) may not make a process less nice: see setpriority(2)."""
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "getpriority", lambda *_: own)
    monkeypatch.setattr(os, "setpriority", lambda *values: asked.append(values))
    identity = Identity("tokenizer", 0, 1, str(tmp_path))
    child = start_child(
        identity, TokenizerConfig(), LauncherConfig(), program="this", environ=os.environ
    )
    child.process.wait()
    os.close(child.pidfd)
    assert asked == [(os.PRIO_PROCESS, child.process.pid, max(own, TOKENIZER_NICENESS))]
