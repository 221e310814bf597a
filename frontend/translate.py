"""A request's body to what the rooms behind need, or `BadRequest`. Pure; nothing re-checks it."""

import re
from dataclasses import dataclass
from typing import Any

from frontend import conversation, decoding, fields
from frontend.schemas import MAX_STOP_CHARACTERS, MAX_STOPS, ChatRequest
from frontend.served_model import ServedModel
from shared.errors import BadRequest, ErrorCode
from shared.sampling import SamplingParams

# Far above any context or vocabulary, far below what a tensor index can hold.
_MANY = 2**31 - 1
_NUM_SEEDS = 2**63
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")  # one spelling for each, so that none comes twice


@dataclass(frozen=True)
class Prompt:
    """One admitted request without its addresses: the content of a `Tokenize`."""

    messages: tuple[dict[str, Any], ...]
    template_kwargs: dict[str, Any]
    max_tokens: int | None
    stop: tuple[str, ...]
    sampling: SamplingParams
    num_choices: int
    cache_salt: str


@dataclass(frozen=True)
class Chat:
    """One validated chat request: the prompt, and how the answer is framed."""

    prompt: Prompt
    stream: bool
    include_usage: bool
    ignored_fields: str  # for the X-Ignored-Fields header; "" for none


def chat(body: bytes, served_model: ServedModel, max_choices: int, random_seed: int) -> Chat:
    """Returns the request, or raises RequestError; `random_seed` is for requests without one."""
    given = decoding.parse_object(body)
    fields.refuse_unsupported(given)
    request = decoding.convert(given, ChatRequest)
    if request.model is not None:
        served_model.require(request.model)
    prompt = Prompt(
        messages=conversation.render(request.messages),
        template_kwargs=request.chat_template_kwargs or {},
        max_tokens=_max_tokens(request),
        stop=_stop(request.stop),
        sampling=_sampling(request, random_seed),
        num_choices=_num_choices(request.n, max_choices),
        cache_salt=request.cache_salt or "",
    )
    return Chat(prompt, request.stream, _include_usage(request), fields.ignored_names(given))


def _max_tokens(request: ChatRequest) -> int | None:
    limit = request.max_completion_tokens or request.max_tokens
    return None if limit is None else min(limit, _MANY)


def _num_choices(n: int, max_choices: int) -> int:
    if n > max_choices:
        raise BadRequest(f"'n' is at most {max_choices} on this server, not {n}.", "n")
    return n


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise BadRequest(f"'stop' takes at most {MAX_STOPS} strings.", "stop")
    for text in stops:
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            sentence = f"Each string of 'stop' has 1 to {MAX_STOP_CHARACTERS} characters."
            raise BadRequest(sentence, "stop")
    return stops


def _sampling(request: ChatRequest, random_seed: int) -> SamplingParams:
    seed = random_seed if request.seed is None else request.seed
    return SamplingParams(
        seed=seed % _NUM_SEEDS,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=min(max(request.top_k, 0), _MANY),
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=_logit_bias(request.logit_bias),
        min_tokens=_min_tokens(request),
        ignore_eos=request.ignore_eos,
        stop_token_ids=tuple(request.stop_token_ids),
    )


def _logit_bias(given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    for name in given:
        if not _TOKEN_ID.fullmatch(name):
            sentence = f"The keys of 'logit_bias' are token ids, not {decoding.quoted(name)}."
            raise BadRequest(sentence, "logit_bias")
    return tuple((int(name), bias) for name, bias in given.items())


def _min_tokens(request: ChatRequest) -> int:
    """Within `max_tokens`; what the context leaves is known to the tokenizer only."""
    most = _max_tokens(request)
    if most is not None and request.min_tokens > most:
        sentence = f"'min_tokens' is at most 'max_tokens', which is {most} here."
        raise BadRequest(sentence, "min_tokens")
    return min(request.min_tokens, _MANY)


def _include_usage(request: ChatRequest) -> bool:
    options = request.stream_options
    if options is None:
        return False
    if not request.stream:
        raise BadRequest("'stream_options' is only allowed with 'stream'.", "stream_options")
    if options.continuous_usage_stats:
        raise BadRequest(
            "'continuous_usage_stats' is not supported by this server.",
            "stream_options.continuous_usage_stats",
            ErrorCode.UNSUPPORTED_PARAMETER,
        )
    return bool(options.include_usage)
