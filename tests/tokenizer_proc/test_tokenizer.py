"""Prompts to Generate: who is told what, and that no prompt ends the process."""

from typing import Any

import pytest

from shared.config import Identity
from shared.messages import (
    Abort,
    CreditGranted,
    Generate,
    Message,
    Peer,
    PromptAccepted,
    RequestFailed,
    Tokenize,
)
from shared.sampling import SamplingParams
from tests.builders import GREEDY
from tests.fakes import FakeMailbox
from tests.tokenizer_proc.vocabularies import make_byte_tokenizer
from tokenizer_proc.prompt import PromptEncoder
from tokenizer_proc.tokenizer import CREDIT, PROMPT_TAIL, Tokenizer

CONTEXT = 100
ENCODER = PromptEncoder(make_byte_tokenizer())


def tokenize(request_id: str = "a", content: Any = "hello", **fields: Any) -> Tokenize:
    """A request of one user message."""
    defaults = {
        "frontend_id": 0, "worker_id": 0, "template_kwargs": {}, "max_tokens": 5, "stop": (),
        "sampling": GREEDY, "num_choices": 1, "cache_salt": "",
    }  # fmt: skip
    messages = ({"role": "user", "content": content},)
    return Tokenize(request_id, messages=messages, **{**defaults, **fields})


def serve(*messages: Message, worker_is_reachable: bool = True) -> FakeMailbox:
    """Runs a tokenizer over these messages, all in one delivery."""
    mailbox = FakeMailbox(Identity("tokenizer", 0, 1, "/nowhere"), "frontend-0")
    mailbox.peers["worker-0"] = Peer("worker-0", 1, "ipc:///nowhere/worker-0", True, CONTEXT)
    if not worker_is_reachable:
        mailbox.unreachable.add("worker-0")
    mailbox.deliver(*messages)
    Tokenizer(mailbox, ENCODER).run()
    return mailbox


def test_a_frontend_gets_its_first_credit_and_one_back_for_each_prompt() -> None:
    granted = serve(tokenize("a"), tokenize("b")).of_type(CreditGranted)
    assert [grant.count for grant in granted] == [CREDIT, 1, 1]


def test_a_prompt_is_accepted_before_the_worker_can_answer_it() -> None:
    mailbox = serve(tokenize())
    kinds = [type(message) for _, message in mailbox.sent]
    assert kinds.index(PromptAccepted) < kinds.index(Generate)
    (generate,) = mailbox.of_type(Generate)
    (accepted,) = mailbox.of_type(PromptAccepted)
    assert accepted.prompt_tokens == len(generate.prompt_token_ids)
    assert generate.text.prompt_tail == generate.prompt_token_ids[-PROMPT_TAIL:]


def test_what_is_not_text_goes_on_to_the_worker_as_it_came() -> None:
    message = tokenize(num_choices=7, cache_salt="pepper", stop=("x",), frontend_id=0)
    (generate,) = serve(message).of_type(Generate)
    assert (generate.num_choices, generate.cache_salt) == (7, "pepper")
    assert (generate.sampling, generate.text.stop) == (message.sampling, ("x",))


@pytest.mark.parametrize(("asked", "content"), [(None, "hello"), (10**6, "hello")])
def test_the_answer_is_clamped_to_what_the_context_leaves(asked: int | None, content: str) -> None:
    (generate,) = serve(tokenize(content=content, max_tokens=asked)).of_type(Generate)
    assert generate.max_tokens == CONTEXT - len(generate.prompt_token_ids)


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"logit_bias": ((5, 1.0), (258, 1.0))}, "logit_bias"),
        ({"logit_bias": ((9_999_999_999, 1.0),)}, "logit_bias"),
        ({"stop_token_ids": (0, 258)}, "stop_token_ids"),
    ],
)
def test_a_token_that_the_model_does_not_have_is_the_callers_mistake(
    settings: dict[str, Any], param: str
) -> None:
    (failed,) = serve(tokenize(sampling=SamplingParams(seed=1, **settings))).of_type(RequestFailed)
    assert (failed.code.value, failed.param) == ("invalid_value", param)
    assert "258" in failed.message


def test_every_token_of_the_vocabulary_may_be_biased_and_stopped_at() -> None:
    sampling = SamplingParams(seed=1, logit_bias=((257, 1.0),), stop_token_ids=(257,))
    (generate,) = serve(tokenize(sampling=sampling)).of_type(Generate)
    assert generate.sampling == sampling


def test_min_tokens_is_clamped_with_the_answer() -> None:
    sampling = SamplingParams(seed=1, min_tokens=10**6)
    (generate,) = serve(tokenize(sampling=sampling, max_tokens=None)).of_type(Generate)
    assert generate.sampling.min_tokens == generate.max_tokens < CONTEXT
    assert generate.text.min_tokens == generate.max_tokens


def test_a_prompt_as_long_as_the_context_is_refused_in_the_words_that_clients_look_for() -> None:
    mailbox = serve(tokenize(content="x" * CONTEXT), tokenize("good"))
    (failed,) = mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.code.value, failed.param) == (
        "a",
        "context_length_exceeded",
        "messages",
    )
    assert f"maximum context length is {CONTEXT} tokens" in failed.message
    assert [generate.request_id for generate in mailbox.of_type(Generate)] == ["good"]


def test_an_empty_prompt_is_the_callers_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ENCODER, "encode_chat", lambda *_, **__: [])
    (failed,) = serve(tokenize()).of_type(RequestFailed)
    assert (failed.code.value, failed.param) == ("invalid_value", "messages")


def test_a_prompt_that_breaks_the_tokenizer_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ENCODER.encode_chat

    def fragile(messages: Any, **kwargs: Any) -> list[int]:
        if messages[0]["content"] == "bomb":
            raise MemoryError
        return whole(messages, **kwargs)

    monkeypatch.setattr(ENCODER, "encode_chat", fragile)
    mailbox = serve(tokenize("bad", "bomb"), tokenize("good"))
    (failed,) = mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.code.value) == ("bad", "internal_error")
    assert [generate.request_id for generate in mailbox.of_type(Generate)] == ["good"]


def test_an_abort_that_comes_with_its_prompt_saves_the_work() -> None:
    mailbox = serve(tokenize("a"), Abort("a"), tokenize("b"))
    assert [generate.request_id for generate in mailbox.of_type(Generate)] == ["b"]
    assert len(mailbox.of_type(CreditGranted)) == 3  # the credit comes back all the same


def test_a_worker_that_is_gone_fails_the_request() -> None:
    (failed,) = serve(tokenize(), worker_is_reachable=False).of_type(RequestFailed)
    assert failed.code.value == "engine_dead"
