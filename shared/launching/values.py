"""From the text of a flag to its value, or a FatalError that names where the text was given."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from shared.errors import EXIT_CONFIGURATION, FatalError
from shared.flag import listed
from shared.sampling import DEFAULT_RANGES, WHOLE_NUMBERS, is_possible_default

_TRUE = frozenset({"1", "true", "yes", "on", "enabled"})
_FALSE = frozenset({"0", "false", "no", "off", "disabled"})
_MAX_SHOWN = 100  # characters of a bad value that an error repeats


def convert(field: dataclasses.Field[Any], text: str, origin: str) -> Any:
    """The value of this flag; `origin` is the flag, variable or key that the text was given to."""
    _check_characters(origin, text)
    choices = {choice.lower(): choice for choice in field.metadata["choices"]}
    if choices and text.lower() not in choices:
        raise refusal(origin, text, f"one of {', '.join(choices.values())}")
    if choices:
        return choices[text.lower()]
    if field.type is bool:
        return _boolean(origin, text)
    if field.type is not str:
        return _number(field, text, origin)
    if text and field.name in _CHECKS:
        _CHECKS[field.name](origin, text)
    return text


def refusal(origin: str, text: str, expected: str) -> FatalError:
    """The error about a text that is not what is expected there."""
    shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
    return FatalError(f"{origin}: {shown!r} is not {expected}", EXIT_CONFIGURATION)


def _check_characters(origin: str, text: str) -> None:
    """Refuses what neither the system's calls nor the rooms' JSON take; not shown, as secrets."""
    if "\0" in text:
        raise FatalError(f"{origin}: it holds a NUL character; leave it out", EXIT_CONFIGURATION)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FatalError(f"{origin}: it is no UTF-8 text", EXIT_CONFIGURATION) from error


def _number(field: dataclasses.Field[Any], text: str, origin: str) -> int | float:
    kind = "a whole number" if field.type is int else "a number"
    try:
        value: int | float = field.type(text)  # type: ignore[operator]  # int or float
    except ValueError as error:
        raise refusal(origin, text, kind) from error
    lowest, highest = field.metadata["range"]
    if isinstance(value, float) and not math.isfinite(value):
        raise refusal(origin, text, kind)
    if not lowest <= value <= highest:
        raise refusal(origin, text, f"{kind} {_bounds(lowest, highest)}")
    return value


def _boolean(origin: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise refusal(origin, text, "true or false")


def _bounds(lowest: float, highest: float) -> str:
    return f"from {lowest}" + (f" to {highest}" if math.isfinite(highest) else "")


def _check_names(origin: str, text: str) -> None:
    if not all(part.strip() for part in text.split(",")):
        # Not shown: it may be a secret.
        raise FatalError(f"{origin}: a name between the commas is empty", EXIT_CONFIGURATION)


def _check_origins(origin: str, text: str) -> None:
    for part in listed(text):
        has_scheme = part.startswith(("http://", "https://"))
        if part != "*" and (not has_scheme or part.count("/") != 2):
            raise refusal(origin, part, "`*` or an origin such as https://chat.example.com")


def _check_sampling(origin: str, text: str) -> None:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refusal(origin, text, 'a JSON object such as {"temperature": 0.7}') from error
    if not isinstance(given, dict):
        raise refusal(origin, text, 'a JSON object such as {"temperature": 0.7}')
    for name, value in given.items():
        _check_sampling_field(f"{origin}: {name}", name, value)


def _check_sampling_field(origin: str, name: str, value: object) -> None:
    if name not in DEFAULT_RANGES:
        allowed = ", ".join(DEFAULT_RANGES)
        raise FatalError(f"{origin} cannot be set; only {allowed} can", EXIT_CONFIGURATION)
    if not is_possible_default(name, value):
        kind = "a whole number" if name in WHOLE_NUMBERS else "a number"
        raise refusal(origin, json.dumps(value), f"{kind} {_bounds(*DEFAULT_RANGES[name])}")


# What texts must hold beyond being text.
_CHECKS: Mapping[str, Callable[[str, str], None]] = {
    "api_key": _check_names,
    "served_model_name": _check_names,
    "cors_origins": _check_origins,
    "override_generation_config": _check_sampling,
}
