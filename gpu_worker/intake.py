"""The worker's door: a Generate becomes a Sequence, or is refused. Nothing behind it checks again.

The tokenizer has checked the same before; a wrong id or length that came this far would otherwise
fail inside the model and harm every request of its step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from gpu_worker.hearing import TextOf, WindowSequence
from scheduler.plan import NO_INPUT, EncoderInput
from scheduler.sequence import Sequence
from shared.errors import ErrorCode, RequestError
from shared.messages import Generate, Listen, Pool
from shared.sampling import (
    MAX_BIAS,
    MAX_BIASED_TOKENS,
    MAX_LOGPROBS,
    MAX_PENALTY,
    MAX_PROMPT_LOGPROBS,
    MAX_REPETITION_PENALTY,
    MAX_STOP_TOKENS,
    MIN_REPETITION_PENALTY,
    SamplingParams,
)
from shared.windows import HEARS_ONLY

_GREEDY = SamplingParams(seed=0, temperature=0.0)


def _one_class(_: int) -> str:
    return ""


def _no_text(_: list[int]) -> str:
    return ""


@dataclass(frozen=True)
class EncoderLimits:
    """What an encoder reads, and with what the decoder begins."""

    max_encoder_len: int  # tokens of a prompt, or positions of a window of sound
    start_token_ids: tuple[int, ...]  # before every answer; of a window, its prompt's
    num_feature_bytes: int = 0  # of a window of sound; 0: it reads text
    text_of: TextOf = _no_text  # of what a window is answered with


@dataclass(frozen=True)
class IntakeLimits:
    """What the loaded model can take, and which of its prompts may share cached keys."""

    max_model_len: int  # tokens of prompt and answer; with an encoder, of the answer
    vocab_size: int
    end_token_ids: frozenset[int]
    rope_class: Callable[[int], str] = _one_class  # of a prompt's length; a line of text
    encoder: EncoderLimits | None = None
    embedding_size: int = 0  # numbers of a vector; 0: none are made


def to_sequences(message: Generate, limits: IntakeLimits) -> list[Sequence]:
    """Returns a sequence for each answer that is asked for, or raises RequestError."""
    if message.num_choices < 1:
        raise _refusal(f"{message.num_choices} answers to make")
    first = to_sequence(message, limits)
    return [first, *(first.fork(choice) for choice in range(1, message.num_choices))]


def to_sequence(message: Generate, limits: IntakeLimits) -> Sequence:
    """Returns the sequence to schedule, or raises RequestError."""
    prompt, max_tokens = message.prompt_token_ids, message.max_tokens
    if limits.encoder is not None and limits.encoder.num_feature_bytes:
        raise RequestError(ErrorCode.MODEL_NOT_FOUND, HEARS_ONLY, "model")
    if not prompt or max_tokens < 0:
        raise _refusal("an empty prompt or answer")
    if not _fits(len(prompt), max_tokens, limits):
        raise _refusal(f"{len(prompt)} + {max_tokens} tokens exceed {limits.max_model_len}")
    if min(prompt) < 0 or max(prompt) >= limits.vocab_size:
        raise _refusal("a token id outside the vocabulary")
    if not _is_possible_text(message):
        raise _refusal("an impossible beginning of its text")
    if not _is_possible(message.sampling) or not _has_possible_logprobs(message):
        raise _refusal(f"impossible settings: {message.sampling}")
    if not _has_possible_tokens(message.sampling, max_tokens, limits.vocab_size):
        raise _refusal("impossible tokens to favour, to ban or to stop at")
    encoder = limits.encoder
    return Sequence(
        message.request_id,
        encoder.start_token_ids if encoder else prompt,
        max(max_tokens, 1),  # 0: a token is sampled that nobody is shown
        _end_token_ids(message.sampling, limits) if max_tokens else frozenset(),
        message.sampling,
        cache_salt=f"{limits.rope_class(len(prompt))}\n{message.cache_salt}",
        encoder_input=EncoderInput.text(prompt) if encoder else NO_INPUT,
    )


def to_window(message: Listen, limits: IntakeLimits) -> Sequence:
    """Returns the sequence that puts a window of sound into words, or raises RequestError."""
    prompt, encoder = message.prompt_token_ids, limits.encoder
    if encoder is None or not 0 < len(message.features) == encoder.num_feature_bytes:
        raise _refusal(f"{len(message.features)} bytes of sound")
    if not prompt or not 0 < message.max_tokens <= limits.max_model_len + 1 - len(prompt):
        raise _refusal(f"{len(prompt)} + {message.max_tokens} tokens")
    rules, settings = message.sampling.transcript, message.sampling
    ids = {*prompt, *(rules.all_ids() if rules else ())}
    if rules is None or min(ids) < 0 or max(ids) >= limits.vocab_size:
        raise _refusal("impossible rules of a transcript")
    if not _is_possible(settings) or settings.num_prompt_logprobs is not None:
        raise _refusal(f"impossible settings: {settings}")
    if not _has_possible_tokens(settings, message.max_tokens, limits.vocab_size):
        raise _refusal("impossible tokens to favour, to ban or to stop at")
    is_alignable = 0 <= message.num_aligned <= encoder.max_encoder_len
    if not is_alignable or not _are_possible(message.temperatures):
        raise _refusal(f"temperatures {message.temperatures}, {message.num_aligned} positions")
    return WindowSequence(
        message.request_id,
        prompt,
        message.max_tokens,
        settings,
        EncoderInput(encoder.max_encoder_len, features=message.features),
        rules=rules,
        temperatures=message.temperatures,
        num_aligned=message.num_aligned,
        text_of=encoder.text_of,
    )


def to_pooled(message: Pool, limits: IntakeLimits) -> list[Sequence]:
    """Returns a sequence for each input whose vector is wanted, or raises RequestError."""
    if not message.inputs or not 1 <= message.dimensions <= limits.embedding_size:
        raise _refusal(f"{len(message.inputs)} vectors of {message.dimensions} numbers")
    return [
        _to_pooled(message, number, prompt, limits) for number, prompt in enumerate(message.inputs)
    ]


def _to_pooled(
    message: Pool, number: int, prompt: tuple[int, ...], limits: IntakeLimits
) -> Sequence:
    encoder = limits.encoder
    if not prompt or not _fits(len(prompt), 0, limits):
        raise _refusal(f"an input of {len(prompt)} tokens")
    if min(prompt) < 0 or max(prompt) >= limits.vocab_size:
        raise _refusal("a token id outside the vocabulary")
    sequence = Sequence(
        message.request_id,
        encoder.start_token_ids if encoder else prompt,
        1,  # which is never sampled
        frozenset(),
        _GREEDY,
        cache_salt=f"{limits.rope_class(len(prompt))}\n{message.cache_salt}",
        encoder_input=EncoderInput.text(prompt) if encoder else NO_INPUT,
        is_pooled=True,
    )
    sequence.choice = number
    return sequence


def _fits(num_prompt_tokens: int, max_tokens: int, limits: IntakeLimits) -> bool:
    encoder = limits.encoder
    if encoder is None:
        return num_prompt_tokens + max_tokens <= limits.max_model_len
    is_read = num_prompt_tokens <= encoder.max_encoder_len
    return is_read and max_tokens + len(encoder.start_token_ids) - 1 <= limits.max_model_len


def _end_token_ids(sampling: SamplingParams, limits: IntakeLimits) -> frozenset[int]:
    """The tokens that end the answer, none of which is sampled before `min_tokens`.

    With `ignore_eos` the model's own are tokens like others, which `min_tokens` does not ban.
    """
    own = frozenset[int]() if sampling.ignore_eos else limits.end_token_ids
    return own | frozenset(sampling.stop_token_ids)


def _are_possible(temperatures: tuple[float, ...]) -> bool:
    return bool(temperatures) and all(0.0 <= t < math.inf for t in temperatures)


def _is_possible(sampling: SamplingParams) -> bool:
    """True when the numbers are in range; NaN is in none."""
    return (
        0 <= sampling.seed < 2**63
        and 0.0 <= sampling.temperature < math.inf
        and 0.0 <= sampling.top_p <= 1.0
        and sampling.top_k >= 0
        and 0.0 <= sampling.min_p <= 1.0
        and MIN_REPETITION_PENALTY <= sampling.repetition_penalty <= MAX_REPETITION_PENALTY
        and abs(sampling.frequency_penalty) <= MAX_PENALTY
        and abs(sampling.presence_penalty) <= MAX_PENALTY
        and all(abs(bias) <= MAX_BIAS for _, bias in sampling.logit_bias)
    )


def _is_possible_text(message: Generate) -> bool:
    """True when the detokenizer can begin with it."""
    prompt, text = message.prompt_token_ids, message.text
    is_scored = message.sampling.num_prompt_logprobs is not None
    return (
        set(text.prompt_tail) <= set(prompt)
        and "" not in text.options.stop
        and text.scored_token_ids == (prompt if is_scored else ())
        and text.options.only_scores_prompt == (message.max_tokens == 0)
    )


def _has_possible_logprobs(message: Generate) -> bool:
    """True when no more logprobs are asked for than may be."""
    sampled = message.sampling.num_logprobs or 0
    prompt = message.sampling.num_prompt_logprobs or 0
    is_scored = message.sampling.num_prompt_logprobs is not None
    num_told = len(message.prompt_token_ids) * (prompt + 1) if is_scored else 0
    return (
        0 <= sampled <= MAX_LOGPROBS
        and 0 <= prompt <= MAX_LOGPROBS
        and num_told <= MAX_PROMPT_LOGPROBS
    )


def _has_possible_tokens(sampling: SamplingParams, max_tokens: int, vocab_size: int) -> bool:
    """True when lists are short, their tokens exist, and the answer can be long enough."""
    biased = {token_id for token_id, _ in sampling.logit_bias}
    return (
        len(biased) == len(sampling.logit_bias) <= MAX_BIASED_TOKENS
        and len(sampling.stop_token_ids) <= MAX_STOP_TOKENS
        and all(0 <= token_id < vocab_size for token_id in biased.union(sampling.stop_token_ids))
        and 0 <= sampling.min_tokens <= max_tokens
    )


def _refusal(reason: str) -> RequestError:
    return RequestError(ErrorCode.INTERNAL, f"The worker was sent {reason}.")
