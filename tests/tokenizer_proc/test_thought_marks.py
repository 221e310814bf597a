"""Where a model's marks are found, and what of its answer the prompt holds already."""

import logging
from typing import Any

import pytest

from shared.config import ModelConfig, TokenizerConfig
from shared.parts import ChatPrompt
from tests.tokenizer_proc.marks import THINK
from tests.tokenizer_proc.vocabularies import make_byte_tokenizer, make_thinking_tokenizer
from tokenizer_proc.loading import load_tokenizer
from tokenizer_proc.thought_marks import ThoughtFormat, find_thoughts
from tokenizer_proc.thoughts import ThoughtSplitter

CHAT = ChatPrompt(({"role": "user", "content": "hello"},), {})
# As makers write it, with one field whose content a model may break.
STATED: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open": "{{", "close": "}}", "content_args": {"strip": False}},
        "content": {},
        "tool_calls": {"open": "[[", "close": "]]", "content": "json", "repeats": True},
    },
}


def found_by(stated: Any = None, *marks: str, **more: tuple[str, ...]) -> ThoughtFormat | None:
    tokenizer = make_thinking_tokenizer(*marks, **more)
    tokenizer.response_template = stated
    return find_thoughts(tokenizer)


def split(found: ThoughtFormat | None, text: str, prompt: str = "") -> tuple[str, str]:
    assert found is not None
    ids = make_byte_tokenizer().backend_tokenizer.encode(prompt).ids
    marks = found.marks(ids, CHAT)
    assert marks is not None
    parts = ThoughtSplitter(marks).add(text, is_last=True)
    return parts.thoughts, parts.content


def going_on(begun: str) -> ChatPrompt:
    """A conversation whose last message is to be continued."""
    return ChatPrompt(({"role": "assistant", "content": begun},), {}, False, True)


def test_a_model_without_marks_costs_nothing() -> None:
    assert find_thoughts(make_byte_tokenizer()) is None
    assert found_by(None, "<think>") is None, "one mark of a pair is none"


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"), ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel>thought", "<channel|>"),
    ],
)  # fmt: skip
def test_known_marks_are_found_in_the_template_or_among_the_tokens(
    opening: str, closing: str
) -> None:
    text = f"{opening}\na\n{closing}\n\nb"
    assert split(found_by(None, opening, closing), text) == ("a", "b")
    assert split(found_by(added=(opening, closing)), text) == ("a", "b")


def test_the_most_common_marks_are_read_as_the_tests_of_the_detokenizer_do() -> None:
    found = found_by(None, "<think>", "</think>")
    assert found is not None
    assert found.marks([], CHAT) == THINK


def test_the_template_says_more_than_the_tokens() -> None:
    found = found_by(None, "[THINK]", "[/THINK]", added=("<think>", "</think>"))
    assert split(found, "[THINK]a[/THINK]b") == ("a", "b")


def test_the_checkpoints_own_template_comes_first() -> None:
    found = found_by(STATED, "<think>", "</think>")
    assert split(found, "{{ a }} b {{c}}<think>") == ("a\nc", "b <think>")


def test_what_is_neither_thoughts_nor_content_stays_in_the_content() -> None:
    assert split(found_by(STATED), "{{a}}b[[ {broken ]]") == ("a", "b[[ {broken ]]")


def test_named_groups_of_a_template_do_no_harm() -> None:
    fields = {"thinking": {"open_pattern": "<(?P<how>deep|brief)>", "close": "</>"}, "content": {}}
    fields["thinking"]["transform"] = {"how": "{how}", "text": "{content}"}  # type: ignore[assignment]
    assert split(found_by({**STATED, "fields": fields}), "<deep>a</>b") == ("a", "b")


@pytest.mark.parametrize(
    "stated", [{"fields": {}}, [], {**STATED, "version": 7}, {**STATED, "fields": {"thinking": 1}}]
)
def test_a_broken_template_is_reported_and_passed_over(
    stated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = found_by(stated, "<think>", "</think>")
    assert split(found, "<think>a</think>b") == ("a", "b")
    assert "response_template" in caplog.text


def test_a_template_without_thoughts_is_passed_over() -> None:
    stated = {**STATED, "fields": {"content": {}}}
    assert split(found_by(stated, "<think>", "</think>"), "<think>a</think>b") == ("a", "b")


@pytest.mark.parametrize(
    ("prompt", "text", "parts"),
    [
        ("<|im_start|>assistant\n", "<think>a</think>b", ("a", "b")),
        ("<|im_start|>assistant\n<think>\n", "a</think>b", ("a", "b")),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "b", ("", "b")),
        ("say <think>\n<|im_start|>assistant\n", "b", ("", "b")),
        ("<|im_start|>assistant\nb<think>a</think>b", "<think>a</think>b", ("a", "b")),
        ("x" * 500 + "<think>", "a</think>b", ("a", "b")),
    ],
)
def test_the_prompts_end_says_whether_thoughts_are_open(
    prompt: str, text: str, parts: tuple[str, str]
) -> None:
    assert split(found_by(None, "<think>", "</think>"), text, prompt) == parts


@pytest.mark.parametrize(
    ("prompt", "text", "parts"),
    [
        ("say {{<|im_start|>assistant\n", "b", ("", "b")),
        ("say {{<|im_start|>assistant\n{{", "a}}b", ("a", "b")),
        ("say {{", "b", ("", "b")),
    ],
)
def test_a_stated_anchor_says_where_the_answer_begins(
    prompt: str, text: str, parts: tuple[str, str]
) -> None:
    assert split(found_by(STATED), text, prompt) == parts


@pytest.mark.parametrize(
    ("begun", "text", "parts"),
    [
        ("<think>\na", "b</think>c", ("b", "c")),
        ("<think>a</think>b", "<think>c", ("", "<think>c")),
        (" ", "<think>a</think>b", ("a", "b")),
    ],
)
def test_an_answer_that_goes_on_is_read_from_its_own_message(
    begun: str, text: str, parts: tuple[str, str]
) -> None:
    found = found_by(None, "<think>", "</think>")
    assert found is not None
    marks = found.marks([], going_on(begun))
    assert marks is not None
    read = ThoughtSplitter(marks).add(text, is_last=True)
    assert (read.thoughts, read.content) == parts


@pytest.mark.parametrize("begun", ["Once upon", "["])
def test_an_answer_that_has_begun_without_thoughts_will_have_none(begun: str) -> None:
    found = found_by(None, "[THINK]", "[/THINK]")
    assert found is not None
    assert found.marks([], going_on(begun)) is None


def test_the_built_in_model_is_known_to_think() -> None:
    found = find_thoughts(load_tokenizer(TokenizerConfig(model=ModelConfig("demo"))))
    assert split(found, "<think>\na\n</think>\n\nb") == ("a", "b")
