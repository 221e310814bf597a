"""What the worker tells the other rooms of its model once it is loaded."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from shared.errors import EXIT_CONFIGURATION, FatalError
from shared.sampling import MAX_REPETITION_PENALTY, MAX_TEMPERATURE, MIN_REPETITION_PENALTY

logger = logging.getLogger(__name__)

_FILE = "generation_config.json"
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, MAX_TEMPERATURE),
    "top_p": (0.0, 1.0),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
}


def sampling_defaults(
    path: str, *, use_checkpoint: bool, override: Mapping[str, float]
) -> dict[str, float]:
    """What a request means that does not say, by field of `SamplingParams`.

    It is what the checkpoint's generation_config.json states itself, as in vLLM, not what
    transformers fills in. A value that no request may have is dropped there, and the log says so;
    in `override`, which wins, it is a FatalError.
    """
    stated = _stated(path) if use_checkpoint else {}
    defaults: dict[str, float] = {}
    for name in _RANGES.keys() & stated.keys():
        if _is_possible(name, stated[name]):
            defaults[name] = stated[name]
        elif stated[name] is not None:
            logger.warning("the model's default is not used: %s cannot be %r", name, stated[name])
    for name, value in override.items():
        if not _is_possible(name, value):
            reason = f"--override-generation-config: {name} cannot be {value!r}"
            raise FatalError(reason, EXIT_CONFIGURATION)
    return defaults | dict(override)


def _stated(path: str) -> dict[str, Any]:
    """The checkpoint's file; {} without one."""
    try:
        found = cached_file(path, _FILE)
    except OSError:
        return {}
    try:
        stated = json.loads(Path(str(found)).read_text(encoding="utf-8"))
    except ValueError as error:
        logger.warning("%s of the model is not read: %s", _FILE, error)
        return {}
    return stated if isinstance(stated, dict) else {}


def _is_possible(name: str, value: object) -> bool:
    """True for a value that a request may have."""
    if name not in _RANGES or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = _RANGES[name]
    return low <= value <= high and (name != "top_k" or value == int(value))  # NaN is in no range
