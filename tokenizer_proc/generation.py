"""What a tokenizer makes of a `Tokenize`: the prompt's ids, and how much of the context is left.

Pure. Whatever the caller asked for that the model or its context cannot give is a `BadRequest`.
"""

from collections.abc import Sequence
from dataclasses import replace

from shared.errors import BadRequest, ErrorCode
from shared.messages import Generate, PromptAccepted, Tokenize
from shared.parts import ModelFacts, Prompt, TextStart, ThoughtMarks
from shared.sampling import MAX_STOP_TOKENS, SamplingParams
from tokenizer_proc.context import longest_prompt, too_long
from tokenizer_proc.encoder_input import refuse_what_needs_a_decoder
from tokenizer_proc.prompt import PromptEncoder
from tokenizer_proc.thought_marks import ThoughtFormat

PROMPT_TAIL = 8  # tokens of the prompt that give the answer's first piece of text its context


def accept(
    message: Tokenize,
    encoder: PromptEncoder,
    model: ModelFacts,
    thoughts: ThoughtFormat | None = None,
) -> tuple[PromptAccepted, Generate]:
    """What the frontend and the worker hear of a prompt."""
    if model.max_encoder_len:
        refuse_what_needs_a_decoder(message)
    longest = longest_prompt(model)
    whole = encoder.encode(message.prompt, longest)
    prompt = _truncated(whole, message, longest, shares=not model.max_encoder_len)
    max_tokens = _max_tokens(message, len(prompt), model)
    sampling = _fitted(message, max_tokens, encoder)
    _check_vocabulary(message, prompt, model.vocab_size)
    _check_scores(message, len(prompt))
    accepted = PromptAccepted(
        message.request_id,
        prompt_tokens=len(prompt),
        prompt_text=_echo(message, prompt, encoder, is_whole=len(prompt) == len(whole)),
    )
    generate = Generate(
        request_id=message.request_id,
        prompt_token_ids=tuple(prompt),
        max_tokens=max_tokens,
        sampling=sampling,
        num_choices=message.num_choices,
        cache_salt=message.cache_salt,
        text=replace(
            _text_start(message, prompt, encoder, goes_on=not model.max_encoder_len),
            min_tokens=sampling.min_tokens,
            thoughts=_marks(message, prompt, thoughts),
        ),
    )
    return accepted, generate


def _truncated(prompt: list[int], message: Tokenize, context: int, *, shares: bool) -> list[int]:
    """The last ids, as many as were asked for; without the tokenizer's own first ones if too many.

    -1 leaves `max_tokens` of a context that prompt and answer share to the answer; one token where
    that is not given, or is more than the context and may be lowered.
    """
    num_kept = message.prompt.truncate_to
    if num_kept is None:
        return prompt
    if message.prompt.text is not None and message.prompt.text.suffix is not None:
        sentence = "A prompt with 'suffix' cannot be truncated: shorten both texts instead."
        raise BadRequest(sentence, "truncate_prompt_tokens")
    if num_kept == -1 and not shares:
        num_kept = context
    if num_kept == -1:
        num_kept = context - (1 if message.max_tokens is None else message.max_tokens)
        if num_kept < 1 and message.is_strict:
            name = message.max_tokens_param
            sentence = f"'{name}' {message.max_tokens} leaves none of the context's {context}"
            raise BadRequest(f"{sentence} tokens to the prompt.", name)
        if num_kept < 1:
            num_kept = context - 1
    return prompt[-num_kept:]


def _max_tokens(message: Tokenize, num_tokens: int, model: ModelFacts) -> int:
    """The answer's length within what the context leaves, or BadRequest."""
    asked, param, context = message.max_tokens, message.prompt.param, model.max_model_len
    if num_tokens == 0:
        raise BadRequest(_empty(message.prompt), param)
    if num_tokens > model.max_encoder_len > 0:
        raise too_long(model.max_encoder_len, str(num_tokens), param)
    room = context if model.max_encoder_len else context - num_tokens
    if room < (0 if asked == 0 else 1):
        raise too_long(context, str(num_tokens), param)
    if asked is not None and asked > room and message.is_strict:
        name = message.max_tokens_param
        sentence = f"This model's maximum context length is {context} tokens. However, '{name}'"
        raise BadRequest(
            f"{sentence} is {asked} and your {param} resulted in {num_tokens} tokens. Please "
            f"reduce '{name}' or the length of the {param}.",
            name,
            ErrorCode.CONTEXT_LENGTH,
        )
    return room if asked is None else min(asked, room)


def _empty(prompt: Prompt) -> str:
    if prompt.chat is not None:
        return "Your messages make an empty prompt."
    return f"An empty '{prompt.param}' gives this model no token to begin with."


def _check_scores(message: Tokenize, num_tokens: int) -> None:
    """Refuses more logprobs of the prompt than one request may have."""
    if message.sampling.num_prompt_logprobs is None:
        return
    num_each = message.sampling.num_prompt_logprobs + 1
    if num_tokens * num_each > message.max_prompt_scores:
        raise BadRequest(
            f"{num_tokens} prompt tokens with {num_each} logprobs each are "
            f"{num_tokens * num_each}; in this request a prompt may have "
            f"{message.max_prompt_scores}. Shorten it, or ask for fewer 'logprobs' or answers.",
            "logprobs",
        )


def _echo(
    message: Tokenize, prompt: Sequence[int], encoder: PromptEncoder, *, is_whole: bool
) -> str | None:
    """The prompt's text for a caller who wants it back: as it was given, if it was a text."""
    if not message.echo:
        return None
    text = message.prompt.text
    if text is not None and text.suffix is None and is_whole:
        return text.text
    return encoder.decode(prompt, skips_special_tokens=message.text.skips_special_tokens)


def _check_vocabulary(message: Tokenize, prompt: Sequence[int], vocab_size: int) -> None:
    """Refuses what the tokenizer knows and the model does not; some tokenizers have more tokens."""
    named = {
        message.prompt.param: prompt,
        "logit_bias": [token_id for token_id, _ in message.sampling.logit_bias],
        "stop_token_ids": message.sampling.stop_token_ids,
    }
    for param, token_ids in named.items():
        if max(token_ids, default=0) >= vocab_size:
            sentence = f"'{param}' holds token {max(token_ids)}; this model has {vocab_size}."
            raise BadRequest(sentence, param)


def _fitted(message: Tokenize, max_tokens: int, encoder: PromptEncoder) -> SamplingParams:
    """The settings within the answer's length, or BadRequest for a token that does not exist."""
    sampling = message.sampling
    encoder.check_ids((token_id for token_id, _ in sampling.logit_bias), "logit_bias")
    encoder.check_ids(sampling.stop_token_ids, "stop_token_ids")
    ends = () if sampling.ignore_eos else encoder.end_token_ids(message.prompt)
    stops = tuple(dict.fromkeys((*sampling.stop_token_ids, *ends)))
    if len(stops) > MAX_STOP_TOKENS:
        sentence = f"'suffix' needs {len(ends)} of the {MAX_STOP_TOKENS} tokens to stop at."
        raise BadRequest(sentence, "stop_token_ids")
    min_tokens = min(sampling.min_tokens, max_tokens)
    return replace(sampling, min_tokens=min_tokens, stop_token_ids=stops)


def _marks(
    message: Tokenize, prompt: list[int], thoughts: ThoughtFormat | None
) -> ThoughtMarks | None:
    """How the detokenizer tells this answer's thoughts, if it is to tell any."""
    chat = message.prompt.chat
    if thoughts is None or chat is None or not message.text.splits_thoughts:
        return None
    return thoughts.marks(prompt, chat)


def _text_start(
    message: Tokenize, prompt: list[int], encoder: PromptEncoder, *, goes_on: bool
) -> TextStart:
    """What the detokenizer must know; an answer that goes on from its prompt needs its end."""
    sampling, text = message.sampling, message.prompt.text
    is_framed = text is not None and text.add_special_tokens
    return TextStart(
        request_id=message.request_id,
        route=message.route,
        prompt_tail=tuple(prompt[-PROMPT_TAIL:]) if goes_on else (),
        options=message.text,
        stop_token_ids=sampling.stop_token_ids,
        scored_token_ids=tuple(prompt) if sampling.num_prompt_logprobs is not None else (),
        num_framing_tokens=encoder.num_framing(prompt) if is_framed else 0,
        hides_special_tokens=text is None and message.text.skips_special_tokens,
    )
