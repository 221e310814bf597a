"""Steps of token ids to steps of text: what goes to whom, and what is forgotten."""

import subprocess
import sys
from dataclasses import replace

import pytest

from shared.config import Identity
from shared.errors import ErrorCode
from shared.messages import (
    Abort,
    AddressBook,
    RequestFailed,
    StepsAcknowledged,
    TextProduced,
    TokensSampled,
)
from shared.parts import (
    Peer,
    RequestLost,
    RequestStarted,
    Route,
    SequenceEnded,
    TextEnded,
    TextOptions,
    TextStart,
    TokenLogprobs,
)
from tests.builders import ROUTE
from tests.fakes import FakeMailbox
from tests.tokenizer_proc.marks import THINK
from tests.tokenizer_proc.vocabularies import END, make_byte_tokenizer
from tokenizer_proc.answer import Answer, Piece
from tokenizer_proc.detokenizer import Detokenizer

VOCABULARY = make_byte_tokenizer().backend_tokenizer
(END_ID,) = VOCABULARY.encode(END).ids


EPOCH = 3  # the worker's life


class Bench:
    """A detokenizer with a worker that a test plays by hand."""

    def __init__(self) -> None:
        identity = Identity("detokenizer", 0, 1, "/nowhere")
        self.mailbox = FakeMailbox(identity, "frontend-0", "frontend-1")
        self.mailbox.peers["worker-0"] = Peer("worker-0", EPOCH, "ipc:///nowhere", True, None)
        self.detokenizer = Detokenizer(self.mailbox, VOCABULARY)
        self._seqs: dict[str, int] = {}
        self._step = 0

    def step(
        self,
        tokens: dict[str, str] | None = None,
        *,
        starts: tuple[RequestStarted, ...] = (),
        ends: tuple[SequenceEnded, ...] = (),
    ) -> list[TextProduced]:
        """One step that gives each answer one byte, or its end token for the empty string.

        `a` is the first answer of request a, `a/1` its second.
        """
        self._step += 1
        tokens = tokens or {}
        seqs = tuple(self._seqs.get(name, 0) for name in tokens)
        self._seqs |= {name: seq + 1 for name, seq in zip(tokens, seqs, strict=True)}
        ids = tuple(VOCABULARY.encode(text).ids[0] if text else END_ID for text in tokens.values())
        names = [name.partition("/") for name in tokens]
        requests = tuple(request_id for request_id, _, _ in names)
        choices = tuple(int(choice or 0) for _, _, choice in names)
        self.mailbox.sent.clear()
        self.mailbox.deliver(
            TokensSampled(0, EPOCH, self._step, starts, requests, choices, seqs, ids, (), ends)
        )
        self.detokenizer.serve_once(timeout_seconds=0.0)
        return self.mailbox.of_type(TextProduced)

    def revive_worker(self, epoch: int | None) -> None:
        """The worker has another life, or none."""
        worker = Peer("worker-0", epoch or 0, "ipc:///nowhere", True, None)
        others = [peer for room, peer in self.mailbox.peers.items() if room != "worker-0"]
        peers = (*others, worker) if epoch is not None else tuple(others)
        self.mailbox.deliver(AddressBook(tuple(peers), is_warm=True))

    def skip(self, name: str) -> None:
        """Loses one token of an answer."""
        self._seqs[name] += 1

    def failures(self) -> list[str]:
        """Requests that failed in the last step."""
        return [failed.request_id for failed in self.mailbox.of_type(RequestFailed)]


def start(
    request_id: str,
    frontend_id: int = 0,
    stop: tuple[str, ...] = (),
    num_choices: int = 1,
    cached_tokens: int = 0,
    min_tokens: int = 0,
) -> RequestStarted:
    """The first word about a request."""
    text = TextStart(request_id, Route(frontend_id, 1, 1), (), TextOptions(stop), min_tokens)
    return RequestStarted(text, num_choices, cached_tokens, ())


def ended(request_id: str, reason: str, *, choice: int = 0, hides: bool = False) -> SequenceEnded:
    """The worker's last word about an answer."""
    return SequenceEnded(request_id, choice, reason, hides)


def test_one_step_is_one_message_to_each_frontend() -> None:
    bench = Bench()
    starts = (start("a"), start("b"), start("c", frontend_id=1))
    produced = bench.step({"a": "x", "b": "y", "c": "z"}, starts=starts)
    assert [message.request_ids for message in produced] == [("a", "b"), ("c",)]
    assert [message.texts for message in produced] == [("x", "y"), ("z",)]
    assert {message.epoch for message in produced} == {EPOCH}


def test_every_step_is_acknowledged_with_the_workers_epoch() -> None:
    bench = Bench()
    bench.step({"a": "x"}, starts=(start("a"),))
    assert ("worker-0", StepsAcknowledged(0, 3, 1)) in bench.mailbox.sent


def test_a_step_is_acknowledged_until_the_worker_is_reached() -> None:
    bench = Bench()
    bench.mailbox.unreachable.add("worker-0")
    bench.step({"a": "x"}, starts=(start("a"),))
    bench.step({"a": "y"})
    assert bench.mailbox.of_type(StepsAcknowledged) == []
    bench.mailbox.unreachable.clear()
    for _ in range(2):
        bench.detokenizer.serve_once(timeout_seconds=0.0)
    assert bench.mailbox.of_type(StepsAcknowledged) == [StepsAcknowledged(0, EPOCH, 2)]


def test_the_next_worker_is_not_told_what_a_dead_one_was_owed() -> None:
    bench = Bench()
    bench.mailbox.unreachable.add("worker-0")
    bench.step({"a": "x"}, starts=(start("a"),))
    bench.mailbox.unreachable.clear()
    bench.revive_worker(EPOCH + 1)
    bench.detokenizer.serve_once(timeout_seconds=0.0)
    assert bench.mailbox.of_type(StepsAcknowledged) == []


def test_an_end_token_counts_and_is_not_shown() -> None:
    bench = Bench()
    bench.step({"a": "x"}, starts=(start("a"),))
    (produced,) = bench.step({"a": ""}, ends=(ended("a", "stop", hides=True),))
    assert produced.texts == ("",)
    assert produced.ended[0].finish_reason == "stop"
    assert produced.completion_tokens == (2,)
    assert bench.detokenizer.num_answers == 0


def test_a_stop_string_over_several_tokens_is_held_back_cut_and_aborts_the_rest() -> None:
    bench = Bench()
    texts = [bench.step({"a": "x"}, starts=(start("a", stop=("abc",)),))[0].texts]
    texts += [bench.step({"a": letter})[0].texts for letter in "ab"]
    (last,) = bench.step({"a": "c"})
    assert [*texts, last.texts] == [("x",), ("",), ("",), ("",)]
    assert (last.ended[0].finish_reason, last.completion_tokens) == ("stop", (4,))
    assert ("worker-0", Abort("a", 0)) in bench.mailbox.sent
    assert bench.detokenizer.num_answers == 0


def test_tokens_after_a_stop_string_are_dropped() -> None:
    bench = Bench()
    bench.step({"a": "q"}, starts=(start("a", stop=("q",)),))
    assert bench.step({"a": "r"}) == []
    assert bench.step(ends=(ended("a", "abort"),)) == []


def test_stop_strings_are_looked_for_behind_the_least_number_of_tokens() -> None:
    bench = Bench()
    texts = [bench.step({"a": "q"}, starts=(start("a", stop=("q",), min_tokens=3),))[0].texts]
    texts += [bench.step({"a": letter})[0].texts for letter in "rq"]
    (last,) = bench.step({"a": "q"})
    assert [*texts, last.texts] == [("q",), ("r",), ("q",), ("",)]
    assert (last.ended[0].finish_reason, last.completion_tokens) == ("stop", (4,))


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
    bench.mailbox.deliver(
        TokensSampled(0, 3, 1, (start("a"),), ("a",), (0,), (0,), (ids[0],), (), ())
    )
    bench.mailbox.deliver(TokensSampled(0, 3, 2, (), ("a",), (0,), (1,), (ids[1],), (), ()))
    for _ in range(2):
        bench.detokenizer.serve_once(timeout_seconds=0.0)
    assert [message.texts for message in bench.mailbox.of_type(TextProduced)] == [("",), ("é",)]


def test_a_lost_token_fails_its_request_and_no_other() -> None:
    bench = Bench()
    bench.step({"a": "x", "b": "x"}, starts=(start("a"), start("b")))
    bench.skip("a")
    (produced,) = bench.step({"a": "y", "b": "y"})
    assert produced.request_ids == ("b",)
    assert bench.failures() == ["a"]
    assert ("worker-0", Abort("a")) in bench.mailbox.sent


def test_an_answer_that_breaks_the_decoder_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.step({"a": "x", "b": "x"}, starts=(start("a"), start("b")))
    whole = Answer.add

    def fragile(
        answer: Answer, token_id: int, told: TokenLogprobs | None, end: SequenceEnded | None
    ) -> Piece:
        if token_id == VOCABULARY.encode("!").ids[0]:
            raise MemoryError
        return whole(answer, token_id, told, end)

    monkeypatch.setattr(Answer, "add", fragile)
    (produced,) = bench.step({"a": "!", "b": "y"})
    assert produced.request_ids == ("b",)
    assert bench.failures() == ["a"]
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


def test_answers_to_one_prompt_have_texts_of_their_own() -> None:
    bench = Bench()
    started = start("a", num_choices=3, cached_tokens=32)
    (first,) = bench.step({"a/1": "x", "a/0": "y"}, starts=(started,))
    assert (first.request_ids, first.choices) == (("a", "a"), (1, 0))
    assert (first.texts, first.seqs, first.completion_tokens) == (("x", "y"), (0, 0), (1, 1))
    (second,) = bench.step({"a/2": "z", "a/1": "u"}, ends=(ended("a", "length", choice=1),))
    assert (second.choices, second.seqs) == ((2, 1), (0, 1))
    assert (second.texts, second.completion_tokens) == (("z", "u"), (1, 2))
    assert second.ended == (TextEnded("a", 1, "length", None, 32),)
    assert bench.detokenizer.num_answers == 2


def test_a_character_in_two_answers_is_put_together_in_each() -> None:
    bench = Bench()
    first, second = VOCABULARY.encode("é").ids
    both = (("a", "a"), (0, 1))
    bench.mailbox.deliver(
        TokensSampled(0, 3, 1, (start("a", num_choices=2),), *both, (0, 0), (first, first), (), ()),
        TokensSampled(0, 3, 2, (), *both, (1, 1), (second, second), (), ()),
    )
    bench.detokenizer.serve_once(timeout_seconds=0.0)
    texts = [message.texts for message in bench.mailbox.of_type(TextProduced)]
    assert texts == [("", ""), ("é", "é")]


def test_a_stop_string_ends_its_own_answer_alone() -> None:
    bench = Bench()
    bench.step({"a": "q", "a/1": "x"}, starts=(start("a", stop=("xy",), num_choices=2),))
    (produced,) = bench.step({"a": "r", "a/1": "y"})
    assert produced.texts == ("r", "")
    assert produced.ended == (TextEnded("a", 1, "stop", "xy", 0),)
    aborts = [message for message in bench.mailbox.sent if isinstance(message[1], Abort)]
    assert aborts == [("worker-0", Abort("a", 1))]
    (later,) = bench.step({"a": "s", "a/1": "z"})
    assert (later.choices, later.texts) == ((0,), ("s",)), "the stopped answer says no more"
    (last,) = bench.step(
        {"a": "t"}, ends=(ended("a", "abort", choice=1), ended("a", "length", choice=0))
    )
    assert last.ended == (TextEnded("a", 0, "length", None, 0),)
    assert bench.detokenizer.num_answers == 0


def test_one_failed_answer_ends_its_request_once_and_all_of_it() -> None:
    bench = Bench()
    bench.step({"a": "x", "b": "x"}, starts=(start("a", num_choices=3), start("b")))
    failed = (ended("a", "error", choice=1), ended("a", "error", choice=2))
    bench.step({"b": "y"}, ends=failed)
    assert bench.failures() == ["a"]
    aborts = [message for message in bench.mailbox.sent if isinstance(message[1], Abort)]
    assert aborts == [("worker-0", Abort("a"))]
    assert bench.detokenizer.num_answers == 1
    (later,) = bench.step({"a": "z", "b": "z"}, ends=(ended("a", "abort"),))
    assert later.request_ids == ("b",), "nothing follows a failure"
    assert bench.failures() == []


def test_no_text_of_a_request_follows_its_failure() -> None:
    bench = Bench()
    names = ("a/0", "a/1", "a/2", "b")
    bench.step(dict.fromkeys(names, "x"), starts=(start("a", num_choices=3), start("b")))
    bench.skip("a/1")
    (produced,) = bench.step(dict.fromkeys(names, "y"))
    assert list(zip(produced.request_ids, produced.choices, strict=True)) == [("a", 0), ("b", 0)]
    told = [message for room, message in bench.mailbox.sent if room == "frontend-0"]
    assert told.index(produced) == 0
    assert [type(message) for message in told[1:]] == [RequestFailed]
    assert bench.step({"a/0": "z"}) == []
    assert bench.detokenizer.num_answers == 1


def test_thoughts_are_a_column_of_their_own_where_there_are_any() -> None:
    bench = Bench()
    marks = replace(THINK, prefix="<think>")
    thinking = RequestStarted(TextStart("a", ROUTE, (), TextOptions(), thoughts=marks), 1, 0, ())
    (first,) = bench.step({"a": "x", "b": "y"}, starts=(thinking, start("b")))
    assert (first.thoughts, first.texts) == (("x", ""), ("", "y"))
    for letter in "</think>":
        (produced,) = bench.step({"a": letter, "b": letter})
        assert (produced.thoughts, produced.texts) == ((), ("", letter))
    ends = (ended("a", "length"), ended("b", "length"))
    (last,) = bench.step({"a": "z", "b": "z"}, ends=ends)
    assert (last.thoughts, last.texts) == ((), ("z", "z"))
    assert [end.reasoning_tokens for end in last.ended] == [len("x</think>"), 0]


def test_it_never_loads_torch() -> None:
    """Not even when it reads thoughts: of transformers it uses the response parser alone."""
    script = (
        "import sys, tokenizer_proc.detokenizer\n"
        "from tests.tokenizer_proc.marks import THINK\n"
        "from tokenizer_proc.thoughts import ThoughtSplitter\n"
        "ThoughtSplitter(THINK).add('<think>a</think>b', is_last=True)\n"
        "heavy = ('torch', 'transformers.tokenization_utils_base', 'transformers.modeling_utils')\n"
        "print(set(heavy) & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"


# ── lives ────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_that_dies_leaves_nothing_behind() -> None:
    bench = Bench()
    bench.step({"a": "x", "b": "y"}, starts=(start("a"), start("b")))
    bench.revive_worker(epoch=None)
    assert bench.step({"a": "z"}) == []
    assert bench.detokenizer.num_answers == 0


def test_steps_of_a_dead_life_are_neither_text_nor_acknowledged() -> None:
    bench = Bench()
    bench.step({"a": "x"}, starts=(start("a"),))
    bench.revive_worker(epoch=EPOCH + 1)
    assert bench.step({"c": "x"}, starts=(start("c"),)) == []
    assert bench.mailbox.of_type(StepsAcknowledged) == []
    assert bench.detokenizer.num_answers == 0


def test_a_request_that_never_reached_the_worker_fails() -> None:
    bench = Bench()
    bench.mailbox.deliver(
        TokensSampled(0, EPOCH, 1, (), (), (), (), (), (), (), (RequestLost("a", 1),))
    )
    bench.detokenizer.serve_once(timeout_seconds=0.0)
    (failed,) = bench.mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.code) == ("a", ErrorCode.ENGINE_DEAD)
    assert [room for room, m in bench.mailbox.sent if m is failed] == ["frontend-1"]
