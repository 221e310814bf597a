"""A request's body to what the rooms behind need, or `BadRequest`. Pure; nothing re-checks it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from frontend import conversation, decoding, fields
from frontend.fields import Fields
from frontend.reasoning_fields import reasoning_keys, refuse_reserved_names, template_kwargs
from frontend.sampling_fields import MANY, sampling, text_options
from frontend.schemas import (
    CHAT_OPTIONS,
    MAX_INPUTS,
    MAX_PROMPTS,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    SamplingFields,
    TokenizeRequest,
)
from frontend.served_model import ServedModel
from frontend.submission import Embedding, Lookup, Submission
from shared.errors import BadRequest, ErrorCode
from shared.parts import ChatPrompt, Prompt, TextPrompt

_Request = TypeVar(
    "_Request",
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    TokenizeRequest,
    DetokenizeRequest,
)


@dataclass(frozen=True)
class Rules:
    """What this server makes of requests: its flags, and its model's own settings."""

    model: ServedModel
    max_choices: int  # most answers to one request
    sampling_defaults: Mapping[str, float]
    completion_max_tokens: int = 16  # where a completion does not say (OpenAI)
    strict_max_tokens: bool = False
    reasoning_field: str = "both"


@dataclass(frozen=True)
class Framing:
    """How the answers to one request are written."""

    stream: bool = False
    include_usage: bool = False
    has_logprobs: bool = False
    echo: bool = False
    reasoning_keys: tuple[str, ...] = ()  # the names of thoughts in messages, where they are shown
    ignored_fields: str = ""  # for the X-Ignored-Fields header


@dataclass(frozen=True)
class Ask:
    """One validated request for answers."""

    submission: Submission
    framing: Framing


def chat(body: bytes, rules: Rules, random_seed: int, key_id: str = "") -> Ask:
    """A chat request; `random_seed` is for requests without one, `key_id` for its API key."""
    request, ignored_fields = _parse(body, fields.CHAT, ChatRequest, rules.model)
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("'top_logprobs' is only allowed with 'logprobs'.", "top_logprobs")
    _refuse_tools(request)
    keys = reasoning_keys(request, rules.reasoning_field)
    max_tokens, max_tokens_param = _max_tokens(request)
    submission = Submission(
        id_prefix="chatcmpl",
        prompts=(_chat_prompt(request, _truncation(request)[1]),),
        max_tokens=max_tokens,
        is_strict=rules.strict_max_tokens,
        echo=False,
        text=text_options(
            request,
            splits_thoughts=keys is not None,
            hides_special_tokens=keys is not None,  # else thoughts stay as they were written
        ),
        sampling=sampling(
            request,
            rules.sampling_defaults,
            random_seed=random_seed,
            max_tokens=max_tokens,
            max_tokens_param=max_tokens_param,
            num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            num_prompt_logprobs=None,
        ),
        num_choices=request.n,
        cache_salt=_salt(request, key_id),
        max_tokens_param=max_tokens_param,
    )
    framing = _framing(request, request.logprobs, False, ignored_fields)
    return _checked(submission, replace(framing, reasoning_keys=keys or ()), rules)


def completion(body: bytes, rules: Rules, random_seed: int, key_id: str = "") -> Ask:
    """A completion request; see `chat`."""
    request, ignored_fields = _parse(body, fields.COMPLETION, CompletionRequest, rules.model)
    asked, max_tokens_param = _max_tokens(request)
    max_tokens = rules.completion_max_tokens if asked is None else asked
    _check_completion(request, max_tokens, max_tokens_param)
    submission = Submission(
        id_prefix="cmpl",
        prompts=tuple(_text_prompts(request, "prompt", MAX_PROMPTS)),
        max_tokens=max_tokens,
        is_strict=rules.strict_max_tokens and asked is not None,
        echo=request.echo,
        text=text_options(request, only_scores_prompt=max_tokens == 0),
        sampling=sampling(
            request,
            rules.sampling_defaults,
            random_seed=random_seed,
            max_tokens=max_tokens,
            max_tokens_param=max_tokens_param,
            num_logprobs=request.logprobs,
            num_prompt_logprobs=request.logprobs if request.echo else None,
        ),
        num_choices=request.n,
        cache_salt=_salt(request, key_id),
        max_tokens_param=max_tokens_param,
    )
    has_logprobs = request.logprobs is not None
    framing = _framing(request, has_logprobs, request.echo, ignored_fields)
    return _checked(submission, framing, rules)


def embedding(body: bytes, model: ServedModel, key_id: str = "") -> tuple[Embedding, bool, str]:
    """A request for vectors, whether in base64, and the names of its unknown fields."""
    request, ignored_fields = _parse(body, fields.EMBEDDING, EmbeddingRequest, model)
    inputs = tuple(_text_prompts(request, "input", MAX_INPUTS))
    wanted = Embedding(inputs, request.dimensions, _salt(request, key_id))
    return wanted, request.encoding_format == "base64", ignored_fields


def tokenize(body: bytes, model: ServedModel) -> tuple[Lookup, str]:
    """A request for the ids of a text or a conversation, and the names of its unknown fields."""
    request, ignored_fields = _parse(body, fields.TOKENIZE, TokenizeRequest, model)
    texts = {"prompt": request.prompt, "content": request.content, "messages": request.messages}
    given = [name for name, value in texts.items() if value is not None]
    if len(given) != 1:
        sentence = "Give exactly one of 'prompt', 'content' and 'messages'."
        raise BadRequest(sentence, given[1] if given else "prompt", ErrorCode.MISSING_PARAMETER)
    if request.messages is not None:
        _refuse_tools(request)
        prompt = _chat_prompt(request, None)
    else:
        _refuse_chat_options(request, given[0])
        text = request.prompt if request.prompt is not None else request.content or ""
        special = request.add_special_tokens is not False
        prompt = Prompt(text=TextPrompt(text, add_special_tokens=special), param=given[0])
    return Lookup(prompt, wants_strings=request.return_token_strs), ignored_fields


def detokenize(body: bytes, model: ServedModel) -> tuple[Lookup, str]:
    """A request for the text of ids, and the names of its unknown fields."""
    request, ignored_fields = _parse(body, fields.DETOKENIZE, DetokenizeRequest, model)
    return Lookup(None, token_ids=tuple(request.tokens)), ignored_fields


def _parse(
    body: bytes, known: Fields, shape: type[_Request], model: ServedModel
) -> tuple[_Request, str]:
    """The request in its shape, and the names of its unknown fields."""
    given = decoding.parse_object(body)
    known.refuse_unsupported(given)
    refuse_reserved_names(given)
    request = decoding.convert(given, shape)
    if request.model is not None:
        model.require(request.model)
    return request, known.ignored_names(given)


def _checked(submission: Submission, framing: Framing, rules: Rules) -> Ask:
    total = submission.total_choices
    if total > rules.max_choices:
        name = "n" if len(submission.prompts) == 1 else "prompt"
        sentence = f"This server makes at most {rules.max_choices} answers to a request, not"
        raise BadRequest(f"{sentence} {total}.", name)
    return Ask(submission, framing)


def _refuse_chat_options(request: TokenizeRequest, text: str) -> None:
    """Raises BadRequest for what only a conversation can have, beside the field `text`."""
    unset = TokenizeRequest()
    for name in CHAT_OPTIONS:
        if getattr(request, name) != getattr(unset, name):
            raise BadRequest(f"'{name}' is not allowed with '{text}': it is for 'messages'.", name)


def _refuse_tools(request: ChatRequest | TokenizeRequest) -> None:
    """Tools that must not be called are left out of the prompt; others are not supported yet."""
    refused = {
        "tool_choice": request.tool_choice not in (None, "none", "auto"),
        "tools": bool(request.tools) and request.tool_choice != "none",
    }
    for name, is_refused in refused.items():
        if is_refused:
            sentence = f"'{name}' with this value is not supported by this server."
            raise BadRequest(sentence, name, ErrorCode.UNSUPPORTED_PARAMETER)


def _chat_prompt(request: ChatRequest | TokenizeRequest, truncate_to: int | None) -> Prompt:
    messages: list[ChatMessage] = request.messages or []
    goes_on, opens = request.continue_final_message, request.add_generation_prompt
    if goes_on:
        _check_last(messages, opens_turn=bool(opens))
    conversation_prompt = ChatPrompt(
        messages=conversation.render(messages),
        template_kwargs=template_kwargs(request),
        add_generation_prompt=not goes_on if opens is None else opens,
        continue_final_message=goes_on,
        add_special_tokens=bool(request.add_special_tokens),
    )
    return Prompt(chat=conversation_prompt, truncate_to=truncate_to)


def _check_last(messages: Sequence[ChatMessage], *, opens_turn: bool) -> None:
    """Raises BadRequest for a last message from which no answer can go on."""
    param = "continue_final_message"
    if opens_turn:
        sentence = f"'{param}' and 'add_generation_prompt' exclude each other."
        raise BadRequest(sentence, param)
    if not messages or messages[-1].role != "assistant":
        raise BadRequest(f"'{param}' needs a last message of the assistant.", param)
    if messages[-1].tool_calls:  # they come after the text that would go on
        raise BadRequest(f"'{param}' needs a last message without 'tool_calls'.", param)


def _text_prompts(
    request: CompletionRequest | EmbeddingRequest, param: str, most: int
) -> Iterator[Prompt]:
    """The prompts in this field: one, or as many as the list has texts or lists of ids."""
    given: str | list[Any] = getattr(request, param)
    (_, truncate_to), suffix = _truncation(request), getattr(request, "suffix", None) or None
    if isinstance(given, str):
        given = [given]
    if all(isinstance(item, int) for item in given):
        given = [given]
    if len(given) > most:
        raise BadRequest(f"'{param}' takes at most {most} at a time.", param)
    special = request.add_special_tokens is not False
    for item in given:
        match item:
            case str():
                text = TextPrompt(item, suffix, special)
                yield Prompt(text=text, truncate_to=truncate_to, param=param)
            case list():
                yield Prompt(token_ids=tuple(item), truncate_to=truncate_to, param=param)
            case _:
                sentence = f"'{param}' mixes token ids with others: send a list of lists."
                raise BadRequest(sentence, param, ErrorCode.INVALID_TYPE)


def _check_completion(request: CompletionRequest, max_tokens: int, max_tokens_param: str) -> None:
    if request.best_of not in (None, request.n):
        sentence = "'best_of' other than 'n' is not supported by this server."
        raise BadRequest(sentence, "best_of", ErrorCode.UNSUPPORTED_PARAMETER)
    if max_tokens == 0 and not request.echo:
        raise BadRequest(f"'{max_tokens_param}' may be 0 only with 'echo'.", max_tokens_param)
    if request.suffix:
        _check_suffix(request)


def _check_suffix(request: CompletionRequest) -> None:
    if request.echo:
        raise BadRequest("'echo' is not supported with 'suffix'.", "echo")
    if not isinstance(request.prompt, str):
        raise BadRequest("'suffix' needs a 'prompt' that is one string.", "suffix")
    name, truncate_to = _truncation(request)
    if truncate_to is not None:
        sentence = f"'{name}' is not supported with 'suffix': shorten both texts instead."
        raise BadRequest(sentence, name)


def _truncation(request: SamplingFields | EmbeddingRequest) -> tuple[str, int | None]:
    """Which field says how many of the prompt's tokens are kept, and how many; None: all."""
    for name in ("truncate_prompt_tokens", "truncate"):
        asked: int | None = getattr(request, name, None)
        if asked == 0:
            raise BadRequest(f"'{name}' is at least 1, or -1 for what the context takes.", name)
        if asked is not None:
            return name, asked
    return "", None


def _max_tokens(request: ChatRequest | CompletionRequest) -> tuple[int | None, str]:
    """The most tokens of an answer, within what a tensor index can hold, and the field's name."""
    for name in ("max_completion_tokens", "max_tokens"):
        asked: int | None = getattr(request, name)
        if asked is not None:
            return min(asked, MANY), name
    return None, "max_tokens"


def _salt(request: SamplingFields | EmbeddingRequest, key_id: str) -> str:
    """Callers with different keys share no cached prompts, whatever salt they send."""
    return f"{key_id}\n{request.cache_salt or ''}" if key_id else request.cache_salt or ""


def _framing(
    request: SamplingFields, has_logprobs: bool, echo: bool, ignored_fields: str
) -> Framing:
    return Framing(
        stream=request.stream,
        include_usage=_include_usage(request),
        has_logprobs=has_logprobs,
        echo=echo,
        ignored_fields=ignored_fields,
    )


def _include_usage(request: SamplingFields) -> bool:
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
