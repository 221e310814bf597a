"""Building the kernels: once, safely, or not at all with one line that says why."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch

from gpu_worker.attention.cpu_paged import choose_cpu_backend
from gpu_worker.cpu_kernels import build as building
from gpu_worker.cpu_kernels import loading
from gpu_worker.cpu_kernels.attention import load_kernels
from gpu_worker.cpu_kernels.build import (
    INT4_LINEAR,
    LINEAR,
    PAGED_ATTENTION,
    BuildError,
    Library,
)
from gpu_worker.cpu_kernels.loading import load_library
from tests.gpu_worker.native import kernels
from tests.gpu_worker.paged_steps import Shape

SHAPE = Shape(9, 3, 64, 64)


BROKEN = pytest.mark.usefixtures("_broken_compiler")


@pytest.fixture
def _broken_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A compiler that says its version, and fails at everything else."""
    compiler = tmp_path / "broken-g++"
    compiler.write_text('#!/bin/sh\ntest "$1" = --version && exit 0\necho boom >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda _: str(compiler))
    monkeypatch.setattr(loading, "CPU_INFO", able_cpu(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def able_cpu(folder: Path, *missing: str) -> Path:
    """A list of a processor's abilities, without these."""
    info = folder / "cpuinfo"
    info.write_text(
        "flags : fpu " + " ".join(f for f in PAGED_ATTENTION.cpu_flags if f not in missing) + "\n"
    )
    return info


def refusal(cache: Path | None, caplog: pytest.LogCaptureFixture) -> str:
    """The one line that is logged when there will be no kernels."""
    with caplog.at_level(logging.INFO):
        assert load_kernels(cache) is None
    (record,) = (r for r in caplog.records if r.name == loading.__name__)
    assert "plain torch" in record.getMessage()
    return record.getMessage()


def test_the_kernels_of_this_machine_load_from_the_cache_without_a_compiler_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels()

    def compile_again(library: Library, compiler: str, path: Path) -> None:
        raise AssertionError((library, compiler, path))

    monkeypatch.setattr(building, "_compile", compile_again)
    with caplog.at_level(logging.INFO):
        assert load_kernels() is not None
    (record,) = (r for r in caplog.records if r.name == loading.__name__)
    assert "native kernels" in record.getMessage()


@BROKEN
def test_without_a_compiler_plain_torch_is_taken(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert "no C++ compiler" in refusal(tmp_path, caplog)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert choose_cpu_backend(SHAPE.geometry(), [9], 8, tmp_path) is None
    assert len(caplog.records) == 1


@BROKEN
def test_a_failed_build_says_what_the_compiler_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    assert "boom" in refusal(cache, caplog)
    assert not list(cache.iterdir())


@BROKEN
def test_a_failed_build_shows_the_error_and_not_the_caret_under_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = tmp_path / "said"
    said.write_bytes(
        b"In file included from b\xe9ta.h:1,\n                 from a.cpp:2:\n"
        b"a.cpp:3:4: fatal error: omp.h: No such file\n    3 | #include <omp.h>\n      |    ^~~~\n"
    )
    compiler = tmp_path / "broken-g++"
    compiler.write_text(f'#!/bin/sh\ntest "$1" = --version && exit 0\ncat {said} >&2\nexit 1\n')
    assert refusal(tmp_path / "cache", caplog).endswith("fatal error: omp.h: No such file")


@BROKEN
def test_without_a_home_directory_plain_torch_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_such_user(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", no_such_user)
    assert "no home directory" in refusal(None, caplog)


def test_what_a_group_writable_umask_makes_is_loaded(tmp_path: Path) -> None:
    kernels()
    before = os.umask(0o002)
    try:
        assert load_library(INT4_LINEAR, tmp_path / "cache", "", "") is not None
    finally:
        os.umask(before)


@BROKEN
@pytest.mark.parametrize("missing", PAGED_ATTENTION.cpu_flags)
def test_a_processor_without_the_instructions_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    missing: str,
) -> None:
    monkeypatch.setattr(loading, "CPU_INFO", able_cpu(tmp_path, missing))
    assert f"no {missing}" in refusal(tmp_path, caplog)


@BROKEN
def test_another_kind_of_processor_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "aarch64" in refusal(tmp_path, caplog)


@BROKEN
def test_a_cache_folder_that_cannot_be_made_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be used" in refusal(tmp_path / "file" / "cache", caplog)


def built(cache: Path) -> Path:
    """The attention kernels' library in this cache."""
    return building.build(PAGED_ATTENTION, cache)


def compiled(monkeypatch: pytest.MonkeyPatch, content: bytes = b"library") -> None:
    """Lets every compilation succeed at once."""
    monkeypatch.setattr(building, "_compile", lambda _, __, path: path.write_bytes(content))


@BROKEN
def test_a_library_that_does_not_load_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    compiled(monkeypatch, b"no library at all")
    assert "do not load" in refusal(tmp_path / "cache", caplog)


@BROKEN
def test_a_cache_that_others_can_write_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled(monkeypatch)
    cache = tmp_path / "cache"
    library = built(cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    for path, mode in ((cache, 0o777), (cache, 0o770), (library, 0o666), (library, 0o664)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(BuildError, match="other users"):
            built(cache)
        path.chmod(before)
    assert built(cache) == library


@BROKEN
def test_a_cache_of_another_user_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled(monkeypatch)
    built(tmp_path / "cache")
    me = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: me + 1)
    with pytest.raises(BuildError, match="belongs to another user"):
        built(tmp_path / "cache")


@BROKEN
def test_each_library_has_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled(monkeypatch)
    paths = [building.build(library, tmp_path) for library in (PAGED_ATTENTION, LINEAR)]
    assert [path.name.partition("-")[0] for path in paths] == ["paged_attention", "linear"]


@BROKEN
def test_the_library_is_built_anew_for_another_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled(monkeypatch)
    first = built(tmp_path / "cache")
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert built(tmp_path / "cache") != first


@BROKEN
def test_builders_at_the_same_time_all_end_with_one_whole_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    everybody = Barrier(4, timeout=30)

    def compile_together(library: Library, compiler: str, path: Path) -> None:
        path.write_bytes(b"half a ")
        everybody.wait()
        path.write_bytes(b"half a library")

    monkeypatch.setattr(building, "_compile", compile_together)
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(4) as pool:
        libraries = set(pool.map(built, [cache] * 4))
    (library,) = libraries
    assert library.read_bytes() == b"half a library"
    assert list(cache.iterdir()) == [library]


def test_a_model_that_the_kernels_cannot_serve_gets_plain_torch_and_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for dtype, num_heads in ((torch.float64, 9), (torch.float32, 8)):
        caplog.clear()
        assert choose_cpu_backend(SHAPE.geometry(dtype), [num_heads], 8) is None
        assert len(caplog.records) == 1
