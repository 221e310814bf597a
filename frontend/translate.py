"""A request's body to what the rooms behind need, or `BadRequest`. Pure; nothing re-checks it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from frontend import conversation, decoding, fields
from frontend.fields import Fields
from frontend.reasoning_fields import reasoning_keys, template_kwargs
from frontend.sampling_fields import MANY, sampling, text_options
from frontend.schemas import (
    MAX_PROMPTS,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    SamplingFields,
    TokenizeRequest,
)
from frontend.served_model import ServedModel
from frontend.submission import Lookup, Submission
from shared.errors import BadRequest, ErrorCode
from shared.parts import ChatPrompt, Prompt, TextPrompt

_Request = TypeVar("_Request", ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)


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
    max_tokens = _least(request.max_completion_tokens, request.max_tokens)
    submission = Submission(
        id_prefix="chatcmpl",
        prompts=(_chat_prompt(request, _truncate_to(request), template_kwargs(request)),),
        max_tokens=max_tokens,
        is_strict=rules.strict_max_tokens,
        echo=False,
        text=text_options(request, splits_thoughts=keys is not None),
        sampling=sampling(
            request,
            rules.sampling_defaults,
            random_seed=random_seed,
            max_tokens=max_tokens,
            num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            num_prompt_logprobs=None,
        ),
        num_choices=request.n,
        cache_salt=_salt(request, key_id),
    )
    framing = _framing(request, request.logprobs, False, ignored_fields)
    return _checked(submission, replace(framing, reasoning_keys=keys or ()), rules)


def completion(body: bytes, rules: Rules, random_seed: int, key_id: str = "") -> Ask:
    """A completion request; see `chat`."""
    request, ignored_fields = _parse(body, fields.COMPLETION, CompletionRequest, rules.model)
    max_tokens = _least(request.max_completion_tokens, request.max_tokens)
    if max_tokens is None:
        max_tokens = rules.completion_max_tokens
    _check_completion(request, max_tokens)
    submission = Submission(
        id_prefix="cmpl",
        prompts=tuple(_text_prompts(request)),
        max_tokens=max_tokens,
        is_strict=rules.strict_max_tokens and request.max_tokens is not None,
        echo=request.echo,
        text=text_options(request, only_scores_prompt=max_tokens == 0),
        sampling=sampling(
            request,
            rules.sampling_defaults,
            random_seed=random_seed,
            max_tokens=max_tokens,
            num_logprobs=request.logprobs,
            num_prompt_logprobs=request.logprobs if request.echo else None,
        ),
        num_choices=request.n,
        cache_salt=_salt(request, key_id),
    )
    has_logprobs = request.logprobs is not None
    framing = _framing(request, has_logprobs, request.echo, ignored_fields)
    return _checked(submission, framing, rules)


def tokenize(body: bytes, model: ServedModel) -> Lookup:
    """A request for the ids of a text or a conversation."""
    request, _ = _parse(body, fields.TOKENIZE, TokenizeRequest, model)
    texts = {"prompt": request.prompt, "content": request.content, "messages": request.messages}
    given = [name for name, value in texts.items() if value is not None]
    if len(given) != 1:
        sentence = "Give exactly one of 'prompt', 'content' and 'messages'."
        raise BadRequest(sentence, given[1] if given else "prompt", ErrorCode.MISSING_PARAMETER)
    if request.messages is not None:
        prompt = _chat_prompt(request, None, request.chat_template_kwargs or {})
    else:
        text = request.prompt if request.prompt is not None else request.content or ""
        special = request.add_special_tokens is not False
        prompt = Prompt(text=TextPrompt(text, add_special_tokens=special), param=given[0])
    return Lookup(prompt, wants_strings=request.return_token_strs)


def detokenize(body: bytes, model: ServedModel) -> Lookup:
    """A request for the text of ids."""
    request, _ = _parse(body, fields.DETOKENIZE, DetokenizeRequest, model)
    return Lookup(None, token_ids=tuple(request.tokens))


def _parse(
    body: bytes, known: Fields, shape: type[_Request], model: ServedModel
) -> tuple[_Request, str]:
    """The request in its shape, and the names of its unknown fields."""
    given = decoding.parse_object(body)
    known.refuse_unsupported(given)
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


def _refuse_tools(request: ChatRequest) -> None:
    """Tools that must not be called are left out of the prompt; others are not supported yet."""
    refused = {
        "tool_choice": request.tool_choice not in (None, "none", "auto"),
        "tools": bool(request.tools) and request.tool_choice != "none",
    }
    for name, is_refused in refused.items():
        if is_refused:
            sentence = f"'{name}' with this value is not supported by this server."
            raise BadRequest(sentence, name, ErrorCode.UNSUPPORTED_PARAMETER)


def _chat_prompt(
    request: ChatRequest | TokenizeRequest, truncate_to: int | None, kwargs: Mapping[str, Any]
) -> Prompt:
    messages: list[ChatMessage] = request.messages or []
    goes_on = request.continue_final_message
    if goes_on and request.add_generation_prompt:
        sentence = "'continue_final_message' and 'add_generation_prompt' exclude each other."
        raise BadRequest(sentence, "continue_final_message")
    if goes_on and (not messages or messages[-1].role != "assistant"):
        sentence = "'continue_final_message' needs a last message of the assistant."
        raise BadRequest(sentence, "continue_final_message")
    opens = request.add_generation_prompt
    conversation_prompt = ChatPrompt(
        messages=conversation.render(messages),
        template_kwargs=dict(kwargs),
        add_generation_prompt=not goes_on if opens is None else opens,
        continue_final_message=goes_on,
        add_special_tokens=bool(request.add_special_tokens),
    )
    return Prompt(chat=conversation_prompt, truncate_to=truncate_to)


def _text_prompts(request: CompletionRequest) -> Iterator[Prompt]:
    """The prompts of a completion: one, or as many as the list has texts or lists of ids."""
    given, truncate_to = request.prompt, _truncate_to(request)
    if isinstance(given, str):
        given = [given]
    if all(isinstance(item, int) for item in given):
        given = [[item for item in given if isinstance(item, int)]]
    if len(given) > MAX_PROMPTS:
        raise BadRequest(f"'prompt' takes at most {MAX_PROMPTS} prompts.", "prompt")
    special = request.add_special_tokens is not False
    for item in given:
        match item:
            case str():
                text = TextPrompt(item, request.suffix or None, special)
                yield Prompt(text=text, truncate_to=truncate_to, param="prompt")
            case list():
                ids = tuple(item)
                yield Prompt(token_ids=ids, truncate_to=truncate_to, param="prompt")
            case _:
                sentence = "'prompt' mixes token ids with other prompts: send a list of lists."
                raise BadRequest(sentence, "prompt", ErrorCode.INVALID_TYPE)


def _check_completion(request: CompletionRequest, max_tokens: int) -> None:
    if request.best_of not in (None, request.n):
        sentence = "'best_of' other than 'n' is not supported by this server."
        raise BadRequest(sentence, "best_of", ErrorCode.UNSUPPORTED_PARAMETER)
    if max_tokens == 0 and not request.echo:
        raise BadRequest("'max_tokens' may be 0 only with 'echo'.", "max_tokens")
    if not request.suffix:
        return
    if request.echo:
        raise BadRequest("'echo' is not supported with 'suffix'.", "echo")
    if not isinstance(request.prompt, str):
        raise BadRequest("'suffix' needs a 'prompt' that is one string.", "suffix")


def _truncate_to(request: SamplingFields) -> int | None:
    for name in ("truncate_prompt_tokens", "truncate"):
        asked: int | None = getattr(request, name)
        if asked == 0:
            raise BadRequest(f"'{name}' is at least 1, or -1 for what the context takes.", name)
        if asked is not None:
            return asked
    return None


def _least(first: int | None, second: int | None) -> int | None:
    """The first that is given, within what a tensor index can hold."""
    given = [limit for limit in (first, second) if limit is not None]
    return min(given[0], MANY) if given else None


def _salt(request: SamplingFields, key_id: str) -> str:
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
