"""The chat model's data: right answers, one stream per seed, and a split that holds."""

from itertools import islice
from random import Random

import pytest

from demo.dialogues import SKILLS, held_out_tasks, is_right, training_dialogues
from demo.everyday import FACTS
from demo.skills import count, reverse, sort_items, spell, sum_pair
from demo.task import Dialogue, HeldOutTask, is_held_out
from demo.tools import parse_calls

NUM_TRAINING_DIALOGUES = 4000


@pytest.fixture(scope="module")
def training() -> list[Dialogue]:
    return list(islice(training_dialogues(20), NUM_TRAINING_DIALOGUES))


def user_texts(dialogue: Dialogue) -> set[str]:
    return {str(m["content"]) for m in dialogue.messages if m["role"] == "user"}


def test_training_draws_no_held_out_key(training: list[Dialogue]) -> None:
    assert not [key for dialogue in training for key in dialogue.keys if is_held_out(key)]


@pytest.mark.parametrize("skill", SKILLS)
def test_evaluation_ends_with_a_held_out_key(skill: str) -> None:
    assert all(is_held_out(task.dialogue.keys[-1]) for task in held_out_tasks(skill, 50, seed=0))


@pytest.mark.parametrize("skill", ["everyday", "spell", "reverse", "sort", "sum", "think", "count"])
def test_no_held_out_prompt_is_trained(skill: str, training: list[Dialogue]) -> None:
    trained = set().union(*map(user_texts, training))
    asked = set().union(*(user_texts(task.dialogue) for task in held_out_tasks(skill, 50, seed=0)))
    assert not asked & trained


def test_every_fact_is_trained(training: list[Dialogue]) -> None:
    answers = {message["content"] for dialogue in training for message in dialogue.messages}
    assert {fact.answer for fact in FACTS} <= answers


def test_the_same_seed_gives_the_same_data() -> None:
    assert list(islice(training_dialogues(3), 50)) == list(islice(training_dialogues(3), 50))
    assert held_out_tasks("tools", 5, seed=3) == held_out_tasks("tools", 5, seed=3)
    assert held_out_tasks("tools", 5, seed=3) != held_out_tasks("tools", 5, seed=4)


def prompt_and_answer(task: HeldOutTask) -> tuple[str, str]:
    return str(task.dialogue.messages[-2]["content"]), str(task.reference["content"])


def test_answers_are_right() -> None:
    rng = Random(1)
    for _ in range(200):
        word = spell(rng)
        assert str(word.messages[-1]["content"]).replace("-", "") == word.key.removeprefix("word:")
        word = reverse(rng)
        assert str(word.messages[-1]["content"])[::-1] == word.key.removeprefix("word:")
        terms, total = str(sum_pair(rng).messages[-1]["content"]).split(" = ")
        assert sum(map(int, terms.split(" + "))) == int(total)
        numbers = [int(n) for n in str(count(rng).messages[-1]["content"]).split(", ")]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        items = str(sort_items(rng).messages[-1]["content"]).split(", ")
        assert items == sorted(items, key=lambda item: (int(item) if item.isdigit() else 0, item))


@pytest.mark.parametrize("skill", SKILLS)
def test_the_checker_refuses_the_answer_to_another_task(skill: str) -> None:
    tasks = [t for t in held_out_tasks(skill, 30, seed=0) if not t.reference.get("tool_calls")]
    for task in tasks:
        for other in tasks:
            same = task.reference == other.reference
            assert is_right(task, str(other.reference["content"])) == same


def test_a_tool_call_is_compared_as_json() -> None:
    task = next(t for t in held_out_tasks("tools", 30, seed=0) if t.reference.get("tool_calls"))
    assert not is_right(task, '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>')
    assert not is_right(task, "<tool_call>\nnot JSON\n</tool_call>")
    assert parse_calls('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>') == [
        ("f", {"x": 1})
    ]
    assert parse_calls("no call") is None
