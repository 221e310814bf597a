"""The file of `--config`: YAML, of which JSON is a part, with flags by their names."""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from shared.errors import EXIT_CONFIGURATION, FatalError

# Those would be read before the file is, or stand for the file itself.
_NOT_IN_A_FILE = frozenset({"config", "print_config"})


def read_texts(path: str, types: Mapping[str, type]) -> dict[str, str]:
    """The text of every flag in the file, as a command line would give it; FatalError if it errs.

    `types` are the flags by their fields' names. A key without a value is not set.
    """
    texts = {}
    for key, value in _mapping(path).items():
        name = str(key).replace("-", "_")
        if name in texts:
            raise _refusal(path, f"{name} is given twice")
        if name not in types or name in _NOT_IN_A_FILE:
            raise _refusal(path, f"{key} is no flag{_nearest(name, types)}")
        if value is not None:
            texts[name] = _text(value, types[name], f"{path}: {key}")
    return texts


def _mapping(path: str) -> dict[Any, Any]:
    try:
        content = msgspec.yaml.decode(Path(path).read_bytes())
    except OSError as error:
        raise FatalError(f"--config {path}: {error.strerror}", EXIT_CONFIGURATION) from error
    except msgspec.DecodeError as error:
        reason = " ".join(str(error).split())
        raise _refusal(path, f"it is neither YAML nor JSON: {reason}") from error
    if content is None:  # an empty file
        return {}
    if not isinstance(content, dict):
        raise _refusal(path, "it must hold flags and values, such as `port: 7088`")
    return content


def _text(value: object, kind: type, origin: str) -> str:
    if isinstance(value, list):
        return ",".join(_text(item, kind, origin) for item in value)
    if isinstance(value, dict):
        return json.dumps(value)
    if kind is str and not isinstance(value, str):
        # A number would not come out as it was written: 0123 is 83 in YAML.
        raise FatalError(f"{origin}: put the value in quotes", EXIT_CONFIGURATION)
    return str(value)


def _nearest(name: str, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {found[0].replace('_', '-')}?" if found else " (see --help)"


def _refusal(path: str, reason: str) -> FatalError:
    return FatalError(f"--config {path}: {reason}", EXIT_CONFIGURATION)
