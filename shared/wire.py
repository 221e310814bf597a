"""Messages to frames and back: `[tag, orjson body, raw frame…]`. Pure; the only JSON between rooms.

A field of type `bytes` leaves the body and becomes a raw frame, in field order. Whatever does not
fit its class is a `WireError` that names the tag and the field; nothing is ever unpickled.
"""

import dataclasses
from collections.abc import KeysView, Sequence
from typing import Any, get_args

import msgspec
import orjson

from shared.errors import WireError
from shared.messages import Message

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_NO_MEMORY = "Not enough memory"  # how orjson begins where its buffer cannot be had


class Codec:
    """Encodes and decodes a closed set of frozen dataclasses, each tagged by its name."""

    def __init__(self, classes: Sequence[type]) -> None:
        self._classes = {cls.__name__: cls for cls in classes}
        self._body_fields = {cls: _fields(cls, raw=False) for cls in classes}
        self._raw_fields = {cls: _fields(cls, raw=True) for cls in classes}

    def encode(self, message: Any) -> list[bytes]:
        """Returns the frames, or raises WireError for what JSON cannot hold or a receiver take."""
        cls = type(message)
        raw = [getattr(message, name) for name in self._raw_fields[cls]]
        body = {name: getattr(message, name) for name in self._body_fields[cls]} if raw else message
        frames = [cls.__name__.encode(), _dump(cls.__name__, body), *raw]
        num_bytes = sum(map(len, frames))
        if num_bytes > MAX_MESSAGE_BYTES:
            raise WireError(f"{cls.__name__}: {num_bytes} bytes exceed {MAX_MESSAGE_BYTES}")
        return frames

    def decode(self, frames: Sequence[bytes]) -> Any:
        """Returns the message of these frames, or raises WireError."""
        cls = self._class_of(frames)
        names, raw_names = self._body_fields[cls], self._raw_fields[cls]
        if len(frames) != 2 + len(raw_names):
            raise WireError(f"{cls.__name__}: {len(frames)} frames, not {2 + len(raw_names)}")
        body = _parse(cls.__name__, frames[1])
        if body.keys() != names:
            raise WireError(f"{cls.__name__}: wrong fields {sorted(body.keys() ^ names)}")
        body.update(zip(raw_names, frames[2:], strict=True))
        try:
            return msgspec.convert(body, cls, builtin_types=(bytes,))
        except msgspec.ValidationError as error:
            raise WireError(f"{cls.__name__}: {error}") from error

    def _class_of(self, frames: Sequence[bytes]) -> type:
        tag = bytes(frames[0]).decode("ascii", "replace") if frames else ""
        if tag not in self._classes or len(frames) < 2:
            raise WireError(f"unknown message {tag[:40]!r} of {len(frames)} frames")
        return self._classes[tag]


def _fields(cls: type, *, raw: bool) -> KeysView[str]:
    """Names of the fields that travel raw, or of those that do not, in order."""
    return {f.name: None for f in dataclasses.fields(cls) if (f.type is bytes) is raw}.keys()


def _dump(tag: str, body: Any) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise WireError(f"{tag}: body cannot be JSON: {error}") from error


def _parse(tag: str, body: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith(_NO_MEMORY):  # nothing is wrong with the message
            raise MemoryError(f"{tag}: {error.msg}") from error
        raise WireError(f"{tag}: body is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise WireError(f"{tag}: body is not an object")
    return parsed


_CODEC = Codec(get_args(Message))


def encode(message: Message) -> list[bytes]:
    """Returns the frames of one message of the protocol."""
    return _CODEC.encode(message)


def decode(frames: Sequence[bytes]) -> Message:
    """Returns the message of these frames, or raises WireError."""
    message: Message = _CODEC.decode(frames)
    return message


def to_json(value: Any) -> bytes:
    """A dataclass as JSON, for the files that the launcher hands to its rooms."""
    return orjson.dumps(value)
