"""The run directory: private, held by one server, and cleared of nothing but its own."""

import tempfile
from pathlib import Path

import pytest

from shared.errors import EXIT_CONFIGURATION, FatalError
from shared.launching.run_directory import open_run_directory, write_private


def refusal(path: Path | str) -> FatalError:
    """How a run directory is refused."""
    with pytest.raises(FatalError, match="--run-directory") as caught:
        open_run_directory(str(path), 1, {})
    assert caught.value.exit_status == EXIT_CONFIGURATION
    return caught.value


def test_a_run_directory_is_private_and_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert open_run_directory(str(path), 1, {}) == str(path)
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
    open_run_directory(str(path), 1, {})
    assert sorted(entry.name for entry in path.iterdir()) == ["diary.txt", "lock"]


def test_a_private_file_is_new_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "frontend-0.1.json"
    write_private(path, b"{}")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"{}", 0o600)
    with pytest.raises(FileExistsError):
        write_private(path, b"")


def test_the_default_directory_depends_on_the_port() -> None:
    with tempfile.TemporaryDirectory() as short:  # as pytest's own is too long for sockets
        paths = {open_run_directory("", n, {"XDG_RUNTIME_DIR": short}) for n in (7, 8)}
        assert len(paths) == 2
