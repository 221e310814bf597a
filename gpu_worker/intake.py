"""The worker's door: a Generate becomes a Sequence, or is refused. Nothing behind it checks again.

The tokenizer has checked the same before; a wrong id or length that came this far would otherwise
fail inside the model and harm every request of its step.
"""

import math
from dataclasses import dataclass

from scheduler.sequence import Sequence
from shared.errors import ErrorCode, RequestError
from shared.messages import Generate
from shared.sampling import SamplingParams


@dataclass(frozen=True)
class IntakeLimits:
    """What the loaded model can take."""

    max_model_len: int  # tokens of prompt and answer
    vocab_size: int
    end_token_ids: frozenset[int]


def to_sequence(message: Generate, limits: IntakeLimits) -> Sequence:
    """Returns the sequence to schedule, or raises RequestError."""
    prompt = message.prompt_token_ids
    if not prompt or message.max_tokens < 1:
        raise _refusal("an empty prompt or answer")
    if len(prompt) + message.max_tokens > limits.max_model_len:
        raise _refusal(f"{len(prompt)} + {message.max_tokens} tokens exceed {limits.max_model_len}")
    if min(prompt) < 0 or max(prompt) >= limits.vocab_size:
        raise _refusal("a token id outside the vocabulary")
    tail = message.text.prompt_tail
    if not set(tail) <= set(prompt) or "" in message.text.stop:
        raise _refusal("an impossible beginning of its text")
    if not _is_possible(message.sampling):
        raise _refusal(f"impossible settings: {message.sampling}")
    return Sequence(
        message.request_id, prompt, message.max_tokens, limits.end_token_ids, message.sampling
    )


def _is_possible(sampling: SamplingParams) -> bool:
    return (
        0 <= sampling.seed < 2**63
        and 0.0 <= sampling.temperature < math.inf
        and 0.0 <= sampling.top_p <= 1.0
        and sampling.top_k >= 0
    )


def _refusal(reason: str) -> RequestError:
    return RequestError(ErrorCode.INTERNAL, f"The worker was sent {reason}.")
