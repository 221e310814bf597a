"""A container's limit bounds what is free, in both versions of cgroups."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gpu_worker import cgroups as cgroups_module
from gpu_worker.memory import free_bytes

CPU = torch.device("cpu")
AVAILABLE = 10_000


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cgroup file system on a machine with `AVAILABLE` bytes."""
    monkeypatch.setattr(cgroups_module, "CGROUPS", tmp_path)
    monkeypatch.setattr(cgroups_module, "OWN_CGROUPS", tmp_path / "own")
    state = SimpleNamespace(available=AVAILABLE)
    monkeypatch.setattr("psutil.virtual_memory", lambda: state)
    return tmp_path


def write(root: Path, **files: str) -> None:
    """Files of a cgroup; two underscores in a name stand for the dot."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text, encoding="utf-8")


def test_without_cgroups_everything_available_is_free(cgroups: Path) -> None:
    assert list(cgroups.iterdir()) == []
    assert free_bytes(CPU) == AVAILABLE


def test_the_limit_of_version_2_counts_without_the_idle_page_cache(cgroups: Path) -> None:
    write(cgroups, own="0::/system/us\n")
    write(
        cgroups / "system/us",
        memory__max="5000\n",
        memory__current="3000\n",
        memory__stat="anon 2500\ninactive_file 400\nactive_file 100\n",
    )
    assert free_bytes(CPU) == 5000 - 3000 + 400


def test_the_limit_of_version_1_counts_without_the_idle_page_cache(cgroups: Path) -> None:
    write(cgroups, own="9:name=systemd:/\n4:memory:/us\n0::/\n")
    write(
        cgroups / "memory/us",
        memory__limit_in_bytes="5000\n",
        memory__usage_in_bytes="3000\n",
        memory__stat="inactive_file 1\ntotal_inactive_file 400\n",
    )
    assert free_bytes(CPU) == 5000 - 3000 + 400


def test_the_tightest_limit_on_the_way_to_the_root_counts(cgroups: Path) -> None:
    write(cgroups, own="0::/a/b\n")
    write(cgroups / "a/b", memory__max="max\n", memory__current="10\n")
    write(cgroups / "a", memory__max="900\n", memory__current="800\n")
    assert free_bytes(CPU) == 100


def test_a_path_that_the_container_cannot_see_falls_back_to_its_root(cgroups: Path) -> None:
    write(cgroups, own="0::/on/the/host\n", memory__max="700\n", memory__current="100\n")
    assert free_bytes(CPU) == 600


def test_no_limit_is_no_bound(cgroups: Path) -> None:
    write(cgroups, own="0::/\n", memory__max="max\n", memory__current="9999\n")
    assert free_bytes(CPU) == AVAILABLE


def test_use_beyond_the_limit_leaves_nothing(cgroups: Path) -> None:
    write(cgroups, own="0::/\n", memory__max="100\n", memory__current="150\n")
    assert free_bytes(CPU) == 0


def test_this_machine_has_memory() -> None:
    assert free_bytes(CPU) > 2**20
