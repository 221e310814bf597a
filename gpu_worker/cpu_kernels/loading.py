"""Loads native kernels, which are built at the first need, where this machine can run them."""

import ctypes
import logging
import platform
from pathlib import Path

from gpu_worker.cpu_kernels.build import BuildError, Library, build, default_cache_directory

logger = logging.getLogger(__name__)

CPU_INFO = Path("/proc/cpuinfo")


def load_library(
    library: Library, cache_directory: Path | None, purpose: str, without: str
) -> ctypes.CDLL | None:
    """The loaded library, or None where it cannot be; either way one log line says so.

    `purpose` begins the line where it can; else `without`, to which the reason is added.
    """
    try:
        _refuse_machine(library, platform.machine(), CPU_INFO)
        path = build(library, cache_directory or default_cache_directory())
        loaded = ctypes.CDLL(str(path))
    except BuildError as error:
        reason: object = error
    except OSError as error:  # the loader: no OpenMP runtime whose symbols it finds
        reason = f"the built kernels do not load: {error}"
    else:
        logger.info("%s: native kernels, %s", purpose, path)
        return loaded
    logger.warning("%s %s", without, reason)
    return None


def _refuse_machine(library: Library, machine: str, cpu_info: Path) -> None:
    """Raises BuildError unless this processor runs what the kernels are compiled for."""
    if machine.lower() not in ("x86_64", "amd64"):
        raise BuildError(f"the kernels are for x86-64 and this machine is {machine}")
    try:
        lines = cpu_info.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BuildError(f"the processor's abilities are unknown: {error}") from error
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    if missing := [flag for flag in library.cpu_flags if flag not in flags]:
        raise BuildError(f"the processor has no {missing[0]}")
