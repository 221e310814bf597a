"""Quantised weights on disk: read by whom they are for, bounded, and not removed while in use."""

import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpu_worker.linears import cache_space
from gpu_worker.linears.cache_space import hold, sweep
from gpu_worker.linears.weight_cache import WeightCache, cache_path

DAY = 24 * 3600.0
WEIGHT = torch.randn(3, 4)
PARTS = {"numbers": torch.arange(12, dtype=torch.uint8).view(3, 4), "scales": torch.randn(3)}
HOLDER = """
import sys
from pathlib import Path
from gpu_worker.linears.cache_space import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def name_of(number: int) -> str:
    """As `cache_path` makes them."""
    return f"weights-{number:024x}.safetensors"


def old_file(directory: Path, number: int, *, days: float, num_bytes: int = 10) -> Path:
    """One that was used last so many days ago."""
    path = directory / name_of(number)
    path.write_bytes(bytes(num_bytes))
    moment = time.time() - days * DAY
    os.utime(path, (moment, moment))
    return path


def kept(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def written(path: Path) -> WeightCache:
    """What a server makes that finds nothing."""
    cache = WeightCache(path)
    cache.put("up", WEIGHT, PARTS)
    cache.save()
    return cache


def assert_equal(found: dict[str, torch.Tensor] | None) -> None:
    assert found is not None
    assert found.keys() == PARTS.keys()
    assert all(torch.equal(found[name], part) for name, part in PARTS.items())


@pytest.fixture
def two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_space, "MOST_FILES", 2)


@pytest.fixture
def umask() -> Iterator[None]:
    """By which groups may write what their users make."""
    before = os.umask(0o002)
    yield
    os.umask(before)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def test_what_was_kept_is_found_by_layer_shape_and_dtype(tmp_path: Path) -> None:
    written(tmp_path / name_of(1))
    cache = WeightCache(tmp_path / name_of(1))
    assert_equal(cache.get("up", WEIGHT))
    assert cache.get("u", WEIGHT) is None
    assert cache.get("up", WEIGHT.t()) is None
    assert cache.get("up", WEIGHT.half()) is None
    assert kept(tmp_path) == {name_of(1)}


def test_what_is_new_joins_what_was_there(tmp_path: Path) -> None:
    written(tmp_path / name_of(1))
    cache = WeightCache(tmp_path / name_of(1))
    cache.put("down", WEIGHT, PARTS)
    cache.save()
    joined = WeightCache(tmp_path / name_of(1))
    assert_equal(joined.get("up", WEIGHT))
    assert_equal(joined.get("down", WEIGHT))


@pytest.mark.usefixtures("umask")
def test_it_is_read_again_where_groups_may_write_by_default(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "cache"
    written(directory / name_of(1))
    assert_equal(WeightCache(directory / name_of(1)).get("up", WEIGHT))
    assert "made anew" not in caplog.text


def test_a_broken_file_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / name_of(1)).write_bytes(b"no weights")
    assert WeightCache(tmp_path / name_of(1)).get("up", WEIGHT) is None
    assert "is not used and will be made anew" in caplog.text
    written(tmp_path / name_of(1))
    assert_equal(WeightCache(tmp_path / name_of(1)).get("up", WEIGHT))


def test_a_name_is_as_the_sweeper_knows_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.touch()
    path = cache_path(tmp_path, [checkpoint], "int4")
    assert cache_space._OWN_FILE.fullmatch(path.name)
    assert path != cache_path(tmp_path, [checkpoint], "int8")


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("two_files")
def test_of_too_many_files_the_longest_unused_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for number, days in enumerate((3, 1, 2)):
        old_file(tmp_path, number, days=days)
    written(tmp_path / name_of(9))
    assert kept(tmp_path) == {name_of(9), name_of(1)}
    removed = [text for text in caplog.messages if text.startswith("removed")]
    assert len(removed) == 2
    assert f"{tmp_path / name_of(0)}: 0.0 GiB, unused for 3 days" in removed[1]


def test_files_that_are_too_large_together_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_space, "MOST_BYTES", 100)
    old_file(tmp_path, 1, days=1, num_bytes=60)
    old_file(tmp_path, 2, days=2, num_bytes=60)
    old_file(tmp_path, 3, days=3, num_bytes=40)
    sweep(tmp_path)
    assert kept(tmp_path) == {name_of(1), name_of(3)}


@pytest.mark.usefixtures("two_files")
def test_reading_makes_a_file_new(tmp_path: Path) -> None:
    os.close(hold(old_file(tmp_path, 0, days=9)))
    old_file(tmp_path, 1, days=1)
    old_file(tmp_path, 2, days=2)
    sweep(tmp_path)
    assert kept(tmp_path) == {name_of(0), name_of(1)}


@pytest.mark.usefixtures("two_files")
def test_what_a_server_uses_stays_until_it_ends(tmp_path: Path) -> None:
    used = old_file(tmp_path, 0, days=9)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(used)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        assert server.stdout.readline() == "held\n"
        os.utime(used, (0, 0))
        for number in (1, 2, 3):
            old_file(tmp_path, number, days=number)
        sweep(tmp_path)
        assert kept(tmp_path) == {name_of(0), name_of(1), name_of(2)}
        server.communicate("")
    sweep(tmp_path)
    assert kept(tmp_path) == {name_of(1), name_of(2)}


@pytest.mark.usefixtures("two_files")
def test_servers_that_start_at_once_keep_each_others_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where there is room for one alone, and one writes the other's file once more."""
    monkeypatch.setattr(cache_space, "MOST_FILES", 1)
    caches = [WeightCache(tmp_path / name_of(number)) for number in (1, 2, 2, 3)]
    for cache in caches:
        cache.put("up", WEIGHT, PARTS)
    for cache in caches:
        cache.save()
    assert kept(tmp_path) == {name_of(1), name_of(2), name_of(3)}
    for number in (1, 2, 3):
        assert_equal(WeightCache(tmp_path / name_of(number)).get("up", WEIGHT))


def test_the_newest_stays_however_large_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_space, "MOST_BYTES", 1)
    old_file(tmp_path, 1, days=1)
    written(tmp_path / name_of(2))
    assert kept(tmp_path) == {name_of(2)}


@pytest.mark.usefixtures("two_files")
def test_nothing_else_is_touched(tmp_path: Path) -> None:
    others = {"weights-final.safetensors", "linear-0123.so", "model.safetensors", "tmp1"}
    for name in others:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / name_of(7)).symlink_to(tmp_path / "model.safetensors")
    for number in range(4):
        old_file(tmp_path, number, days=number + 1)
    sweep(tmp_path)
    assert kept(tmp_path) == {*others, name_of(7), name_of(0), name_of(1)}


def test_what_was_left_unfinished_goes_after_a_day(tmp_path: Path) -> None:
    for name, days in (("weights-unfinished-a", 2.0), ("weights-unfinished-b", 0.1)):
        folder = tmp_path / name
        folder.mkdir()
        old_file(folder, 1, days=days)
        moment = time.time() - days * DAY
        os.utime(folder, (moment, moment))
    sweep(tmp_path)
    assert kept(tmp_path) == {"weights-unfinished-b"}


def test_where_files_know_no_locks_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(cache_space, "MOST_FILES", 1)
    old_file(tmp_path, 1, days=1)
    written(tmp_path / name_of(2))
    assert kept(tmp_path) == {name_of(1), name_of(2)}
    assert_equal(WeightCache(tmp_path / name_of(2)).get("up", WEIGHT))


def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    written(tmp_path / "file" / name_of(1))
    assert "quantised weights are not kept in" in caplog.text
