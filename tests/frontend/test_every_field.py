"""Each field that is obeyed changes something that can be named; a field that does not is a lie.

One row a field: a value, and where in the translated request it shows. The tables are compared with
the shapes that validate, so a field that is parsed and not used has no row and fails here.
"""

import json
from operator import attrgetter
from typing import Any

import pytest

from frontend import translate
from frontend.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from frontend.served_model import ServedModel
from frontend.submission import Embedding
from shared.config import FrontendConfig, ModelConfig
from shared.errors import ErrorCode, RequestError

MODEL = ServedModel(FrontendConfig(model=ModelConfig(hf_model="org/tiny")), created=1)
DEFAULTS = {"temperature": 0.5, "top_k": 7}
RULES = translate.Rules(MODEL, max_choices=8, sampling_defaults=DEFAULTS)
HELLO = [{"role": "user", "content": "hello"}]
ANSWER = [*HELLO, {"role": "assistant", "content": "Hi"}]

# Where the value is seen, what is sent, and what is seen.
Row = tuple[str, dict[str, Any], Any]

ANY_ANSWER: dict[str, Row] = {
    "stream": ("framing.stream", {"stream": True}, True),
    "stream_options": (
        "framing.include_usage",
        {"stream": True, "stream_options": {"include_usage": True}},
        True,
    ),
    "temperature": ("submission.sampling.temperature", {"temperature": 0.25}, 0.25),
    "top_p": ("submission.sampling.top_p", {"top_p": 0.5}, 0.5),
    "top_k": ("submission.sampling.top_k", {"top_k": 3}, 3),
    "min_p": ("submission.sampling.min_p", {"min_p": 0.25}, 0.25),
    "repetition_penalty": (
        "submission.sampling.repetition_penalty",
        {"repetition_penalty": 1.5},
        1.5,
    ),
    "frequency_penalty": (
        "submission.sampling.frequency_penalty",
        {"frequency_penalty": -1.5},
        -1.5,
    ),
    "presence_penalty": ("submission.sampling.presence_penalty", {"presence_penalty": 2}, 2.0),
    "logit_bias": ("submission.sampling.logit_bias", {"logit_bias": {"5": -100}}, ((5, -100.0),)),
    "min_tokens": ("submission.sampling.min_tokens", {"min_tokens": 3}, 3),
    "ignore_eos": ("submission.sampling.ignore_eos", {"ignore_eos": True}, True),
    "stop_token_ids": ("submission.sampling.stop_token_ids", {"stop_token_ids": [4]}, (4,)),
    "seed": ("submission.sampling.seed", {"seed": 11}, 11),
    "stop": ("submission.text.stop", {"stop": ["x", "y" * 256]}, ("x", "y" * 256)),
    "n": ("submission.num_choices", {"n": 3}, 3),
    "cache_salt": ("submission.cache_salt", {"cache_salt": "mine"}, "mine"),
    "skip_special_tokens": (
        "submission.text.skips_special_tokens",
        {"skip_special_tokens": False},
        False,
    ),
    "include_stop_str_in_output": (
        "submission.text.includes_stop",
        {"include_stop_str_in_output": True},
        True,
    ),
    "no_stop_trim": ("submission.text.includes_stop", {"no_stop_trim": True}, True),
    "truncate_prompt_tokens": ("prompt.truncate_to", {"truncate_prompt_tokens": 5}, 5),
    "truncate": ("prompt.truncate_to", {"truncate": -1}, -1),
    "max_tokens": ("submission.max_tokens", {"max_tokens": 5}, 5),
    "max_completion_tokens": (
        "submission.max_tokens",
        {"max_tokens": 5, "max_completion_tokens": 7},
        7,
    ),
}
CHAT: dict[str, Row] = ANY_ANSWER | {
    "messages": ("prompt.chat.messages", {"messages": ANSWER}, tuple(ANSWER)),
    "logprobs": ("submission.sampling.num_logprobs", {"logprobs": True}, 0),
    "top_logprobs": (
        "submission.sampling.num_logprobs",
        {"logprobs": True, "top_logprobs": 4},
        4,
    ),
    "add_special_tokens": ("prompt.chat.add_special_tokens", {"add_special_tokens": True}, True),
    "add_generation_prompt": (
        "prompt.chat.add_generation_prompt",
        {"add_generation_prompt": False},
        False,
    ),
    "continue_final_message": (
        "prompt.chat.continue_final_message",
        {"messages": ANSWER, "continue_final_message": True},
        True,
    ),
    "chat_template_kwargs": (
        "prompt.chat.template_kwargs",
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"enable_thinking": False},
    ),
    "reasoning_effort": (
        "prompt.chat.template_kwargs",
        {"reasoning_effort": "none"},
        {"reasoning_effort": "none", "enable_thinking": False},
    ),
    "separate_reasoning": (
        "submission.text.splits_thoughts",
        {"separate_reasoning": False},
        False,
    ),
    "include_reasoning": ("framing.reasoning_keys", {"include_reasoning": False}, ()),
}
COMPLETION: dict[str, Row] = ANY_ANSWER | {
    "prompt": ("prompt.text.text", {"prompt": "other"}, "other"),
    "suffix": ("prompt.text.suffix", {"suffix": "end"}, "end"),
    "add_special_tokens": ("prompt.text.add_special_tokens", {"add_special_tokens": False}, False),
    "logprobs": ("submission.sampling.num_logprobs", {"logprobs": 5}, 5),
    "echo": ("framing.echo", {"echo": True}, True),
}
EMBEDDING: dict[str, Row] = {
    "input": ("input.text.text", {"input": "other"}, "other"),
    "encoding_format": ("is_base64", {"encoding_format": "base64"}, True),
    "dimensions": ("wanted.dimensions", {"dimensions": 3}, 3),
    "truncate_prompt_tokens": ("input.truncate_to", {"truncate_prompt_tokens": 5}, 5),
    "add_special_tokens": ("input.text.add_special_tokens", {"add_special_tokens": False}, False),
    "cache_salt": ("wanted.cache_salt", {"cache_salt": "mine"}, "mine"),
}
TOKENIZE: dict[str, Row] = {
    "prompt": ("prompt.text.text", {"prompt": "other"}, "other"),
    "content": ("prompt.text.text", {"prompt": None, "content": "other"}, "other"),
    "messages": (
        "prompt.chat.messages",
        {"prompt": None, "messages": ANSWER},
        tuple(ANSWER),
    ),
    "add_special_tokens": ("prompt.text.add_special_tokens", {"add_special_tokens": False}, False),
    "add_generation_prompt": (
        "prompt.chat.add_generation_prompt",
        {"prompt": None, "messages": HELLO, "add_generation_prompt": False},
        False,
    ),
    "continue_final_message": (
        "prompt.chat.continue_final_message",
        {"prompt": None, "messages": ANSWER, "continue_final_message": True},
        True,
    ),
    "chat_template_kwargs": (
        "prompt.chat.template_kwargs",
        {"prompt": None, "messages": HELLO, "chat_template_kwargs": {"a": 1}},
        {"a": 1},
    ),
    "reasoning_effort": (
        "prompt.chat.template_kwargs",
        {"prompt": None, "messages": HELLO, "reasoning_effort": "none"},
        {"reasoning_effort": "none", "enable_thinking": False},
    ),
    "return_token_strs": ("wants_strings", {"return_token_strs": True}, True),
}


class Seen:
    """An ask and, for short, its only prompt."""

    def __init__(self, ask: translate.Ask) -> None:
        self.submission, self.framing = ask.submission, ask.framing
        (self.prompt,) = ask.submission.prompts


class SeenEmbedding:
    """A request for vectors and, for short, its only input."""

    def __init__(self, translated: tuple[Embedding, bool, str]) -> None:
        self.wanted, self.is_base64, _ = translated
        (self.input,) = self.wanted.inputs


def chat(**given: Any) -> Seen:
    return Seen(translate.chat(_json({"messages": HELLO, **given}), RULES, random_seed=5))


def completion(**given: Any) -> Seen:
    return Seen(translate.completion(_json({"prompt": "hello", **given}), RULES, random_seed=5))


def embedding(**given: Any) -> Any:
    return SeenEmbedding(translate.embedding(_json({"input": "hello", **given}), MODEL))


def tokenize(**given: Any) -> Any:
    return translate.tokenize(_json({"prompt": "hello", **given}), MODEL)[0]


def detokenize(**given: Any) -> Any:
    return translate.detokenize(_json({"tokens": [1], **given}), MODEL)[0]


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


ENDPOINTS: dict[str, tuple[Any, Any, dict[str, Row]]] = {
    "chat": (chat, ChatRequest, CHAT),
    "completion": (completion, CompletionRequest, COMPLETION),
    "embedding": (embedding, EmbeddingRequest, EMBEDDING),
    "tokenize": (tokenize, TokenizeRequest, TOKENIZE),
    "detokenize": (detokenize, DetokenizeRequest, {"tokens": ("token_ids", {"tokens": [3]}, (3,))}),
}
# What shows by an error alone: another model, and more candidates than answers.
SHOWN_BY_REFUSAL = {
    ("chat", "model"): ({"model": "other"}, ErrorCode.MODEL_NOT_FOUND),
    ("chat", "tools"): ({"tools": [{"type": "function"}]}, ErrorCode.UNSUPPORTED_PARAMETER),
    ("chat", "tool_choice"): ({"tool_choice": "required"}, ErrorCode.UNSUPPORTED_PARAMETER),
    ("completion", "model"): ({"model": "other"}, ErrorCode.MODEL_NOT_FOUND),
    ("completion", "best_of"): ({"best_of": 2}, ErrorCode.UNSUPPORTED_PARAMETER),
    ("embedding", "model"): ({"model": "other"}, ErrorCode.MODEL_NOT_FOUND),
    ("tokenize", "model"): ({"model": "other"}, ErrorCode.MODEL_NOT_FOUND),
    ("tokenize", "tools"): (
        {"prompt": None, "messages": HELLO, "tools": [{"type": "function"}]},
        ErrorCode.UNSUPPORTED_PARAMETER,
    ),
    ("tokenize", "tool_choice"): (
        {"prompt": None, "messages": HELLO, "tool_choice": "required"},
        ErrorCode.UNSUPPORTED_PARAMETER,
    ),
    ("detokenize", "model"): ({"model": "other"}, ErrorCode.MODEL_NOT_FOUND),
}
ROWS = [
    pytest.param(endpoint, *row, id=f"{endpoint} {name}")
    for endpoint, (_, _, table) in ENDPOINTS.items()
    for name, row in table.items()
]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_field_has_a_row(endpoint: str) -> None:
    _, shape, table = ENDPOINTS[endpoint]
    refused = {name for where, name in SHOWN_BY_REFUSAL if where == endpoint}
    assert table.keys() | refused == set(shape.__struct_fields__)


@pytest.mark.parametrize(("endpoint", "place", "given", "value"), ROWS)
def test_the_field_is_obeyed(endpoint: str, place: str, given: dict[str, Any], value: Any) -> None:
    translated = ENDPOINTS[endpoint][0]
    read = attrgetter(place)
    assert read(translated(**given)) == value
    conversation = {"prompt": None, "messages": HELLO} if "messages" in given else {}
    assert read(translated(**conversation if endpoint == "tokenize" else {})) != value


@pytest.mark.parametrize(("where", "row"), SHOWN_BY_REFUSAL.items())
def test_the_field_is_refused(
    where: tuple[str, str], row: tuple[dict[str, Any], ErrorCode]
) -> None:
    endpoint, name = where
    with pytest.raises(RequestError) as caught:
        ENDPOINTS[endpoint][0](**row[0])
    assert (caught.value.code, caught.value.param) == (row[1], name)


def test_what_a_request_does_not_say_is_the_models_own_then_openais() -> None:
    sampling = chat().submission.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 7, 1.0)
    assert chat(temperature=0, top_k=-1).submission.sampling.temperature == 0.0
    assert chat(temperature=0, top_k=-1).submission.sampling.top_k == 0


def test_only_an_echo_is_scored_with_its_prompt() -> None:
    asked = completion(logprobs=2, echo=True).submission.sampling
    assert (asked.num_logprobs, asked.num_prompt_logprobs) == (2, 2)
    assert completion(logprobs=2).submission.sampling.num_prompt_logprobs is None
    assert completion(echo=True).submission.sampling.num_prompt_logprobs is None
