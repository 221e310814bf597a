"""Quantised weights on disk: making them can take minutes, reading them takes a moment.

One file holds all layers of one model under one quantization, as safetensors. Its name changes with
the model's files, the quantization's settings and versions; a file that cannot be read is made
anew, and one that cannot be written is done without, with a line in the log. How many there may be
is in `cache_space`.
"""

import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gpu_worker.cpu_kernels.build import BuildError, refuse_foreign
from gpu_worker.linears.cache_space import folder_for_writing, hold, sweep

logger = logging.getLogger(__name__)

_FORMAT = 1  # changes with what is in the files


class WeightCache:
    """What is known of one model's layers, by the layers' names."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; nothing is no failure. The file is in use until the process ends."""
        self._path = path
        self._new: dict[str, torch.Tensor] = {}
        self._file: Any = None
        self._held: int | None = None  # a descriptor of what is read, by which it is in use
        self._names: dict[str, list[str]] = defaultdict(list)  # in the file, by their `_prefix`
        if not path.is_file():
            return
        try:
            refuse_foreign(path.parent)
            refuse_foreign(path)
            self._held = hold(path)
            self._file = safe_open(path, framework="pt")
        except (OSError, SafetensorError, BuildError) as error:
            logger.warning("%s is not used and will be made anew: %s", path, error)
            return
        names: list[str] = self._file.keys()
        for name in names:
            prefix, colon, _ = name.rpartition(":")
            self._names[prefix + colon].append(name)
        logger.info("quantised weights: read from %s", path)

    def get(self, layer: str, weight: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """The parts, by their names, of a layer's weight of this shape and dtype; or None."""
        prefix = _prefix(layer, weight)
        names = self._names.get(prefix, ())
        return {name.removeprefix(prefix): self._file.get_tensor(name) for name in names} or None

    def put(self, layer: str, weight: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
        """Keeps the parts of a layer's weight for `save`."""
        prefix = _prefix(layer, weight)
        self._new |= {f"{prefix}{name}": part.contiguous() for name, part in parts.items()}

    def save(self) -> None:
        """Writes what is new, together with what was there; readers see the old or the new file.

        Then other files may be too many, and go.
        """
        if not self._new:
            return
        try:
            self._write()
        except (OSError, SafetensorError) as error:
            logger.warning("quantised weights are not kept in %s: %s", self._path, error)
        else:
            logger.info("quantised weights: kept in %s", self._path)
            sweep(self._path.parent)
        self._new = {}

    def _write(self) -> None:
        names = [name for names in self._names.values() for name in names]
        old = {name: self._file.get_tensor(name) for name in names}
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with folder_for_writing(self._path.parent) as folder:
            written = Path(folder) / self._path.name
            save_file(old | self._new, written)
            written.chmod(0o600)  # a usual umask of 002 would let the group write it
            held = hold(written)  # before anybody else sees it
            written.replace(self._path)
        if self._held is not None:
            os.close(self._held)
        self._held = held


def _prefix(layer: str, weight: torch.Tensor) -> str:
    """Of the names of a layer's parts: what they were made of."""
    return f"{layer}:{tuple(weight.shape)}:{weight.dtype}:"


def cache_path(directory: Path, files: Iterable[Path], settings: str) -> Path:
    """Where the weights of a model with these files are kept when quantised with these settings."""
    facts = [str(_FORMAT), settings, torch.__version__, transformers.__version__]
    for file in files:
        status = file.stat()
        facts += [str(file.resolve()), str(status.st_size), str(status.st_mtime_ns)]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    return directory / f"weights-{digest}.safetensors"
