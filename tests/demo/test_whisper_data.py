"""The Whisper's data: right answers in their places, one stream per seed, a split."""

import json
from dataclasses import replace
from itertools import islice, pairwise
from random import Random

import numpy as np
import pytest
from transformers import WhisperTokenizer

from demo.speech import RATE, Voice, say
from demo.task import is_held_out
from demo.train_whisper import questions_per_step
from demo.training import TrainingPlan
from demo.whisper_answers import NOT_LEARNT, Answer, Answers, Question
from demo.whisper_sounds import SAMPLES
from demo.whisper_tokenizer import CONTROLS, END, NO_TIMES, WHISPER_FOLDER, train_whisper_tokenizer
from demo.whisper_windows import SHORTEST_PAUSE, WINDOW_SECONDS, Said, Studio, Window, spoken
from demo.whisper_words import (
    NUM_WORDS,
    VOICES,
    WORDS,
    Utterance,
    any_utterance,
    asks_for_digits,
    previous_text,
    written,
)

LANGUAGES = pytest.mark.parametrize("language", WORDS)


def said(language: str, words: str, seconds: float) -> Said:
    """The words, in English, said from this second on."""
    numbers = tuple(map(WORDS["en"].index, words.split()))
    return spoken(Utterance(language, numbers, Voice(VOICES[language][0]))).moved(seconds)


@LANGUAGES
def test_no_held_out_utterance_is_trained(language: str) -> None:
    rng = Random(20)
    trained = {any_utterance(rng, language, held_out=False).key for _ in range(5000)}
    held_out = {any_utterance(rng, language, held_out=True).key for _ in range(200)}
    assert not trained & held_out
    assert all(map(is_held_out, held_out))
    assert not any(map(is_held_out, trained))
    assert {word for key in trained for word in key.split(":")[1].split()} == {*WORDS["en"]}


def test_the_samples_are_held_out() -> None:
    keys = [utterance.key for sample in SAMPLES.values() for utterance in sample.utterances]
    assert all(map(is_held_out, keys))


def test_the_same_seed_gives_the_same_utterances() -> None:
    def drawn(seed: int) -> list[Utterance]:
        rng = Random(seed)
        return [any_utterance(rng, "de", held_out=False) for _ in range(20)]

    assert drawn(3) == drawn(3) != drawn(4)


def test_the_languages_say_the_same_in_other_words() -> None:
    assert {len(words) for words in WORDS.values()} == {NUM_WORDS}
    assert len({word for words in WORDS.values() for word in words}) == 2 * NUM_WORDS
    assert written((13, 7, 19), "en") == "open seven window"
    assert written((13, 7, 19), "de") == "öffne sieben Fenster"
    assert written((13, 7, 19), "de", with_digits=True) == "öffne 7 Fenster"


def test_previous_texts_say_how_numbers_are_written() -> None:
    assert asks_for_digits("1 2 3")
    assert asks_for_digits("in 1984")
    assert not asks_for_digits("one two three")
    assert not asks_for_digits("<|0.40|> one two <|1.20|>")
    assert asks_for_digits("<|0.40|> one 2 <|1.20|>")
    rng = Random(0)
    share = sum(asks_for_digits(previous_text(rng)) for _ in range(1000)) / 1000
    assert 0.4 < share < 0.6


@LANGUAGES
def test_every_voice_says_every_word(language: str) -> None:
    for name in VOICES[language]:
        speech = say(" ".join(WORDS[language]), Voice(name))
        assert len(speech.words) == NUM_WORDS
        assert speech.words[0].start == 0
        assert speech.words[-1].end == pytest.approx(speech.seconds)
        assert all(first.end == second.start for first, second in pairwise(speech.words))
        assert all(0.1 < word.end - word.start < 1 for word in speech.words)
        assert np.abs(speech.samples).max() == 1


def test_words_begin_where_espeak_says_them() -> None:
    whole = say("seven red", Voice("en-us"))
    alone = say("seven", Voice("en-us"))
    assert whole.words[0].end == pytest.approx(alone.seconds, abs=0.15)
    with pytest.raises(ValueError, match="no voice"):
        say("seven", Voice("nobody"))


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_windows_hold_what_is_said_apart(most: int) -> None:
    rng = Random(most)
    studio = Studio(rng)
    candidates = [spoken(any_utterance(rng, "en", held_out=False)) for _ in range(10)]
    for _ in range(30):
        window = studio.window(rng.sample(candidates, most), most)
        seconds = len(window.samples) / RATE
        assert seconds < WINDOW_SECONDS + 0.001
        assert (most > 0) == (len(window.said) > 0)
        spans = [each.span for each in window.said]
        assert all(0 < span.start < span.end < seconds for span in spans)
        pauses = [second.start - first.end for first, second in pairwise(spans)]
        assert all(pause > SHORTEST_PAUSE - 0.001 for pause in pauses)


def test_a_full_window_may_end_within_an_utterance() -> None:
    rng = Random(4)
    studio = Studio(rng)
    candidates = [spoken(any_utterance(rng, "de", held_out=False)) for _ in range(10)]
    for _ in range(30):
        window = studio.cut_window(rng.sample(candidates, 3), rng.randint(1, 3))
        assert len(window.samples) == WINDOW_SECONDS * RATE
        *whole, cut = window.said
        assert cut.is_cut
        assert cut.span.start < WINDOW_SECONDS < cut.span.end
        assert not any(each.is_cut for each in whole)
        pauses = [second.span.start - first.span.end for first, second in pairwise(window.said)]
        assert all(pause > SHORTEST_PAUSE - 0.001 for pause in pauses)


def test_speech_is_louder_than_the_noise() -> None:
    studio = Studio(Random(1))
    for _ in range(10):
        (utterance,) = (window := studio.window([said("en", "seven", 0)], 1)).said
        first, last = (round(edge * RATE) for edge in utterance.span)
        speech, before = window.samples[first:last], window.samples[:first]
        assert np.square(speech).mean() > 10 * np.square(before).mean()


@pytest.fixture(scope="module")
def tokenizer() -> WhisperTokenizer:
    return train_whisper_tokenizer()


def answer(tokenizer: WhisperTokenizer, question: Question) -> tuple[Answer, list[str]]:
    """The answer, and what the tokens say."""
    found = Answers(tokenizer).written(question)
    assert len(found.token_ids) == len(found.labels) == len(found.places)
    return found, [tokenizer.convert_ids_to_tokens([n])[0] for n in found.labels if n >= 0]


def test_an_answer_has_marks_of_time(tokenizer: WhisperTokenizer) -> None:
    first, second = said("de", "seven red", 0.5), said("de", "one", 2.0)
    window = Window(np.zeros(1, np.float32), (first, second))
    found, tokens = answer(tokenizer, Question(window, "de", "translate", True, ""))
    marks = [f"<|{round(t * 50) / 50:.2f}|>" for t in (*first.span, *second.span)]
    assert tokens == [
        *("<|de|>", "<|translate|>"),
        *(marks[0], "Ġseven", "Ġred", marks[1]),
        *(marks[2], "Ġone", marks[3], END),
    ]  # fmt: skip
    heard = {token: found.places[n] for n, token in enumerate(tokens)}
    assert heard["Ġseven"] == first.words[0]
    assert heard["Ġone"] == second.words[0]
    assert heard[marks[1]].start < first.span.end < heard[marks[1]].end


def test_an_answer_follows_the_previous_text(tokenizer: WhisperTokenizer) -> None:
    window = Window(np.zeros(1, np.float32), (said("en", "seven red", 0.5),))
    found, tokens = answer(tokenizer, Question(window, "en", "transcribe", False, "1 2"))
    assert tokenizer.decode(found.token_ids) == (
        "<|startofprev|> 1 2<|startoftranscript|><|en|><|transcribe|><|notimestamps|> 7 red"
    )
    assert tokens == ["<|en|>", "<|transcribe|>", NO_TIMES, "Ġ7", "Ġred", END]
    assert found.labels[:3] == [NOT_LEARNT] * 3, "what was said before is not learnt"


def test_of_what_is_cut_off_only_the_beginning_is_told(tokenizer: WhisperTokenizer) -> None:
    first, cut = said("en", "seven", 0.5), replace(said("en", "one two", 3.6), is_cut=True)
    window = Window(np.zeros(1, np.float32), (first, cut))
    question = Question(window, "en", "transcribe", True, "<|0.40|> one <|1.20|>")
    found, tokens = answer(tokenizer, question)
    assert tokens[2:-1] == ["<|0.50|>", "Ġseven", tokens[4], "<|3.60|>"]
    earlier = tokenizer.convert_ids_to_tokens(found.token_ids)[:5]
    assert earlier == ["<|startofprev|>", "<|0.40|>", "Ġone", "<|1.20|>", "<|startoftranscript|>"]
    _, unmarked = answer(tokenizer, replace(question, marks_times=False))
    assert unmarked[3:-1] == ["Ġseven"]


@pytest.mark.parametrize("marks_times", [False, True])
def test_silence_is_told_and_its_answer_is_empty(
    tokenizer: WhisperTokenizer, marks_times: bool
) -> None:
    window = Window(np.zeros(1, np.float32), ())
    _, tokens = answer(tokenizer, Question(window, "en", "transcribe", marks_times, ""))
    mode = "<|0.00|>" if marks_times else NO_TIMES
    assert tokens == ["<|nospeech|>", mode, END]


def test_the_committed_tokenizer_is_what_training_makes(tokenizer: WhisperTokenizer) -> None:
    committed = json.loads((WHISPER_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == committed


def test_the_vocabulary_is_as_whispers(tokenizer: WhisperTokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == [*range(len(vocabulary))]
    assert vocabulary["<|0.00|>"] == vocabulary[NO_TIMES] + 1
    assert vocabulary["<|4.00|>"] == len(vocabulary) - 1
    assert [vocabulary[name] for name in (END, *CONTROLS)] == tokenizer.all_special_ids
    lengths = {len(tokenizer.tokenize(f" {word}")) for words in WORDS.values() for word in words}
    assert {1, 2, 3} <= lengths, "words of one token and of several"
    text = " öffne sieben Fenster, 1984: 🐈"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_each_step_asks_other_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.train_whisper._NUM_UTTERANCES", 20)
    plan = TrainingPlan(20, 5, num_threads=1, examples_per_step=8)
    steps = list(islice(questions_per_step(plan), 5))
    assert [any(q.previous for q in step) for step in steps] == [True, False, False, True, False]
    questions = [question for step in steps for question in step]
    assert {question.task for question in questions} == {"transcribe", "translate"}
    assert {question.marks_times for question in questions} == {False, True}
    assert {len(question.window.said) for question in questions} == {0, 1, 2, 3}
