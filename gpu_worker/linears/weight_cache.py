"""Quantised weights on disk: making them can take minutes, reading them takes a moment.

One file holds all layers of one model under one quantization, as safetensors. Its name changes with
the model's files, the quantization's settings and versions; a file that cannot be read is made
anew, and one that cannot be written is done without, with a line in the log.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gpu_worker.cpu_kernels.build import BuildError, refuse_foreign

logger = logging.getLogger(__name__)

_FORMAT = 1  # changes with what is in the files


class WeightCache:
    """What is known of one model's layers, by the layers' names."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; nothing is no failure."""
        self._path = path
        self._new: dict[str, torch.Tensor] = {}
        self._file: Any = None
        self._names: frozenset[str] = frozenset()
        if not path.is_file():
            return
        try:
            refuse_foreign(path.parent)
            refuse_foreign(path)
            self._file = safe_open(path, framework="pt")
        except (OSError, SafetensorError, BuildError) as error:
            logger.warning("%s is not used and will be made anew: %s", path, error)
            return
        self._names = frozenset(self._file.keys())
        logger.info("quantised weights: read from %s", path)

    def get(self, layer: str, weight: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """The parts, by their names, of a layer's weight of this shape and dtype; or None."""
        prefix = _prefix(layer, weight)
        names = [name for name in self._names if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._file.get_tensor(name) for name in names} or None

    def put(self, layer: str, weight: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
        """Keeps the parts of a layer's weight for `save`."""
        prefix = _prefix(layer, weight)
        self._new |= {f"{prefix}{name}": part.contiguous() for name, part in parts.items()}

    def save(self) -> None:
        """Writes what is new, together with what was there; readers see the old or the new file."""
        if not self._new:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._path.parent) as folder:
                written = Path(folder) / self._path.name
                old = {name: self._file.get_tensor(name) for name in self._names}
                save_file(old | self._new, written)
                written.replace(self._path)
        except (OSError, SafetensorError) as error:
            logger.warning("quantised weights are not kept in %s: %s", self._path, error)
        else:
            logger.info("quantised weights: kept in %s", self._path)
        self._new = {}


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
