"""A step leaves a core to the other rooms, and takes no more than the container has."""

from pathlib import Path

import pytest

from gpu_worker import cgroups as cgroups_module
from gpu_worker.threads import default_threads


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cgroup file system on a machine with 16 cores, all of them usable."""
    monkeypatch.setattr(cgroups_module, "CGROUPS", tmp_path)
    monkeypatch.setattr(cgroups_module, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    return tmp_path


def write_quota(root: Path, text: str) -> None:
    """The process is in the root group, which has this quota (version 2)."""
    (root / "own").write_text("0::/\n")
    (root / "cpu.max").write_text(text)


def test_one_core_is_left_to_the_other_rooms(cgroups: Path) -> None:
    assert list(cgroups.iterdir()) == []
    assert default_threads() == 15


@pytest.mark.parametrize(("num_cores", "expected"), [(1, 1), (2, 1), (3, 2), (8, 7)])
def test_affinity_bounds_them(
    num_cores: int, expected: int, cgroups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(num_cores)))
    assert default_threads() == expected


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 15), ("400000 100000", 3), ("250000 100000", 2), ("50000 100000", 1)],
)
def test_a_quota_of_version_2_bounds_them(quota: str, expected: int, cgroups: Path) -> None:
    write_quota(cgroups, quota)
    assert default_threads() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 15), ("300000", 2)])
def test_a_quota_of_version_1_bounds_them(quota: str, expected: int, cgroups: Path) -> None:
    (cgroups / "own").write_text("3:cpu,cpuacct:/us\n")
    folder = cgroups / "cpu/us"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text("100000")
    assert default_threads() == expected
