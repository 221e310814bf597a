"""The file of `--config`: YAML, of which JSON is a part, with flags by their names."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shared.errors import EXIT_CONFIGURATION, FatalError

# Those would be read before the file is, or stand for the file itself.
_NOT_IN_A_FILE = frozenset({"config", "print_config"})
_JSON_FLAG = "override_generation_config"  # the one whose value may be a mapping
_MAX_BYTES = 2**20
_MAX_DEPTH = 2  # the flags, and a list or mapping as the value of one
_YAML = "tag:yaml.org,2002:"
_NUMBERS = frozenset({f"{_YAML}int", f"{_YAML}float"})
_PLAIN = _NUMBERS | {f"{_YAML}bool", f"{_YAML}str"}

Node = Any  # of yaml, which has no types: its `id` is its kind, its `value` what was written


def read_texts(path: str, types: Mapping[str, type], *, giver: str) -> dict[str, str]:
    """The text of every flag in the file, as a command line would give it; FatalError if it errs.

    `types` are the flags by their fields' names; `giver` is the flag or variable that named the
    file. A key without a value is not set.
    """
    source = f"{giver} {path}"
    texts, seen = {}, set()
    for key, value in _entries(_document(path, source), source):
        name = key.replace("-", "_")
        if name in seen:
            raise _refusal(source, f"{key} is given twice")
        if name not in types or name in _NOT_IN_A_FILE:
            raise _refusal(source, f"{key} is no flag{_nearest(name, types)}")
        seen.add(name)
        if value.tag != f"{_YAML}null":
            texts[name] = _text(value, name, types[name], f"{path}: {key}")
    return texts


def _document(path: str, source: str) -> Node:
    """What the file holds, as yaml's nodes: they keep every key, and the text of every value."""
    import yaml  # noqa: PLC0415 — without a file nobody needs it, and `--help` is to be quick

    try:
        content = _read(path, source)
        depth = 0
        for event in yaml.parse(content, Loader=yaml.CSafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:  # before it is composed: that recurses, and in C
                raise _refusal(source, "a value is nested too deeply")
        return yaml.compose(content, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise _refusal(source, f"it is neither YAML nor JSON: {reason}") from error


def _read(path: str, source: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(source, str(error.strerror)) from error
    if len(content) > _MAX_BYTES:
        raise _refusal(source, f"it has more than {_MAX_BYTES} bytes; is it a file of flags?")
    return content


def _entries(mapping: Node, source: str) -> Iterator[tuple[str, Node]]:
    """Keys and values in the order of the file; of an empty file none."""
    if mapping is None or mapping.tag == f"{_YAML}null":
        return
    if mapping.id != "mapping":
        raise _refusal(source, "it must hold flags and values, such as `port: 7088`")
    for key, value in mapping.value:
        if key.id != "scalar":
            raise _refusal(source, "a key must be the name of a flag")
        yield key.value, value


def _text(node: Node, name: str, kind: type, origin: str) -> str:
    if node.id == "scalar":
        return _scalar(node, kind, origin)
    if node.id == "mapping" and name == _JSON_FLAG:
        return json.dumps(_numbers(node, origin))
    if node.id == "sequence" and all(item.id == "scalar" for item in node.value):
        return ",".join(_scalar(item, kind, origin) for item in node.value)
    raise _refusal(origin, "give a text, a number, true or false, or a list of texts")


def _scalar(node: Node, kind: type, origin: str) -> str:
    if node.tag not in _PLAIN or (kind is str and node.tag != f"{_YAML}str"):
        # What YAML takes for a number or a date may have been meant as a name.
        raise _refusal(origin, "put the value in quotes")
    return str(node.value)


def _numbers(mapping: Node, origin: str) -> dict[str, Any]:
    """A mapping of numbers; what is none stays text, which the flag's own check refuses."""
    numbers: dict[str, Any] = {}
    for key, node in _entries(mapping, origin):
        if key in numbers:
            raise _refusal(origin, f"{key} is given twice")
        if node.id != "scalar":
            raise _refusal(f"{origin}: {key}", "give a number")
        numbers[key] = _number(node)
    return numbers


def _number(node: Node) -> int | float | str:
    for kind in (int, float) if node.tag in _NUMBERS else ():
        with suppress(ValueError):
            return kind(node.value)
    return str(node.value)


def _nearest(name: str, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {found[0].replace('_', '-')}?" if found else " (see --help)"


def _refusal(origin: str, reason: str) -> FatalError:
    return FatalError(f"{origin}: {reason}", EXIT_CONFIGURATION)
