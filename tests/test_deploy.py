"""What systemd itself says about the unit, where systemd is installed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.config import LauncherConfig
from shared.launching.supervisor import STOP_SECONDS

ROOT = Path(__file__).resolve().parents[1]
UNIT = ROOT / "deploy/systemd/transformers-openai-api@.service"
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")


def settings() -> dict[str, str]:
    """The unit's settings; of those that repeat, the last."""
    return dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd is not installed here")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8")
    installed_python = settings()["ExecStart"].partition(" ")[0]
    (tmp_path / UNIT.name).write_text(text.replace(installed_python, sys.executable))
    instance = tmp_path / UNIT.name.replace("@", "@chat")
    command = [str(SYSTEMD_ANALYZE), "verify", "--man=no", str(instance)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert done.returncode == 0, done.stderr
    assert complaints == []


def test_the_unit_starts_the_launcher_that_is_there() -> None:
    program = settings()["ExecStart"].rpartition(" ")[2]
    assert (ROOT / program).is_file()


def test_systemd_waits_for_a_first_token_and_for_a_drain() -> None:
    unit, launcher = settings(), LauncherConfig()
    assert (unit["Type"], unit["NotifyAccess"]) == ("notify", "main")
    assert float(unit["TimeoutStopSec"]) > launcher.drain_timeout + 2 * STOP_SECONDS
    assert float(unit["WatchdogSec"]) >= launcher.stall_timeout


def test_a_wrong_setting_is_not_tried_again() -> None:
    source = (ROOT / "shared/errors.py").read_text(encoding="utf-8")
    assert f"EXIT_CONFIGURATION = {settings()['RestartPreventExitStatus']} " in source
