"""A request's body to what the rooms behind need, or `BadRequest`. Pure; nothing re-checks it."""

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


@dataclass(frozen=True)
class Prompt:
    """One admitted request without its addresses: the content of a `Tokenize`."""

    messages: tuple[dict[str, Any], ...]
    template_kwargs: dict[str, Any]
    max_tokens: int | None
    stop: tuple[str, ...]
    sampling: SamplingParams


@dataclass(frozen=True)
class Chat:
    """One validated chat request: the prompt, and how the answer is framed."""

    prompt: Prompt
    stream: bool
    include_usage: bool
    ignored_fields: str  # for the X-Ignored-Fields header; "" for none


def chat(body: bytes, served_model: ServedModel, random_seed: int) -> Chat:
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
    )
    return Chat(prompt, request.stream, _include_usage(request), fields.ignored_names(given))


def _max_tokens(request: ChatRequest) -> int | None:
    limit = request.max_completion_tokens or request.max_tokens
    return None if limit is None else min(limit, _MANY)


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
    )


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
