"""Choices of both endpoints with logprobs and echo: whole and in chunks they say the same."""

from collections.abc import Iterable
from typing import Any

import orjson
import pytest

from frontend import responses
from frontend.events import Accepted, Event, Finished, PromptRead, TextAdded
from frontend.responses import Head
from frontend.shapes import Answer, ChatShape, CompletionShape, Shape
from frontend.stream import AnswerStream
from shared.parts import ScoredToken, TopToken

HEAD = Head("cmpl-1", 1700000000, "m")
DONE = Finished(3, 0)


def token(text: str, logprob: float | None = -0.5, *others: str) -> ScoredToken:
    names = () if logprob is None else (text, *others)
    top = tuple(TopToken(name, tuple(name.encode()), -0.5 - n) for n, name in enumerate(names))
    return ScoredToken(text, tuple(text.encode()), logprob, top)


def chunks(shape: Shape, events: Iterable[Event], accepted: list[Accepted]) -> list[Any]:
    """The choices of all chunks, in order."""
    stream = AnswerStream(HEAD, shape, accepted, include_usage=False)
    raw = stream.opening() + b"".join(stream.encode([event]) for event in events)
    lines = [line.removeprefix(b"data: ") for line in raw.split(b"\n\n") if line]
    assert lines.pop() == b"[DONE]"
    return [choice for line in lines for choice in orjson.loads(line)["choices"]]


def whole(shape: Shape, events: Iterable[Event], accepted: list[Accepted], count: int) -> list[Any]:
    """The choices of the body."""
    answers = [Answer() for _ in range(count)]
    for event in events:
        if isinstance(event, TextAdded):
            answers[event.choice].add(event)
        elif isinstance(event, PromptRead):
            shape.note_prompt(event)
    choices: list[Any] = orjson.loads(responses.whole(HEAD, shape, accepted, answers, DONE))[
        "choices"
    ]
    return choices


SCORED = [
    TextAdded(0, "Hé", 1, tokens=(token("H", -0.5, "h"), token("é"))),
    TextAdded(0, "", 2),
    TextAdded(0, "!", 3, "stop", "\n", tokens=(token("!"),)),
]


def test_chat_logprobs() -> None:
    (choice,) = whole(ChatShape(1, has_logprobs=True), SCORED, [Accepted(3)], 1)
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == choice["message"]["content"] == "Hé!"
    assert content[0] == {
        "token": "H",
        "logprob": -0.5,
        "bytes": [72],
        "top_logprobs": [
            {"token": "H", "logprob": -0.5, "bytes": [72]},
            {"token": "h", "logprob": -1.5, "bytes": [104]},
        ],
    }
    assert content[1]["bytes"] == [0xC3, 0xA9]
    assert choice["logprobs"]["refusal"] is None
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "\n")


def test_chat_logprobs_come_with_their_text() -> None:
    found = chunks(ChatShape(1, has_logprobs=True), [*SCORED, DONE], [Accepted(3)])
    texts = [choice["delta"].get("content") for choice in found]
    assert texts == ["", "Hé", "!", None]
    tokens = [[e["token"] for e in (c["logprobs"] or {}).get("content", ())] for c in found]
    assert tokens == [[], ["H", "é"], ["!"], []]
    assert [choice.get("stop_reason") for choice in found] == [None, None, None, "\n"]


def test_a_token_without_text_is_told_all_the_same() -> None:
    half = TextAdded(0, "", 1, "length", tokens=(ScoredToken("", (0xC3,), -1.0, ()),))
    found = chunks(ChatShape(1, has_logprobs=True), [half, DONE], [Accepted(3)])
    assert found[1]["delta"] == {"content": ""}
    assert found[1]["logprobs"]["content"][0]["bytes"] == [0xC3]


def completion(*, num_choices: int = 1, has_logprobs: bool = False, echo: bool = False) -> Shape:
    accepted = [Accepted(2, "ab"), Accepted(2, "xy")]
    return CompletionShape(accepted, num_choices, has_logprobs=has_logprobs, echo=echo)


def test_completion_logprobs_point_into_the_text() -> None:
    (choice,) = whole(completion(has_logprobs=True), SCORED, [Accepted(2, "ab")], 1)
    assert choice["text"] == "Hé!"
    assert choice["logprobs"] == {
        "tokens": ["H", "é", "!"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{"H": -0.5, "h": -1.5}, {"é": -0.5}, {"!": -0.5}],
        "text_offset": [0, 1, 2],
    }


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ((), {"x": -3.0}),
        (
            (TopToken("a", (97,), -0.5), TopToken("b", (98,), -1.0)),
            {"a": -0.5, "b": -1.0, "x": -3.0},
        ),
        ((TopToken("x", (120,), -0.5),), {"x": -0.5}),
    ],
    ids=["none", "others", "another of the same text"],
)
def test_the_sampled_token_is_among_the_likeliest_of_a_completion(
    top: tuple[TopToken, ...], expected: dict[str, float]
) -> None:
    events = [TextAdded(0, "x", 1, "stop", tokens=(ScoredToken("x", (120,), -3.0, top),))]
    (choice,) = whole(completion(has_logprobs=True), events, [Accepted(2, "ab")], 1)
    (told,) = choice["logprobs"]["top_logprobs"]
    assert list(told.items()) == list(expected.items())  # who asks for the largest gets the best


def test_completion_chunks_count_on() -> None:
    found = chunks(completion(has_logprobs=True), [*SCORED, DONE], [Accepted(2, "ab")])
    assert [choice["text"] for choice in found] == ["Hé", "!", ""]
    assert [(c["logprobs"] or {}).get("text_offset") for c in found] == [[0, 1], [2], None]


PROMPT = PromptRead((token("a", None), token("b")))


def test_an_echo_is_scored_from_its_second_token_on() -> None:
    events: list[Event] = [PROMPT, *SCORED]
    (choice,) = whole(completion(has_logprobs=True, echo=True), events, [Accepted(2, "ab")], 1)
    assert choice["text"] == "abHé!"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "H", "é", "!"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4]


def test_a_streamed_echo_is_the_same_in_pieces() -> None:
    shape = completion(has_logprobs=True, echo=True)
    found = chunks(shape, [PROMPT, *SCORED, DONE], [Accepted(2, "ab")])
    assert "".join(choice["text"] for choice in found) == "abHé!"
    offsets = [offset for c in found if c["logprobs"] for offset in c["logprobs"]["text_offset"]]
    assert offsets == [0, 1, 2, 3, 4]


def test_every_choice_of_every_prompt_begins_with_its_echo() -> None:
    accepted = [Accepted(2, "ab"), Accepted(2, "xy")]
    ends = [TextAdded(choice, str(choice), 1, "length") for choice in range(4)]
    in_one = whole(completion(num_choices=2, echo=True), ends, accepted, 4)
    assert [choice["text"] for choice in in_one] == ["ab0", "ab1", "xy2", "xy3"]
    texts = dict.fromkeys(range(4), "")
    for choice in chunks(completion(num_choices=2, echo=True), [*ends, DONE], accepted):
        texts[choice["index"]] += choice["text"]
    assert list(texts.values()) == ["ab0", "ab1", "xy2", "xy3"]


@pytest.mark.parametrize("shape", [ChatShape(2, has_logprobs=False), completion(num_choices=2)])
@pytest.mark.parametrize("text", ["a", "\0", 'é"\n\\', ""])
@pytest.mark.parametrize("include_usage", [False, True])
def test_a_piece_of_text_alone_is_the_chunk_that_it_is_in_company(
    shape: Shape, text: str, include_usage: bool
) -> None:
    stream = AnswerStream(HEAD, shape, [Accepted(2)], include_usage=include_usage)
    for choice in (1, 0):
        event = TextAdded(choice, text, 1)
        nothing = TextAdded(choice, "", 1)
        assert stream.encode([event]) == stream.encode([event, nothing])
