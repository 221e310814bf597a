"""A form with a file (multipart/form-data, RFC 7578) to its fields. Pure."""

import io
from dataclasses import dataclass, field

from multipart import MultipartError, MultipartParser, parse_options_header

from shared.errors import BadRequest, ErrorCode, RequestError

MAX_PARTS = 64
MAX_FIELD_BYTES = 64 * 1024  # of all fields that are no file


@dataclass
class Form:
    """The fields by name, each with all of its values; a file's value is its content."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def parse_form(body: bytes, content_type: str) -> Form:
    """The form in this body, or RequestError."""
    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary", "")
    if kind != "multipart/form-data" or not boundary:
        sentence = "The body of your request must be sent as multipart/form-data, with the sound"
        raise RequestError(ErrorCode.MEDIA_TYPE, f"{sentence} as the file 'file'.")
    try:
        return _parsed(body, boundary)
    except (MultipartError, UnicodeError, LookupError) as error:
        sentence = "We could not parse the form in the body of your request"
        raise BadRequest(f"{sentence}: {str(error)[:200]}.") from error


def _parsed(body: bytes, boundary: str) -> Form:
    form = Form()
    num_bytes = 0
    parser = MultipartParser(
        io.BytesIO(body),
        boundary,
        len(body),
        part_limit=MAX_PARTS,
        spool_limit=len(body),
        memory_limit=2 * len(body) + 1,
        strict=True,
    )
    for part in parser:
        if part.filename is not None:
            if part.name in form.files:
                raise BadRequest(f"'{part.name[:64]}' is given twice.", part.name[:64])
            form.files[part.name] = part.raw
            continue
        num_bytes += part.size
        if num_bytes > MAX_FIELD_BYTES:
            raise BadRequest(f"'{part.name[:64]}' is too long.", part.name[:64])
        form.fields.setdefault(part.name, []).append(part.value)
    return form
