"""Compiles the kernels with this machine's compiler, once: the result is kept in a cache folder.

A cached file is loaded into the process as code, so it must lie where nobody else could put one.
"""

import hashlib
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
HEADERS = tuple(sorted(FOLDER.glob("*.h")))
COMPILERS = ("g++", "c++")
# Without contraction, so that a sum is rounded alike wherever the compiler has unrolled it.
COMPILE_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=off")
COMPILE_SECONDS = 300.0
_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c")


@dataclass(frozen=True)
class Library:
    """What is compiled together: the file of this name, and the headers."""

    name: str
    # What the intrinsics need, and no more: the library runs on every machine that has these. Named
    # as in /proc/cpuinfo.
    cpu_flags: tuple[str, ...]

    @property
    def source(self) -> Path:
        """The C++ file."""
        return FOLDER / f"{self.name}.cpp"

    @property
    def compile_flags(self) -> tuple[str, ...]:
        """What the compiler is told."""
        return (*COMPILE_FLAGS, *(f"-m{flag.replace('_', '')}" for flag in self.cpu_flags))


PAGED_ATTENTION = Library("paged_attention", _AVX512)
LINEAR = Library("linear", (*_AVX512, "avx512_vnni"))
INT4_LINEAR = Library("int4_linear", (*_AVX512, "avx512_vnni"))


class BuildError(Exception):
    """There will be no kernels here; the message says why."""


def default_cache_directory() -> Path:
    """Where kernels are kept; BuildError for a user without a home directory."""
    try:
        home = Path.home()
    except RuntimeError as error:  # no HOME, and no entry in the list of users
        raise BuildError("there is no home directory to keep them in") from error
    return home / ".cache" / "transformers-openai-api"


def build(library: Library, cache_directory: Path) -> Path:
    """Returns the shared library, compiled unless the cache holds it; or raises BuildError.

    Any number of processes may build at once: each compiles in a folder of its own, and the last
    one's file stays.
    """
    compiler = _find_compiler()
    try:
        cache_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = cache_directory / f"{library.name}-{_key(library, compiler)}.so"
        refuse_foreign(cache_directory)
        if not path.exists():
            logger.info("compiling the CPU kernels, once for this machine, into %s", path)
            with tempfile.TemporaryDirectory(dir=cache_directory) as folder:
                _compile(library, compiler, Path(folder) / path.name)
                (Path(folder) / path.name).replace(path)
        refuse_foreign(path)
    except OSError as error:
        raise BuildError(f"the cache folder {cache_directory} cannot be used: {error}") from error
    return path


def _find_compiler() -> str:
    for name in COMPILERS:
        if path := shutil.which(name):
            return path
    raise BuildError(f"no C++ compiler is installed ({' or '.join(COMPILERS)})")


def _key(library: Library, compiler: str) -> str:
    """Changes with everything that the library is made from and made for."""
    version = _run([compiler, "--version"]).partition("\n")[0]
    digest = hashlib.sha256()
    for part in (version, torch.__version__, *library.compile_flags):
        digest.update(part.encode() + b"\0")
    for source in (library.source, *HEADERS):
        digest.update(source.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def _compile(library: Library, compiler: str, path: Path) -> None:
    """Leaves OpenMP unresolved: the library must share the threads of torch's own runtime."""
    unit = path.with_suffix(".o")
    source = str(library.source)
    _run([compiler, *library.compile_flags, "-w", "-c", source, "-o", str(unit)])
    _run([compiler, "-shared", str(unit), "-o", str(path)])
    path.chmod(0o700)  # a usual umask of 002 would let the group write it


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603  # a compiler found on the PATH, and our own files
            command,
            capture_output=True,
            text=True,
            errors="replace",  # it may quote a path of any bytes
            check=True,
            timeout=COMPILE_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{command[0]} failed: {_complaint(error.stderr)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} failed: {error}") from error
    return done.stdout


def _complaint(output: str) -> str:
    """The first line that speaks of an error: after it compilers quote the source."""
    lines = output.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error" in line), lines[-1]).strip()


def refuse_foreign(path: Path) -> None:
    """Raises BuildError for what others own or may write: it could hold anything."""
    status = path.stat()
    if status.st_uid != os.getuid():
        raise BuildError(f"{path} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(f"{path} can be written by other users")
