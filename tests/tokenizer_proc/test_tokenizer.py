"""The tokenizer's room: who is told what, and that no command ends the process."""

from dataclasses import replace
from typing import Any

import pytest

from shared.config import Identity
from shared.messages import (
    Abort,
    CreditGranted,
    Decode,
    Decoded,
    Embed,
    Encode,
    Encoded,
    Generate,
    Message,
    Pool,
    PromptAccepted,
    RequestFailed,
    Tokenize,
)
from shared.parts import (
    ChatPrompt,
    EmbeddingFacts,
    ModelFacts,
    Peer,
    Prompt,
    Route,
    TextOptions,
    TextPrompt,
)
from shared.sampling import MAX_PROMPT_LOGPROBS
from tests.builders import GREEDY, ROUTE
from tests.fakes import FakeMailbox
from tests.tokenizer_proc.vocabularies import make_byte_tokenizer
from tokenizer_proc.generation import PROMPT_TAIL
from tokenizer_proc.prompt import PromptEncoder
from tokenizer_proc.tokenizer import CREDIT, Tokenizer

CONTEXT = 100
ENCODER = PromptEncoder(make_byte_tokenizer())
HELLO = Prompt(text=TextPrompt("hello"), param="prompt")
LOADED = ModelFacts(max_model_len=CONTEXT, vocab_size=640, sampling_defaults={}, details={})


def tokenize(request_id: str = "a", content: Any = "hello", **fields: Any) -> Tokenize:
    """A request of one user message."""
    prompt = Prompt(chat=ChatPrompt(({"role": "user", "content": content},), {}))
    defaults = {
        "route": ROUTE, "worker_id": 0, "prompt": prompt, "max_tokens": 5,
        "max_tokens_param": "max_tokens", "max_prompt_scores": MAX_PROMPT_LOGPROBS,
        "is_strict": False, "echo": False, "text": TextOptions(), "sampling": GREEDY,
        "num_choices": 1, "cache_salt": "",
    }  # fmt: skip
    return Tokenize(request_id, **{**defaults, **fields})


def encode(request_id: str = "a", prompt: Prompt = HELLO) -> Encode:
    return Encode(request_id, 0, prompt, wants_strings=True)


def serve(
    *messages: Message, worker: ModelFacts | None = LOADED, worker_is_reachable: bool = True
) -> FakeMailbox:
    """Runs a tokenizer over these messages, all in one delivery."""
    mailbox = FakeMailbox(Identity("tokenizer", 0, 1, "/nowhere"), "frontend-0")
    mailbox.peers["worker-0"] = Peer("worker-0", 1, "ipc:///nowhere/worker-0", True, worker)
    if not worker_is_reachable:
        mailbox.unreachable.add("worker-0")
    mailbox.deliver(*messages)
    Tokenizer(mailbox, ENCODER).run()
    return mailbox


def test_a_frontend_gets_its_first_credit_and_one_back_for_each_command() -> None:
    commands = (tokenize("a"), tokenize("b", content=None), encode("c"), Decode("d", 0, (1, 999)))
    granted = serve(*commands).of_type(CreditGranted)
    assert [grant.count for grant in granted] == [CREDIT, 1, 1, 1, 1]


def test_what_a_dead_frontend_asked_gives_its_next_life_no_credit() -> None:
    first, next_life = Route(0, 0, 1), Route(0, 1, 1)  # the book says that frontend-0 is in epoch 1
    mailbox = serve(tokenize("a", route=first), tokenize("b", route=next_life))
    assert [grant.count for grant in mailbox.of_type(CreditGranted)] == [CREDIT, 1]
    assert [generate.request_id for generate in mailbox.of_type(Generate)] == ["b"]


def test_a_prompt_is_accepted_before_the_worker_can_answer_it() -> None:
    mailbox = serve(tokenize())
    kinds = [type(message) for _, message in mailbox.sent]
    assert kinds.index(PromptAccepted) < kinds.index(Generate)
    (generate,) = mailbox.of_type(Generate)
    (accepted,) = mailbox.of_type(PromptAccepted)
    assert accepted.prompt_tokens == len(generate.prompt_token_ids)
    assert generate.text.prompt_tail == generate.prompt_token_ids[-PROMPT_TAIL:]


def test_what_is_not_text_goes_on_to_the_worker_as_it_came() -> None:
    options = TextOptions(stop=("x",), includes_stop=True)
    message = tokenize(num_choices=7, cache_salt="pepper", text=options)
    (generate,) = serve(message).of_type(Generate)
    assert (generate.num_choices, generate.cache_salt) == (7, "pepper")
    assert (generate.sampling, generate.text.options) == (message.sampling, options)


def test_the_context_is_the_workers() -> None:
    mailbox = serve(tokenize(content="x" * CONTEXT), tokenize("good"))
    (failed,) = mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.code.value, failed.param) == (
        "a",
        "context_length_exceeded",
        "messages",
    )
    assert f"maximum context length is {CONTEXT} tokens" in failed.message
    assert [generate.request_id for generate in mailbox.of_type(Generate)] == ["good"]


def test_a_lookup_is_answered_to_the_frontend_without_a_worker() -> None:
    hello = ENCODER.encode(HELLO)
    mailbox = serve(encode("a"), Decode("b", 0, tuple(hello)), worker=None)
    answers = [message for _, message in mailbox.sent if not isinstance(message, CreditGranted)]
    assert answers == [Encoded("a", tuple(hello), ("h", "e", "l", "l", "o")), Decoded("b", "hello")]
    assert {room for room, _ in mailbox.sent} == {"frontend-0"}


def test_a_lookup_may_be_longer_than_the_context() -> None:
    prompt = Prompt(text=TextPrompt("x" * 5000), param="prompt")
    (answer,) = serve(encode(prompt=prompt)).of_type(Encoded)
    assert len(answer.token_ids) == 5000


def test_a_lookup_with_a_mistake_fails_with_its_field() -> None:
    (failed,) = serve(Decode("a", 0, (1, 999))).of_type(RequestFailed)
    assert (failed.request_id, failed.code.value, failed.param) == ("a", "invalid_value", "tokens")


class Panic(BaseException):
    """What the tokenizers library raises when it panics is no Exception."""


@pytest.mark.parametrize("error", [MemoryError, Panic])
def test_a_command_that_breaks_the_tokenizer_fails_alone(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    whole = ENCODER.encode

    def fragile(prompt: Prompt, context: int | None = None) -> list[int]:
        if prompt.text is not None:
            raise error
        return whole(prompt, context)

    monkeypatch.setattr(ENCODER, "encode", fragile)
    mailbox = serve(tokenize("bad", prompt=HELLO), encode("worse"), tokenize("good"))
    failures = [(failed.request_id, failed.code.value) for failed in mailbox.of_type(RequestFailed)]
    assert failures == [("bad", "internal_error"), ("worse", "internal_error")]
    assert [generate.request_id for generate in mailbox.of_type(Generate)] == ["good"]
    assert len(mailbox.of_type(CreditGranted)) == 4


def test_an_abort_that_comes_with_its_command_saves_the_work() -> None:
    commands = (tokenize("a"), encode("b"), Decode("c", 0, (1,)), tokenize("d"))
    mailbox = serve(*commands, Abort("a"), Abort("b"), Abort("c"))
    answered = [message for _, message in mailbox.sent if not isinstance(message, CreditGranted)]
    assert [type(message) for message in answered] == [PromptAccepted, Generate]
    assert [generate.request_id for generate in mailbox.of_type(Generate)] == ["d"]
    assert len(mailbox.of_type(CreditGranted)) == 5  # the credit comes back all the same


def test_a_worker_that_cannot_be_reached_fails_the_request() -> None:
    (failed,) = serve(tokenize(), worker_is_reachable=False).of_type(RequestFailed)
    assert failed.code.value == "engine_dead"


def test_a_worker_that_has_not_loaded_fails_the_request() -> None:
    mailbox = serve(tokenize(), worker=None)
    assert [failed.code.value for failed in mailbox.of_type(RequestFailed)] == ["engine_dead"]
    assert not mailbox.of_type(PromptAccepted)


LONG = Prompt(text=TextPrompt("a" * 60), param="input")
EMBEDDER = replace(LOADED, embeddings=EmbeddingFacts(8))


def embed(request_id: str, count: int) -> Embed:
    """More characters than are encoded at a time, if there are many."""
    return Embed(request_id, replace(ROUTE, detokenizer_epoch=None), 0, (LONG,) * count, None, "")


def test_many_inputs_delay_nobody() -> None:
    many = embed("many", 1000)
    mailbox = serve(many, embed("few", 2), tokenize("chat"), worker=EMBEDDER)
    orders = [m for _, m in mailbox.sent if isinstance(m, Pool | Generate)]
    assert [order.request_id for order in orders] == ["chat", "few", "many"]
    assert [len(order.inputs) for order in orders if isinstance(order, Pool)] == [2, 1000]
    assert sum(grant.count for grant in mailbox.of_type(CreditGranted)) == CREDIT + 3


def test_inputs_that_nobody_wants_any_more_are_dropped() -> None:
    mailbox = FakeMailbox(Identity("tokenizer", 0, 1, "/nowhere"), "frontend-0")
    mailbox.peers["worker-0"] = Peer("worker-0", 1, "ipc:///nowhere/worker-0", True, EMBEDDER)
    tokenizer = Tokenizer(mailbox, ENCODER)
    tokenizer._handle(embed("many", 1000))
    tokenizer._take_a_turn()
    assert mailbox.of_type(CreditGranted) == []
    tokenizer._handle(Abort("many"))
    tokenizer._take_a_turn()
    assert [grant.count for grant in mailbox.of_type(CreditGranted)] == [1]
    assert mailbox.of_type(PromptAccepted) == []


def test_one_input_that_is_refused_refuses_its_request() -> None:
    bad = replace(embed("bad", 1), inputs=(LONG, Prompt(text=TextPrompt("a" * 101), param="input")))
    mailbox = serve(bad, embed("good", 1), worker=EMBEDDER)
    assert [failed.request_id for failed in mailbox.of_type(RequestFailed)] == ["bad"]
    assert [order.request_id for order in mailbox.of_type(Pool)] == ["good"]
    assert sum(grant.count for grant in mailbox.of_type(CreditGranted)) == CREDIT + 2
