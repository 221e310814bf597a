"""What the worker tells the other rooms of its model once it is loaded."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from shared.sampling import DEFAULT_RANGES, is_possible_default

logger = logging.getLogger(__name__)

_FILE = "generation_config.json"


def sampling_defaults(
    path: str, *, use_checkpoint: bool, override: Mapping[str, float]
) -> dict[str, float]:
    """What a request means that does not say, by field of `SamplingParams`.

    It is what the checkpoint's generation_config.json states itself, as in vLLM, not what
    transformers fills in. A value that no request may have is dropped, and the log says so. What
    is in `override` wins; it was checked where the command line is read.
    """
    stated = _stated(path) if use_checkpoint else {}
    defaults: dict[str, float] = {}
    for name in DEFAULT_RANGES.keys() & stated.keys():
        if is_possible_default(name, stated[name]):
            defaults[name] = stated[name]
        elif stated[name] is not None:
            logger.warning("the model's default is not used: %s cannot be %r", name, stated[name])
    return defaults | dict(override)


def _stated(path: str) -> dict[str, Any]:
    """The checkpoint's file; {} without one."""
    try:
        found = cached_file(path, _FILE)
    except OSError:
        return {}
    try:
        stated = json.loads(Path(str(found)).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        logger.warning("%s of the model is not read: %s", _FILE, error)
        return {}
    return stated if isinstance(stated, dict) else {}
