"""The wire refuses whatever it would corrupt, and brings everything else over unharmed."""

import dataclasses
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import wire
from shared.errors import ErrorCode, WireError
from shared.messages import (
    Abort,
    Generate,
    Message,
    Stop,
    TextProduced,
    Tokenize,
    TokensSampled,
    WorkerReported,
)
from shared.parts import (
    ChatPrompt,
    Prompt,
    RequestStarted,
    SequenceEnded,
    TextEnded,
    TextOptions,
    TextStart,
    TokenLogprobs,
)
from shared.sampling import MIN_LOGPROB, SamplingParams
from shared.wire import Codec
from tests.builders import ROUTE
from tests.examples import examples

MESSAGE_CLASSES = get_args(Message)
INT64 = st.integers(-(2**63), 2**63 - 1)
# Whatever JSON keeps: no lone surrogates, no NaN, string keys.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = INT64 | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: INT64,
    str: TEXT,
    bool: st.booleans(),
    bytes: st.binary(max_size=8),
    float: st.floats(allow_nan=False, allow_infinity=False),
    ErrorCode: st.sampled_from(ErrorCode),
    type(None): st.none(),
    dict[str, Any]: st.dictionaries(TEXT, JSON, max_size=3),
}

TEXT_START = TextStart("r", ROUTE, (), TextOptions())
SAMPLING = SamplingParams(seed=4)
GENERATE = Generate("r", (1, 2), 3, SAMPLING, 1, "", TEXT_START)
TOKENIZE = Tokenize(
    request_id="r",
    route=ROUTE,
    worker_id=0,
    prompt=Prompt(chat=ChatPrompt((), {})),
    max_tokens=None,
    is_strict=False,
    echo=False,
    text=TextOptions(),
    sampling=SAMPLING,
    max_tokens_param="max_tokens",
    max_prompt_scores=100,
    num_choices=1,
    cache_salt="",
)
AWKWARD = "\x00\u2028🙂é\u0301"


@dataclass(frozen=True)
class Recording:
    """A local class with two raw frames around ordinary fields."""

    first: bytes
    name: str
    second: bytes
    sizes: tuple[int, ...]


RECORDINGS = Codec([Recording])


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type; a message class is one, too."""
    if isinstance(hint, UnionType):
        return st.one_of(*map(values, get_args(hint)))
    if get_origin(hint) is dict and hint not in PLAIN:
        return st.dictionaries(*map(values, get_args(hint)), max_size=3)
    if get_origin(hint) is tuple:
        first, *others = get_args(hint)
        if others == [...]:
            return st.lists(values(first), max_size=3).map(tuple)
        return st.tuples(*map(values, (first, *others)))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        fields = get_type_hints(hint).items()
        return st.builds(hint, **{name: values(type_) for name, type_ in fields})
    return PLAIN[hint]


def frames_of(message: Message, **changes: Any) -> list[bytes]:
    """The message's frames with some fields of the body replaced; `...` removes one."""
    tag, body = wire.encode(message)
    fields = {**orjson.loads(body), **changes}
    return [tag, orjson.dumps({k: v for k, v in fields.items() if v is not ...})]


@pytest.mark.parametrize("cls", MESSAGE_CLASSES, ids=lambda cls: str(cls.__name__))
@examples(40)
@given(st.data())
def test_every_message_survives_the_round_trip(cls: type, data: st.DataObject) -> None:
    message = data.draw(values(cls))
    decoded = wire.decode(wire.encode(message))
    assert decoded == message
    assert type(decoded) is cls
    assert repr(decoded) == repr(message)  # tuples stay tuples, enums enums, floats floats


@pytest.mark.parametrize(
    "message",
    [
        Abort(""),
        Abort(AWKWARD),
        Abort("r", 0),  # the first answer, not all of them
        Abort("r", -(2**63)),
        Stop(ErrorCode.ENGINE_DEAD, "null"),
        dataclasses.replace(
            GENERATE,
            prompt_token_ids=(),
            sampling=SamplingParams(
                seed=2**63 - 1,
                temperature=5e-324,
                repetition_penalty=1.7976931348623157e308,
                presence_penalty=-0.0,
                logit_bias=((0, -100.0), (2**31 - 1, 1e-45)),
                stop_token_ids=(2**63 - 1,),
            ),
            num_choices=128,
            cache_salt=AWKWARD,
        ),
        dataclasses.replace(
            TOKENIZE,
            prompt=Prompt(chat=ChatPrompt((), {"deep": [{"a": [None, True, 0.1]}]})),
            text=TextOptions(stop=("",)),
            num_choices=0,
            cache_salt="null",
        ),
        TokensSampled(
            0,
            1,
            2,
            (
                RequestStarted(TEXT_START, 2, 0, (TokenLogprobs(MIN_LOGPROB, (), ()),)),
                RequestStarted(TEXT_START, 2**63 - 1, 16, ()),
            ),
            ("r", "r"),
            (1, 0),
            (0, 0),
            (5, 0),
            (None, TokenLogprobs(-0.0, (7, 2**31), (-1e-45, MIN_LOGPROB))),
            (SequenceEnded(AWKWARD, 1, "stop", hides_last_token=True),),
        ),
        TextProduced(
            0,
            1,
            ("r", "r"),
            (1, 0),
            (0, 7),
            ("", AWKWARD),
            (1, 8),
            (),
            (),
            (TextEnded("r", 1, "stop", 5, 0), TextEnded("r", 1, "stop", "5", 0)),
        ),
        WorkerReported(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, {"plan": 0.5}),
    ],
)
def test_awkward_values_survive_the_round_trip(message: Message) -> None:
    assert repr(wire.decode(wire.encode(message))) == repr(message)


@pytest.mark.parametrize("tag", [b"", b"Nonsense", b"\xff\xfe", b"Peer", b"abort", b"A" * 10_000])
def test_an_unknown_tag_is_refused(tag: bytes) -> None:
    with pytest.raises(WireError, match="unknown message"):
        wire.decode([tag, b"{}"])


@pytest.mark.parametrize("frames", [[], [b"Abort"], [b""]])
def test_too_few_frames_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(WireError, match="frames"):
        wire.decode(frames)


def test_a_frame_too_many_is_refused() -> None:
    with pytest.raises(WireError, match="Abort: 3 frames, not 2"):
        wire.decode([*wire.encode(Abort("r")), b""])


@pytest.mark.parametrize("body", [b"", b"nonsense", b"{", b'{"request_id": NaN}', b'{"a":"\xff"}'])
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="Abort: body is not JSON"):
        wire.decode([b"Abort", body])


def test_a_body_without_memory_for_it_is_no_fault_of_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To drop it would leave its sender waiting; the room ends, and who waits is told."""

    def no_memory(_: bytes) -> None:
        raise orjson.JSONDecodeError("Not enough memory to allocate buffer for parsing", "", 0)

    monkeypatch.setattr(orjson, "loads", no_memory)
    with pytest.raises(MemoryError, match="Abort"):
        wire.decode([b"Abort", b"{}"])


@pytest.mark.parametrize("body", [b"[]", b"null", b'"request_id"', b"1"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="Abort: body is not an object"):
        wire.decode([b"Abort", body])


@pytest.mark.parametrize("changes", [{"max_tokens": ...}, {"surprise": 1}])
def test_a_missing_or_extra_field_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=f"Generate.*{next(iter(changes))}"):
        wire.decode(frames_of(GENERATE, **changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", None),
        ("request_id", 7),
        ("max_tokens", "3"),
        ("max_tokens", True),
        ("max_tokens", 3.0),
        ("max_tokens", None),
        ("prompt_token_ids", [1, None]),
        ("prompt_token_ids", "12"),
        ("prompt_token_ids", {"1": 2}),
        ("sampling", None),
        ("sampling", {}),
        ("sampling", {"seed": 1, "temperature": "hot"}),
        ("text", {"request_id": "r", "frontend_id": 0, "prompt_tail": []}),
        ("num_choices", None),
        ("num_choices", 1.0),
        ("cache_salt", None),
        ("cache_salt", 7),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(WireError, match=rf"Generate: .*{field}"):
        wire.decode(frames_of(GENERATE, **{field: value}))


def test_an_unknown_error_code_is_refused() -> None:
    with pytest.raises(WireError, match=r"Stop: .*code"):
        wire.decode(frames_of(Stop(ErrorCode.INTERNAL, ""), code="no_such_code"))


def test_a_number_beyond_64_bits_never_arrives_rounded() -> None:
    body = orjson.dumps(GENERATE).replace(b'"max_tokens":3', b'"max_tokens":18446744073709551616')
    with pytest.raises(WireError, match="max_tokens"):
        wire.decode([b"Generate", body])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p", "presence_penalty"])
def test_a_float_that_json_cannot_hold_never_arrives(field: str, number: float) -> None:
    sampling = SamplingParams(**{"seed": 0, field: number})  # type: ignore[arg-type]  # a float
    with pytest.raises(WireError, match=rf"Generate: .*{field}"):
        wire.decode(wire.encode(dataclasses.replace(GENERATE, sampling=sampling)))


@pytest.mark.parametrize(
    "value", [2**64, "\ud800", {1: 2}, object()], ids=lambda value: type(value).__name__
)
def test_a_value_that_json_cannot_hold_is_refused_by_the_sender(value: object) -> None:
    message = dataclasses.replace(TOKENIZE, prompt=Prompt(chat=ChatPrompt((), {"value": value})))
    with pytest.raises(WireError, match="Tokenize: "):
        wire.encode(message)


def test_nesting_too_deep_is_refused_by_the_sender() -> None:
    nested: list[Any] = []
    for _ in range(300):
        nested = [nested]
    with pytest.raises(WireError, match="Tokenize: "):
        wire.encode(
            dataclasses.replace(TOKENIZE, prompt=Prompt(chat=ChatPrompt(({"a": nested},), {})))
        )


def test_bytes_travel_as_raw_frames_in_field_order() -> None:
    recording = Recording(b"\x00\xff", "é", b"", (1, 2))
    frames = RECORDINGS.encode(recording)
    assert frames[0] == b"Recording"
    assert orjson.loads(frames[1]) == {"name": "é", "sizes": [1, 2]}
    assert frames[2:] == [b"\x00\xff", b""]
    assert RECORDINGS.decode(frames) == recording


def test_a_missing_raw_frame_is_refused() -> None:
    frames = RECORDINGS.encode(Recording(b"a", "b", b"c", ()))
    with pytest.raises(WireError, match="Recording: 3 frames, not 4"):
        RECORDINGS.decode(frames[:-1])


def test_raw_bytes_are_not_taken_from_the_body() -> None:
    tag, body, *raw = RECORDINGS.encode(Recording(b"a", "b", b"c", ()))
    forged = orjson.dumps({**orjson.loads(body), "first": "YQ=="})
    with pytest.raises(WireError, match="first"):
        RECORDINGS.decode([tag, forged, *raw])


def test_a_message_that_nobody_could_receive_is_refused_by_the_sender(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = sum(map(len, RECORDINGS.encode(Recording(b"12345", "n", b"678", ()))))
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", size)
    assert RECORDINGS.encode(Recording(b"12345", "n", b"678", ()))
    with pytest.raises(WireError, match=rf"Recording: {size + 1} bytes exceed {size}"):
        RECORDINGS.encode(Recording(b"12345", "n", b"6789", ()))


def test_messages_are_immutable() -> None:
    for cls in MESSAGE_CLASSES:
        assert cls.__dataclass_params__.frozen, cls
