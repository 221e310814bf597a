"""What the Whisper is asked and shall answer, in tokens, and where it shall listen for each.

A transcript is the control tokens, then for each utterance its text, between marks of time if they
are wanted. Where nobody speaks the first token is `<|nospeech|>`; a server goes on regardless, so
an empty transcript is learnt as well.
"""

from dataclasses import dataclass
from random import Random

from transformers import WhisperTokenizer

from demo.speech import Span
from demo.whisper_tokenizer import (
    END,
    MARKS_PER_SECOND,
    MAX_TOKENS,
    NO_SPEECH,
    NO_TIMES,
    NUM_MARKS,
    PREVIOUS,
    START,
    TASKS,
)
from demo.whisper_windows import Said, Window
from demo.whisper_words import MARKS, WORDS, asks_for_digits, written

NOT_LEARNT = -100  # what the losses pass over
_NOWHERE = Span(0.0, 0.0)  # no place to listen
_BEFORE, _AFTER = 0.1, 0.02  # seconds around a beginning in which it is heard; an end turned about


@dataclass(frozen=True)
class Question:
    """A window and what is wanted of it."""

    window: Window
    language: str  # that is spoken
    task: str
    marks_times: bool
    previous: str  # what was said before, or how the caller writes; empty for nothing

    def text(self, said: Said) -> str:
        """What is to be written for one utterance."""
        language = "en" if self.task == "translate" else self.language
        digits = asks_for_digits(self.previous)
        return written(said.utterance.words, language, with_digits=digits)


@dataclass(frozen=True)
class Answer:
    """The decoder's tokens; for each what comes next, and where in the window that is heard."""

    token_ids: list[int]
    labels: list[int]
    places: list[Span]


def any_question(rng: Random, window: Window, language: str, previous: str) -> Question:
    """Most of what is German is to be translated, too."""
    share_translated = 0.45 if language == "de" else 0.15
    task = "translate" if rng.random() < share_translated else "transcribe"
    return Question(window, language, task, rng.random() < 0.6, previous)


class Answers:
    """Writes down questions and their answers."""

    def __init__(self, tokenizer: WhisperTokenizer) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self._ids = {name: vocabulary[name] for name in (END, START, PREVIOUS, NO_SPEECH, NO_TIMES)}
        self._languages = {code: vocabulary[f"<|{code}|>"] for code in WORDS}
        self._tasks = {task: vocabulary[name] for task, name in TASKS.items()}

    def text_ids(self, text: str) -> list[int]:
        """The tokens of text alone, as it stands in an answer."""
        ids: list[int] = self._tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return ids

    def mark(self, seconds: float) -> int:
        """The token of a moment of the window."""
        return self._ids[NO_TIMES] + 1 + min(round(seconds * MARKS_PER_SECOND), NUM_MARKS)

    def written(self, question: Question) -> Answer:
        """The question's tokens and its answer's."""
        given = self._given(question)
        heard = self._heard(question)
        token_ids = [*given, *(token_id for token_id, _ in heard)]
        places = [*(_NOWHERE for _ in given), *(place for _, place in heard)]
        num_earlier = given.index(self._ids[START])
        labels = [*(NOT_LEARNT for _ in range(num_earlier)), *token_ids[num_earlier + 1 :]]
        if not question.window.said:
            labels[num_earlier : num_earlier + 2] = [self._ids[NO_SPEECH], NOT_LEARNT]
        return Answer(token_ids[:-1], labels, places[1:])

    def _given(self, question: Question) -> list[int]:
        """The control tokens, behind the end of what was said before."""
        earlier = self._earlier_ids(question.previous)
        controls = [
            self._ids[START],
            self._languages[question.language],
            self._tasks[question.task],
            *(() if question.marks_times else (self._ids[NO_TIMES],)),
        ]
        if earlier:
            controls = [self._ids[PREVIOUS], *earlier[-(MAX_TOKENS // 2 - 1) :], *controls]
        return controls

    def _earlier_ids(self, previous: str) -> list[int]:
        """The tokens of what was said before, in which times may be marked."""
        ids = list[int]()
        for part in MARKS.split(previous):
            if MARKS.fullmatch(part):
                ids.append(self.mark(float(part[2:-2])))
            elif text := part.strip():
                ids += self.text_ids(text)
        return ids

    def _heard(self, question: Question) -> list[tuple[int, Span]]:
        """The answer's tokens, each with its place."""
        said = question.window.said
        heard = [token for each in said for token in self._utterance(question, each)]
        if question.marks_times and not said:
            heard.append((self.mark(0), _NOWHERE))
        whole = [each for each in said if not each.is_cut]
        end = _NOWHERE if question.marks_times or not whole else _at_end(whole[-1])
        return [*heard, (self._ids[END], end)]

    def _utterance(self, question: Question, said: Said) -> list[tuple[int, Span]]:
        """The words, each heard while it is said; the marks are heard at the words' edges."""
        words = question.text(said).split()
        if said.is_cut:  # its words are for the next window, which begins before it
            return [(self.mark(said.span.start), _at_start(said))] if question.marks_times else []
        tokens = [
            (token_id, place)
            for word, place in zip(words, said.words, strict=True)
            for token_id in self.text_ids(word)
        ]
        if not question.marks_times:
            return tokens
        first, last = (self.mark(edge) for edge in said.span)
        return [(first, _at_start(said)), *tokens, (last, _at_end(said))]


def _at_start(said: Said) -> Span:
    return Span(max(0.0, said.span.start - _BEFORE), said.span.start + _AFTER)


def _at_end(said: Said) -> Span:
    return Span(said.span.end - _AFTER, said.span.end + _BEFORE)
