"""The load test's prompts: repeatable, as long as asked for, or read from files."""

import asyncio
import json
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.load.calibration import measure_word_length
from benchmarks.load.client import Unreachable
from benchmarks.load.outcome import Completed, Failed, Outcome
from benchmarks.load.prompts import (
    DatasetError,
    Prompt,
    WordLength,
    custom_prompts,
    random_prompts,
    repeated_prefixes,
    sharegpt_prompts,
)

ONE_A_WORD = WordLength()


def some_random(
    num: int,
    *,
    seed: int = 0,
    length: WordLength = ONE_A_WORD,
    input_len: int = 50,
    prefix_len: int = 0,
    range_ratio: float = 0.0,
) -> list[Prompt]:
    """Prompts of the random dataset with answers of 20 tokens."""
    endless = random_prompts(
        seed,
        length,
        input_len=input_len,
        output_len=20,
        prefix_len=prefix_len,
        range_ratio=range_ratio,
    )
    return list(islice(endless, num))


def num_words(prompt: Prompt) -> int:
    """Of its text."""
    return len(prompt.text.split())


# ── made of words ────────────────────────────────────────────────────────────────────────────────


def test_random_prompts_have_the_asked_length_and_differ() -> None:
    prompts = some_random(20)
    assert {num_words(prompt) for prompt in prompts} == {50}
    assert {prompt.max_tokens for prompt in prompts} == {20}
    assert len({prompt.text for prompt in prompts}) == 20


def test_a_seed_gives_the_same_prompts_again_and_another_one_does_not() -> None:
    assert some_random(5, seed=1) == some_random(5, seed=1)
    assert some_random(5, seed=1) != some_random(5, seed=2)


def test_a_shared_prefix_comes_before_each_prompts_own_words() -> None:
    first, second = (prompt.text.split() for prompt in some_random(2, prefix_len=10))
    assert first[:10] == second[:10]
    assert first[10:] != second[10:]
    assert len(first) == 60


def test_lengths_vary_as_far_as_asked_for() -> None:
    prompts = some_random(300, range_ratio=0.5)
    lengths = [num_words(prompt) for prompt in prompts]
    assert min(lengths) in range(25, 29)
    assert max(lengths) in range(72, 76)
    assert {prompt.max_tokens for prompt in prompts} <= set(range(10, 31))


def test_lengths_are_tokens_of_the_server_template_included() -> None:
    (prompt,) = some_random(1, length=WordLength(overhead=10, tokens_per_word=2.0), input_len=50)
    assert num_words(prompt) == 20


def test_repeated_prefixes_are_as_many_as_asked_for() -> None:
    endless = repeated_prefixes(
        0, ONE_A_WORD, prefix_len=8, suffix_len=4, num_prefixes=3, output_len=5
    )
    prompts = list(islice(endless, 60))
    assert len({tuple(prompt.text.split()[:8]) for prompt in prompts}) == 3
    assert len({tuple(prompt.text.split()[8:]) for prompt in prompts}) == 60


# ── calibration ──────────────────────────────────────────────────────────────────────────────────


def measured(*, overhead: int, per_word: int, is_estimated: bool = False) -> WordLength:
    """What is measured on a server that counts so."""

    async def ask(prompt: Prompt) -> Outcome:
        tokens = overhead + per_word * num_words(prompt)
        return Completed(0, 1, (), tokens, 1, is_estimated=is_estimated)

    return asyncio.run(measure_word_length(ask))


def test_two_requests_tell_the_template_from_the_words() -> None:
    assert measured(overhead=11, per_word=3) == WordLength(11, 3)


def test_a_server_without_usage_is_taken_to_have_one_token_a_word() -> None:
    assert measured(overhead=11, per_word=3, is_estimated=True) == ONE_A_WORD


def test_a_count_that_does_not_grow_with_the_words_is_not_believed() -> None:
    assert measured(overhead=7, per_word=0) == ONE_A_WORD


def test_a_first_request_that_fails_ends_the_test_with_its_message() -> None:
    async def ask(_: Prompt) -> Outcome:
        return Failed(0, 1, "HTTP 404", "no such model")

    with pytest.raises(Unreachable, match="HTTP 404: no such model"):
        asyncio.run(measure_word_length(ask))


# ── from files ───────────────────────────────────────────────────────────────────────────────────


def written(path: Path, *rows: object) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_the_lines_of_a_custom_file_go_round_in_their_order(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", {"prompt": "a", "output_tokens": 7}, {"prompt": "b"})
    assert list(islice(custom_prompts(path, None), 3)) == [
        Prompt("a", 7), Prompt("b", 256), Prompt("a", 7),
    ]  # fmt: skip
    assert next(custom_prompts(path, 9)) == Prompt("a", 9)


def test_sharegpt_prompts_are_first_turns_with_answers_as_long_as_the_files(
    tmp_path: Path,
) -> None:
    def conversation(*values: str) -> dict[str, object]:
        return {"conversations": [{"from": "any", "value": value} for value in values]}

    path = tmp_path / "s.json"
    rows = [
        conversation("question", "x" * 40, "more"),
        conversation("alone"),
        conversation("", "y"),
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert list(islice(sharegpt_prompts(0, path, None), 2)) == [Prompt("question", 10)] * 2
    assert next(sharegpt_prompts(0, path, 3)).max_tokens == 3


def test_a_line_without_a_prompt_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", {"prompt": "a"}, {"text": "b"})
    with pytest.raises(DatasetError, match=r'p\.jsonl, line 2: no "prompt"'):
        custom_prompts(path, None)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[3]"])
def test_a_sharegpt_file_without_prompts_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"s\.json"):
        sharegpt_prompts(0, path, None)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        custom_prompts(tmp_path / "none.jsonl", None)
