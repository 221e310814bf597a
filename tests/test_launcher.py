"""The launcher's own parts: the directory, the port and the environment it accepts."""

import socket
import tempfile
from pathlib import Path

import pytest

import launcher
from shared.errors import EXIT_CONFIGURATION, EXIT_PORT_IN_USE, FatalError


def refusal(path: Path | str) -> FatalError:
    """How a run directory is refused."""
    with pytest.raises(FatalError, match="--run-directory") as caught:
        launcher.open_run_directory(str(path), 1, {})
    assert caught.value.exit_status == EXIT_CONFIGURATION
    return caught.value


def test_only_the_worker_has_threads_and_they_do_not_spin_for_long() -> None:
    worker = launcher._child_environment("worker", {})
    assert (worker["OMP_WAIT_POLICY"], worker["GOMP_SPINCOUNT"]) == ("PASSIVE", launcher.SPIN_COUNT)
    assert "OMP_NUM_THREADS" not in worker
    assert launcher._child_environment("worker", {"GOMP_SPINCOUNT": "7"})["GOMP_SPINCOUNT"] == "7"
    for kind in ("frontend", "tokenizer", "detokenizer"):
        assert launcher._child_environment(kind, {"OMP_NUM_THREADS": "8"})["OMP_NUM_THREADS"] == "1"


def test_a_run_directory_is_private_and_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert launcher.open_run_directory(str(path), 1, {}) == str(path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert "in use" in str(refusal(path))


def test_a_run_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert "0700" in str(refusal(tmp_path))


def test_a_link_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    refusal(tmp_path / "link")


def test_a_directory_whose_sockets_would_not_fit_is_refused(tmp_path: Path) -> None:
    assert "too long" in str(refusal(tmp_path / ("x" * 90)))


def test_only_what_an_earlier_run_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    names = ["worker-0.1", "worker-0.1.json", "frontend-0.2.failed", "tokenizer.json", "diary.txt"]
    for name in names:
        (path / name).touch()
    launcher.open_run_directory(str(path), 1, {})
    assert sorted(entry.name for entry in path.iterdir()) == ["diary.txt", "lock"]


def test_the_default_directory_depends_on_the_port() -> None:
    with tempfile.TemporaryDirectory() as short:  # as pytest's own is too long for sockets
        paths = {launcher.open_run_directory("", n, {"XDG_RUNTIME_DIR": short}) for n in (7, 8)}
        assert len(paths) == 2


def test_a_port_in_use_and_a_host_that_is_none_differ_in_status() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(FatalError) as in_use:
            launcher.open_listener("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(FatalError) as no_host:
        launcher.open_listener("256.1.1.1", 0)
    assert (in_use.value.exit_status, no_host.value.exit_status) == (
        EXIT_PORT_IN_USE,
        EXIT_CONFIGURATION,
    )


@pytest.mark.parametrize(
    ("hostname", "is_kept"),
    [("localhost", True), ("127.0.0.1", True), ("::1", True), ("3f2a9c", False), ("", False)],
)
def test_a_hostname_that_is_no_address_is_not_used(hostname: str, is_kept: bool) -> None:
    assert ("HOSTNAME" in launcher.usable_environment({"HOSTNAME": hostname})) is is_kept


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (40, "signal 40")])
def test_every_signal_has_a_name(number: int, name: str) -> None:
    assert launcher._signal_name(number) == name
