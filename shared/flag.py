"""A configuration field that is a command-line flag and an environment variable as well."""

import dataclasses
import math
from typing import Any


def flag(
    default: Any,
    text: str,
    *,
    env: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    at_least: float = -math.inf,
    at_most: float = math.inf,
    unset: str = "",
    is_basic: bool = False,
    is_secret: bool = False,
) -> Any:
    """A dataclass field that is also `--its-name` and the environment variable `ITS_NAME`.

    `env` replaces the variable's name; the first name that is set wins. `aliases` are further
    options, such as `--old-name`, that mean the same. `unset` says what an empty default stands
    for. Basic flags are listed first, and the value of a secret one is never printed.
    """
    metadata = {
        "help": text,
        "env": env,
        "aliases": aliases,
        "choices": choices,
        "range": (at_least, at_most),
        "unset": unset,
        "is_basic": is_basic,
        "is_secret": is_secret,
    }
    return dataclasses.field(default=default, metadata=metadata)


def listed(text: str) -> tuple[str, ...]:
    """The parts of a list that a flag takes, such as `a, b`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
