"""How a form says where a long sound is cut: `chunking_strategy`, a name or an object. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from shared.errors import BadRequest, ErrorCode

NAME = "chunking_strategy"
_NOTHING = frozenset({"", "null"})
_MAX_NAMES, _MAX_NAME_CHARACTERS = 4, 64  # that an error quotes


def chunking_strategy(fields: Mapping[str, Sequence[str]]) -> Any:
    """What these fields of a form say of it, as JSON would; None: nothing.

    An object is one field of JSON text, or a field a member, such as `chunking_strategy[type]`.
    Raises BadRequest for a member that asks for what this server cannot do.
    """
    members = {
        name.removeprefix(f"{NAME}[").removesuffix("]"): values[-1]
        for name, values in fields.items()
        if name.startswith(f"{NAME}[")
    }
    told = members or _parsed(fields[NAME][-1] if NAME in fields else "")
    return _kind_alone(told) if isinstance(told, dict) else told


def _parsed(text: str) -> Any:
    text = text.strip()
    if text in _NOTHING:
        return None
    if not text.startswith("{"):
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"'{NAME}' is no JSON object: {error}.", NAME) from error


def _kind_alone(told: Mapping[str, Any]) -> dict[str, Any]:
    """The object without its empty members; only `type` may be left."""
    given = {name: value for name, value in told.items() if value not in (None, *_NOTHING)}
    names = [name[:_MAX_NAME_CHARACTERS] for name in given if name != "type"][:_MAX_NAMES]
    if names:
        named = ", ".join(f"'{name}'" for name in names)
        sentence = f"'{NAME}' with {named} is not supported by this server"
        raise BadRequest(
            f"{sentence}: a sound is cut where it is quietest.",
            f"{NAME}.{names[0]}",
            ErrorCode.UNSUPPORTED_PARAMETER,
        )
    return given
