"""A form with a sound becomes a request, or a sentence that names the field."""

import contextlib
from typing import Any

import pytest

from frontend.forms import MAX_FIELD_BYTES, MAX_PARTS, Form, parse_form
from frontend.schemas import SoundRequest
from frontend.sheet import Sheet
from frontend.sound_budget import (
    MAX_HELD_BYTES,
    MAX_SOUND_BYTES,
    SoundBudget,
    upload_bytes,
)
from frontend.sound_fields import TRANSCRIBE, TRANSLATE, SoundAsk, sound
from shared.errors import BadRequest, ErrorCode, RequestError
from shared.parts import TranscriptOptions
from tests.frontend.test_translate import MODEL

FORM = "multipart/form-data; boundary=xyz"
LADDER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of Whisper's reference
VERBOSE = {"response_format": "verbose_json"}


def ask(task: str = TRANSCRIBE, **fields: Any) -> SoundAsk:
    values = {name: v if isinstance(v, list) else [v] for name, v in fields.items()}
    return sound(Form(values, {"file": b"RIFF"}), MODEL, task, random_seed=5)


def test_what_is_left_out_is_openais_default() -> None:
    found = ask()
    assert found.wanted.audio == b"RIFF"
    assert found.wanted.options == TranscriptOptions(temperatures=LADDER)
    assert found.granularities == {"segment"}
    assert (found.wanted.sampling.temperature, found.wanted.sampling.seed) == (0.0, 0)
    assert (found.response_format, found.stream, found.has_logprobs) == ("json", False, False)


# What is sent, where in the request it is seen, and what is seen.
OBEYED: list[tuple[dict[str, Any], str, object]] = [
    ({"language": "EN"}, "wanted.options.language", "EN"),
    ({"language": ""}, "wanted.options.language", None),
    ({"language": "null"}, "wanted.options.language", None),
    ({"prompt": "Names: Zoë"}, "wanted.options.prompt", "Names: Zoë"),
    ({"temperature": "0.4"}, "wanted.sampling.temperature", 0.4),
    ({"top_k": "50"}, "wanted.sampling.top_k", 50),
    ({"top_p": "0.9"}, "wanted.sampling.top_p", 0.9),
    ({"repetition_penalty": "1.2"}, "wanted.sampling.repetition_penalty", 1.2),
    ({"seed": "11"}, "wanted.sampling.seed", 11),
    ({"temperature": "0.3"}, "wanted.sampling.seed", 5),
    ({"stream": "true"}, "stream", True),
    ({"stream": "1"}, "stream", True),
    ({"response_format": "srt"}, "response_format", "srt"),
    ({"include[]": ["logprobs"]}, "has_logprobs", True),
    ({"chunking_strategy": "auto"}, "wanted.options.is_sequential", False),
    ({"chunking_strategy": ""}, "wanted.options.is_sequential", False),
    ({"chunking_strategy": '{"type": "server_vad", "threshold": null}'},
     "wanted.options.is_sequential", False),
    ({"chunking_strategy[type]": "server_vad"}, "wanted.options.is_sequential", False),
    ({"chunking_strategy": "sequential"}, "wanted.options.is_sequential", True),
    ({"temperature": "0.5"}, "wanted.options.temperatures", (0.5,)),
    ({"temperature": "1.5", "temperature_inc": "0.2"}, "wanted.options.temperatures", (1.5,)),
    ({"temperature": "0.3", "temperature_inc": "0.3"}, "wanted.options.temperatures",
     (0.3, 0.6, 0.9)),
    ({"temperature_inc": "0"}, "wanted.options.temperatures", (0.0,)),
    ({"temperature_inc": "0.5"}, "wanted.options.temperatures", (0.0, 0.5, 1.0)),
    (VERBOSE, "wanted.options.times_words", False),
    ({**VERBOSE, "timestamp_granularities[]": ["segment"]}, "granularities", {"segment"}),
    ({**VERBOSE, "timestamp_granularities[]": ["word"]}, "granularities", {"word"}),
    ({**VERBOSE, "timestamp_granularities": ["word"]}, "wanted.options.times_words", True),
    ({**VERBOSE, "timestamp_granularities": ["word", "segment"]}, "granularities",
     {"word", "segment"}),
    ({**VERBOSE, "timestamp_granularities": ["word, segment"]}, "granularities",
     {"word", "segment"}),
    ({**VERBOSE, "timestamp_granularities[]": [""]}, "granularities", {"segment"}),
    ({"foo": "1", "user": "u"}, "ignored_fields", "foo"),
    ({"min_p": "0.0", "frequency_penalty": "0.0"}, "ignored_fields", ""),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "path", "value"), OBEYED)
def test_fields_are_obeyed(fields: dict[str, Any], path: str, value: object) -> None:
    found: Any = ask(**fields)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_every_field_is_obeyed() -> None:
    """As in `test_every_field.py`; `model` alone only has to be right."""
    names = {name.partition("[")[0] for fields, *_ in OBEYED for name in fields}
    assert set(SoundRequest.__struct_fields__) <= names | {"model"}


def test_a_translation_may_be_told_what_language_is_spoken() -> None:
    found = ask(TRANSLATE, language="fr")
    assert found.wanted.options == TranscriptOptions("translate", "fr", temperatures=LADDER)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "xml"}, "response_format"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "-1"}, "temperature"),
        ({"stream": "maybe"}, "stream"),
        ({"temperature": ["0.0", "0.2"]}, "temperature"),
        ({"temperature": "[0.0, 0.2]"}, "temperature"),
        ({"temperature": "0.0,0.2"}, "temperature"),
        ({"temperature[]": "0.0"}, "temperature"),
        ({"temperature_inc": "-0.2"}, "temperature_inc"),
        ({"temperature_inc": "1.1"}, "temperature_inc"),
        ({"temperature_inc": "0.001"}, "temperature_inc"),
        ({"timestamp_granularities[]": ["word"]}, "timestamp_granularities"),
        ({"timestamp_granularities": ["segment"]}, "timestamp_granularities"),
        ({"timestamp_granularities[]": ["line"]}, "timestamp_granularities[0]"),
        ({"include[]": ["logprobs"], "response_format": "text"}, "include"),
        ({"chunking_strategy": "server_vad"}, "chunking_strategy"),
        ({"chunking_strategy": '{"type": "server_vad"'}, "chunking_strategy"),
        ({"chunking_strategy": '{"type": "other"}'}, "chunking_strategy.type"),
        ({"chunking_strategy[threshold]": "0.5"}, "chunking_strategy.threshold"),
        ({"chunking_strategy": '{"type": "server_vad", "prefix_padding_ms": 300}'},
         "chunking_strategy.prefix_padding_ms"),
        ({"chunking_strategy[type]": "server_vad", "chunking_strategy[silence_duration_ms]": "9"},
         "chunking_strategy.silence_duration_ms"),
        ({"include[]": ["logprobs"], "stream": "true"}, "include"),
        ({"stream": "true", "response_format": "verbose_json"}, "response_format"),
        ({"keywords": "a"}, "keywords"),
        ({"model": "other"}, "model"),
    ],
)  # fmt: skip
def test_what_cannot_be_obeyed_is_refused_by_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        ask(**fields)
    assert caught.value.param == param


def test_all_refused_members_of_a_strategy_are_named() -> None:
    told = '{"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 9}'
    with pytest.raises(BadRequest, match="'threshold', 'silence_duration_ms'"):
        ask(chunking_strategy=told)


def test_a_list_of_temperatures_is_told_what_to_say_instead() -> None:
    with pytest.raises(BadRequest, match="'temperature_inc'"):
        ask(temperature="[0, 0.2]")


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    tail = "" if filename is None else f'; filename="{filename}"'
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"{tail}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--xyz--\r\n"


def test_a_form_has_fields_and_files() -> None:
    data = bytes(range(256)) * 10
    form = parse_form(
        body(
            part("model", b"whisper"),
            part("timestamp_granularities[]", b"segment"),
            part("timestamp_granularities[]", b"word"),
            part("file", data, "blob"),
            part("prompt", "Zoë".encode()),
        ),
        FORM,
    )
    assert form.fields == {
        "model": ["whisper"],
        "timestamp_granularities[]": ["segment", "word"],
        "prompt": ["Zoë"],
    }
    assert form.files == {"file": data}


@pytest.mark.parametrize(
    ("data", "content_type", "code"),
    [
        (b"{}", "application/json", ErrorCode.MEDIA_TYPE),
        (b"", "", ErrorCode.MEDIA_TYPE),
        (b"x", "multipart/form-data", ErrorCode.MEDIA_TYPE),
        (b"nonsense", FORM, ErrorCode.INVALID_VALUE),
        (b"", FORM, ErrorCode.INVALID_VALUE),
        (body(part("file", b"x", "a"))[:-10], FORM, ErrorCode.INVALID_VALUE),
        (body(*[part(f"f{n}", b"x") for n in range(MAX_PARTS + 1)]), FORM, ErrorCode.INVALID_VALUE),
        (body(part("prompt", b"x" * (MAX_FIELD_BYTES + 1))), FORM, ErrorCode.INVALID_VALUE),
        (body(part("prompt", b"\xff\xfe")), FORM, ErrorCode.INVALID_VALUE),
        (body(part("file", b"x", "a"), part("file", b"y", "b")), FORM, ErrorCode.INVALID_VALUE),
        (b"--" + b"y" * 10_000, "multipart/form-data; boundary=" + "y" * 10_000,
         ErrorCode.INVALID_VALUE),
    ],
)  # fmt: skip
def test_what_is_no_form_is_refused(data: bytes, content_type: str, code: ErrorCode) -> None:
    with pytest.raises(RequestError) as caught:
        parse_form(data, content_type)
    assert caught.value.code == code


def test_a_field_must_not_be_a_file() -> None:
    with pytest.raises(BadRequest, match="must be a text") as caught:
        sound(Form({}, {"file": b"RIFF", "language": b"de"}), MODEL, TRANSCRIBE, 1)
    assert caught.value.param == "language"


def test_a_charset_that_cannot_be_read_is_refused() -> None:
    head = 'Content-Disposition: form-data; name="prompt"\r\nContent-Type: text/plain; charset='
    for charset in ("undefined", "no-such-one"):
        data = f"--xyz\r\n{head}{charset}\r\n\r\na\r\n--xyz--\r\n".encode()
        with pytest.raises(BadRequest):
            parse_form(data, FORM)


def test_no_more_sound_is_held_than_the_budget() -> None:
    budget = SoundBudget(Sheet.private())
    assert upload_bytes("1000") == 1000
    assert upload_bytes(None) == upload_bytes("x") == upload_bytes("9" * 30) == MAX_SOUND_BYTES
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_HELD_BYTES // MAX_SOUND_BYTES):
            stack.enter_context(budget.hold(MAX_SOUND_BYTES))
        with pytest.raises(RequestError) as caught, budget.hold(1):
            pass
        assert caught.value.code == ErrorCode.QUEUE_FULL
    assert budget.num_bytes == 0


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (Form({}, {}), "Missing required parameter: 'file'"),
        (Form({"file": ["RIFF"]}, {}), "must be a file"),
        (Form({}, {"file": b""}), "is empty"),
    ],
)
def test_a_sound_must_be_a_file(form: Form, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        sound(form, MODEL, TRANSCRIBE, 1)
    assert caught.value.param == "file"
