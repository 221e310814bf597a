"""Bytes to a typed request; every mistake of the caller becomes a `BadRequest` with its path. Pure.

Quoted input is cut, so that an error is never much longer than this sentence.
"""

import re
from typing import Any, TypeVar, get_type_hints

import msgspec
import orjson
from msgspec.inspect import (
    ListType,
    LiteralType,
    Metadata,
    StructType,
    Type,
    UnionType,
    type_info,
)

from shared.errors import BadRequest, ErrorCode

_MAX_QUOTED_CHARACTERS = 200
_ROUNDED = -(2.0**63)  # what orjson makes of integers just below 64 bits, which are out of range
_INTEGER_LISTS = 2  # integers stand in lists of lists at most
_MAX_KEY_CHARACTERS = 64
_T = TypeVar("_T")

_MISSING = re.compile(r"^Object missing required field `(.+)`$")
_WRONG_TYPE = re.compile(r"^Expected `(.+)`, got `(.+)`$")
_OUT_OF_RANGE = re.compile(r"^Expected `(.+)` (of length [<>]= .+|[<>]=? .+)$")
_NOT_A_CHOICE = re.compile(r"^Invalid enum value '(.*)'$", re.DOTALL)
_IN_OBJECT = re.compile(r"^(\w+)\[\.\.\.\]$")  # a value of an object whose keys are the caller's
_JSON_NAMES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


def parse_object(body: bytes) -> dict[str, Any]:
    """Returns the top level of a JSON body without its null fields."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            f"We could not parse the JSON body of your request: {_flaw(body, error)}.",
            code=ErrorCode.INVALID_JSON,
        ) from error
    if not isinstance(parsed, dict):
        raise BadRequest(
            "The body of your request is not a JSON object.", code=ErrorCode.INVALID_TYPE
        )
    return {name: value for name, value in parsed.items() if value is not None}


def _flaw(body: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        body.decode()
    except UnicodeDecodeError as bad:
        return f"it is not UTF-8: byte {bad.start} is {body[bad.start]:#04x}"
    return str(error)


def convert(parsed: dict[str, Any], shape: type[_T], *, is_form: bool = False) -> _T:
    """Returns the request in this shape, or raises BadRequest naming the field.

    A whole number is an integer however it is written: JSON does not tell 8.0 from 8. In a form
    numbers and booleans are text.
    """
    try:
        return msgspec.convert(parsed, shape, strict=not is_form)
    except msgspec.ValidationError:
        parsed = {name: _with_integers(value, _INTEGER_LISTS) for name, value in parsed.items()}
    try:
        return msgspec.convert(parsed, shape, strict=not is_form)
    except msgspec.ValidationError as error:
        raise _bad_request(str(error), parsed, shape) from error


def quoted(text: str) -> str:
    """The caller's own text for an error message, cut short."""
    if len(text) <= _MAX_QUOTED_CHARACTERS:
        return f"'{text}'"
    return f"'{text[:_MAX_QUOTED_CHARACTERS]}…'"


def _with_integers(value: Any, depth: int) -> Any:
    """The value with whole numbers as integers, in lists within so many lists."""
    if isinstance(value, float) and value.is_integer() and value != _ROUNDED:
        return int(value)
    if isinstance(value, list) and depth:
        return [_with_integers(item, depth - 1) for item in value]
    return value


def _bad_request(complaint: str, parsed: dict[str, Any], shape: type) -> BadRequest:
    what, path = _split(complaint)
    param = _param(path, parsed, shape)
    if match := _MISSING.match(what):
        param = f"{param}.{match[1]}".lstrip(".")
        sentence = f"Missing required parameter: '{param}'."
        return BadRequest(sentence, param, ErrorCode.MISSING_PARAMETER)
    if match := _WRONG_TYPE.match(what):
        sentence = f"Invalid type for '{param}': expected {_json(match[1])}, got {_json(match[2])}."
        return BadRequest(sentence, param, ErrorCode.INVALID_TYPE)
    if match := _OUT_OF_RANGE.match(what):
        return _out_of_range(param, match[1], match[2])
    if match := _NOT_A_CHOICE.match(what):
        choices = ", ".join(map(repr, _choices(type_info(shape), re.findall(r"[a-z_]+", path))))
        sentence = f"Invalid value for '{param}': {quoted(match[1])} is none of {choices}."
        return BadRequest(sentence, param)
    return BadRequest(f"Invalid value for '{param}': {quoted(what)}.", param)


def _split(complaint: str) -> tuple[str, str]:
    """What is wrong, and the path of the field where it is; "" for the whole body."""
    # The last one: the complaint may quote the caller, who may write such a path too.
    what, mark, path = complaint.rpartition(" - at `$")
    return (what, path.removesuffix("`").lstrip(".")) if mark else (complaint, "")


def _param(path: str, parsed: dict[str, Any], shape: type) -> str:
    """The path as callers write it; of an object with keys of theirs, the first that is wrong."""
    if match := _IN_OBJECT.match(path):
        name = match[1]
        kind = get_type_hints(shape, include_extras=True)[name]
        for key, value in parsed[name].items():
            try:
                msgspec.convert({key: value}, kind)
            except msgspec.ValidationError:
                return f"{name}.{key[:_MAX_KEY_CHARACTERS]}"
    return path.replace("[...]", "")[:_MAX_QUOTED_CHARACTERS]


def _choices(kind: Type, path: list[str]) -> tuple[Any, ...]:
    """The values that the field at this path may have, where they are few; else ()."""
    match kind:
        case LiteralType(values) if not path:
            return values
        case UnionType(types):
            return next(filter(None, (_choices(one, path) for one in types)), ())
        case ListType(item_type=inner) | Metadata(type=inner):
            return _choices(inner, path)
        case StructType(fields=fields):
            named = [field.type for field in fields if field.name == path[0]] if path else []
            return _choices(named[0], path[1:]) if named else ()
        case _:
            return ()


def _out_of_range(param: str, kind: str, limit: str) -> BadRequest:
    if kind == "array" and limit == "of length >= 1":
        sentence = f"Invalid '{param}': the array is empty; expected at least one element."
        return BadRequest(sentence, param, ErrorCode.EMPTY_ARRAY)
    return BadRequest(f"Invalid value for '{param}': expected {_json(kind)} {limit}.", param)


def _json(kinds: str) -> str:
    """Python's names of types as JSON calls them."""
    names = [_JSON_NAMES.get(kind, kind) for kind in kinds.split(" | ")]
    return " or ".join(names)
