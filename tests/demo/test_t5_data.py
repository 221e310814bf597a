"""The T5 model's data: right answers, one stream per seed, and a split that holds."""

import json
from itertools import islice
from random import Random

import pytest
from transformers import PreTrainedTokenizerFast

from demo.t5_skills import (
    T5_SKILLS,
    held_out_pairs,
    reverse,
    sort_numbers,
    spell,
    sum_pair,
    training_pairs,
)
from demo.t5_tokenizer import T5_FOLDER, VOCABULARY_SIZE, train_t5_tokenizer
from demo.task import is_held_out
from demo.translation import (
    ADJECTIVES,
    NOUNS,
    VERBS_WITH_OBJECT,
    VERBS_WITHOUT_OBJECT,
    noun_phrase,
    sentence,
)

NUM_TRAINING_PAIRS = 20_000


@pytest.fixture(scope="module")
def trained() -> set[str]:
    """Prompts that training asks."""
    return {pair.prompt for pair in islice(training_pairs(20), NUM_TRAINING_PAIRS)}


@pytest.mark.parametrize("skill", T5_SKILLS)
def test_no_held_out_prompt_is_trained(skill: str, trained: set[str]) -> None:
    pairs = held_out_pairs(skill, 200, seed=0)
    assert all(is_held_out(pair.key) for pair in pairs)
    assert not {pair.prompt for pair in pairs} & trained
    assert any(prompt.startswith(pairs[0].prompt.split(":")[0]) for prompt in trained)


def test_training_draws_no_held_out_key() -> None:
    assert not [p.key for p in islice(training_pairs(20), 5000) if is_held_out(p.key)]


def test_the_same_seed_gives_the_same_data() -> None:
    assert list(islice(training_pairs(3), 50)) == list(islice(training_pairs(3), 50))
    assert held_out_pairs("sum", 5, seed=3) == held_out_pairs("sum", 5, seed=3)
    assert held_out_pairs("sum", 5, seed=3) != held_out_pairs("sum", 5, seed=4)


def test_answers_are_right() -> None:
    rng = Random(1)
    for _ in range(200):
        pair = spell(rng)
        assert pair.prompt == "spell: " + pair.answer.replace(" ", "")
        pair = reverse(rng)
        assert pair.prompt == "reverse: " + pair.answer[::-1]
        pair = sum_pair(rng)
        terms = pair.prompt.removeprefix("sum: ").split(" + ")
        assert sum(map(int, terms)) == int(pair.answer)
        pair = sort_numbers(rng)
        numbers = map(int, pair.prompt.removeprefix("sort: ").split())
        assert sorted(numbers) == [*map(int, pair.answer.split())]


@pytest.mark.parametrize(
    ("english", "is_plural", "is_object", "german"),
    [
        ("the cat", False, False, "die Katze"),
        ("the small dog", False, False, "der kleine Hund"),
        ("the small dog", False, True, "den kleinen Hund"),
        ("the tired men", True, True, "die müden Männer"),
        ("the big girl", False, True, "das große Mädchen"),
        ("the old mice", True, False, "die alten Mäuse"),
    ],
)
def test_grammar(english: str, is_plural: bool, is_object: bool, german: str) -> None:
    _, *described, name = english.split()
    (noun,) = (noun for noun in NOUNS if noun.english[is_plural] == name)
    adjective = next((pair for pair in ADJECTIVES if [pair[0]] == described), ("", ""))
    phrase = noun_phrase(noun, adjective, is_plural=is_plural, is_object=is_object)
    assert phrase == (english, german)


def test_sentences_agree_in_number() -> None:
    rng = Random(0)
    verbs = [*VERBS_WITHOUT_OBJECT, *VERBS_WITH_OBJECT]
    for _ in range(200):
        english, german = (text.split() for text in sentence(rng))
        (found,) = {
            (verb.english.index(english_word), verb.german.index(german_word))
            for verb in verbs
            for english_word in english
            for german_word in german
            if english_word in verb.english and german_word in verb.german
        }
        assert found[0] == found[1]
        subject = english[2] if english[1] in dict(ADJECTIVES) else english[1]
        (noun,) = (noun for noun in NOUNS if subject in noun.english)
        assert noun.english.index(subject) == found[0]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_t5_tokenizer(20)


def test_the_committed_tokenizer_is_what_training_makes(tokenizer: PreTrainedTokenizerFast) -> None:
    committed = json.loads((T5_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    pieces, wanted = (dict(state["model"].pop("vocab")) for state in (made, committed))
    assert list(pieces) == list(wanted)
    assert pieces == pytest.approx(wanted), "scores may differ in their last bit"
    assert made == committed


def test_the_vocabulary_is_full_and_knows_all_that_is_asked(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert len(tokenizer) == VOCABULARY_SIZE
    for skill in T5_SKILLS:
        for pair in held_out_pairs(skill, 50, seed=0):
            for text in (pair.prompt, pair.answer):
                assert tokenizer.decode(tokenizer(text)["input_ids"]) == f"{text}</s>"
