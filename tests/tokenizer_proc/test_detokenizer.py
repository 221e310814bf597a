"""Steps of token ids to steps of text: what goes to whom, and what is forgotten."""

import subprocess
import sys

import pytest

from shared.config import Identity
from shared.messages import (
    Abort,
    RequestFailed,
    SequenceEnded,
    StepsAcknowledged,
    TextProduced,
    TextStart,
    TokensSampled,
)
from tests.fakes import FakeMailbox
from tests.tokenizer_proc.vocabularies import END, make_byte_tokenizer
from tokenizer_proc.answer import Answer
from tokenizer_proc.detokenizer import Detokenizer

VOCABULARY = make_byte_tokenizer().backend_tokenizer
(END_ID,) = VOCABULARY.encode(END).ids


class Bench:
    """A detokenizer with a worker that a test plays by hand."""

    def __init__(self) -> None:
        identity = Identity("detokenizer", 0, 1, "/nowhere")
        self.mailbox = FakeMailbox(identity, "worker-0", "frontend-0", "frontend-1")
        self.detokenizer = Detokenizer(self.mailbox, VOCABULARY)
        self._seqs: dict[str, int] = {}
        self._step = 0

    def step(
        self,
        tokens: dict[str, str] | None = None,
        *,
        starts: tuple[TextStart, ...] = (),
        ends: tuple[SequenceEnded, ...] = (),
    ) -> list[TextProduced]:
        """One step that gives each request one byte, or its end token for the empty string."""
        self._step += 1
        tokens = tokens or {}
        seqs = tuple(self._seqs.get(request_id, 0) for request_id in tokens)
        self._seqs |= {request_id: seq + 1 for request_id, seq in zip(tokens, seqs, strict=True)}
        ids = tuple(VOCABULARY.encode(text).ids[0] if text else END_ID for text in tokens.values())
        self.mailbox.sent.clear()
        self.mailbox.deliver(
            TokensSampled(0, 3, self._step, starts, tuple(tokens), seqs, ids, ends)
        )
        self.detokenizer.serve_once(timeout_seconds=0.0)
        return self.mailbox.of_type(TextProduced)

    def skip(self, request_id: str) -> None:
        """Loses one token of a request."""
        self._seqs[request_id] += 1


def start(request_id: str, frontend_id: int = 0, stop: tuple[str, ...] = ()) -> TextStart:
    """The first word about a request."""
    return TextStart(request_id, frontend_id, (), stop)


def ended(request_id: str, reason: str, *, hides: bool = False) -> SequenceEnded:
    """The worker's last word about a request."""
    return SequenceEnded(request_id, reason, hides)


def test_one_step_is_one_message_to_each_frontend() -> None:
    bench = Bench()
    starts = (start("a"), start("b"), start("c", frontend_id=1))
    produced = bench.step({"a": "x", "b": "y", "c": "z"}, starts=starts)
    assert [message.request_ids for message in produced] == [("a", "b"), ("c",)]
    assert [message.texts for message in produced] == [("x", "y"), ("z",)]
    assert {message.epoch for message in produced} == {3}


def test_every_step_is_acknowledged_with_the_workers_epoch() -> None:
    bench = Bench()
    bench.step({"a": "x"}, starts=(start("a"),))
    assert ("worker-0", StepsAcknowledged(3, 1)) in bench.mailbox.sent


def test_an_end_token_counts_and_is_not_shown() -> None:
    bench = Bench()
    bench.step({"a": "x"}, starts=(start("a"),))
    (produced,) = bench.step({"a": ""}, ends=(ended("a", "stop", hides=True),))
    assert produced.texts == ("",)
    assert produced.ended[0].finish_reason == "stop"
    assert produced.ended[0].completion_tokens == 2
    assert bench.detokenizer.num_answers == 0


def test_a_stop_string_over_several_tokens_is_held_back_cut_and_aborts_the_rest() -> None:
    bench = Bench()
    texts = [bench.step({"a": "x"}, starts=(start("a", stop=("abc",)),))[0].texts]
    texts += [bench.step({"a": letter})[0].texts for letter in "ab"]
    (last,) = bench.step({"a": "c"})
    assert [*texts, last.texts] == [("x",), ("",), ("",), ("",)]
    assert (last.ended[0].finish_reason, last.ended[0].completion_tokens) == ("stop", 4)
    assert ("worker-0", Abort("a")) in bench.mailbox.sent
    assert bench.detokenizer.num_answers == 0


def test_tokens_after_a_stop_string_are_dropped() -> None:
    bench = Bench()
    bench.step({"a": "q"}, starts=(start("a", stop=("q",)),))
    assert bench.step({"a": "r"}) == []
    assert bench.step(ends=(ended("a", "abort"),)) == []


def test_half_a_stop_string_is_released_at_the_length() -> None:
    bench = Bench()
    bench.step({"a": "x"}, starts=(start("a", stop=("abc",)),))
    bench.step({"a": "a"})
    (last,) = bench.step({"a": "b"}, ends=(ended("a", "length"),))
    assert last.texts == ("ab",)
    assert last.ended[0].finish_reason == "length"


def test_a_character_is_never_split() -> None:
    bench = Bench()
    ids = VOCABULARY.encode("é").ids
    assert len(ids) == 2
    bench.mailbox.deliver(TokensSampled(0, 3, 1, (start("a"),), ("a",), (0,), (ids[0],), ()))
    bench.mailbox.deliver(TokensSampled(0, 3, 2, (), ("a",), (1,), (ids[1],), ()))
    for _ in range(2):
        bench.detokenizer.serve_once(timeout_seconds=0.0)
    assert [message.texts for message in bench.mailbox.of_type(TextProduced)] == [("",), ("é",)]


def test_a_lost_token_fails_its_request_and_no_other() -> None:
    bench = Bench()
    bench.step({"a": "x", "b": "x"}, starts=(start("a"), start("b")))
    bench.skip("a")
    (produced,) = bench.step({"a": "y", "b": "y"})
    assert produced.request_ids == ("b",)
    assert [failed.request_id for failed in bench.mailbox.of_type(RequestFailed)] == ["a"]
    assert ("worker-0", Abort("a")) in bench.mailbox.sent


def test_an_answer_that_breaks_the_decoder_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.step({"a": "x", "b": "x"}, starts=(start("a"), start("b")))
    whole = Answer.add

    def fragile(answer: Answer, token_id: int, end: SequenceEnded | None) -> str:
        if token_id == VOCABULARY.encode("!").ids[0]:
            raise MemoryError
        return whole(answer, token_id, end)

    monkeypatch.setattr(Answer, "add", fragile)
    (produced,) = bench.step({"a": "!", "b": "y"})
    assert produced.request_ids == ("b",)
    assert [failed.request_id for failed in bench.mailbox.of_type(RequestFailed)] == ["a"]
    assert ("worker-0", Abort("a")) in bench.mailbox.sent


def test_a_sequence_without_valid_logits_fails_with_a_sentence() -> None:
    bench = Bench()
    bench.step({"b": "x"}, starts=(start("a"), start("b")), ends=(ended("a", "error"),))
    (failed,) = bench.mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.code.value) == ("a", "internal_error")
    assert bench.detokenizer.num_answers == 1


def test_an_aborted_request_is_forgotten_without_a_word() -> None:
    bench = Bench()
    bench.step({"a": "x"}, starts=(start("a"),))
    assert bench.step(ends=(ended("a", "abort"),)) == []
    assert bench.detokenizer.num_answers == 0


def test_it_never_loads_torch_or_transformers() -> None:
    script = (
        "import sys, tokenizer_proc.detokenizer\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"
