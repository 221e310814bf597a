"""Validated generation settings, as every room sees them. A leaf: the scheduler may import it."""

from dataclasses import dataclass

# Temperatures below this are greedy: dividing logits by less overflows float32 for real models.
GREEDY_BELOW = 1e-5

NUM_SEEDS = 2**63

# What the frontend lets in and the worker relies on.
MAX_TEMPERATURE = 2.0  # (OpenAI)
MAX_PENALTY = 2.0  # of frequency and presence, both ways (OpenAI)
MIN_REPETITION_PENALTY = 0.01  # logits are divided by it and must stay finite
MAX_REPETITION_PENALTY = 10.0
MAX_BIAS = 100.0  # both ways (OpenAI)
MAX_BIASED_TOKENS = 1024
MAX_STOP_TOKENS = 128
MAX_LOGPROBS = 20  # alternatives to a token (OpenAI)
MAX_PROMPT_LOGPROBS = 65_536  # of a request: tokens of its prompts x (alternatives + 1) x n
MIN_LOGPROB = -9999.0  # stands for all below, minus infinity too (OpenAI)

# What a request need not say, because the server's settings or the model's makers may: the range of
# each, and whether it is a whole number.
DEFAULT_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, MAX_TEMPERATURE),
    "top_p": (0.0, 1.0),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
}
WHOLE_NUMBERS = frozenset({"top_k"})


def is_possible_default(name: str, value: object) -> bool:
    """True for a value that a request may have in one of these fields."""
    if name not in DEFAULT_RANGES or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = DEFAULT_RANGES[name]
    is_whole = name not in WHOLE_NUMBERS or isinstance(value, int)
    return low <= value <= high and is_whole  # NaN is in no range


@dataclass(frozen=True)
class TranscriptRules:
    """What a window of sound may be answered with, token by token (Whisper).

    At first come tokens that say what the answer is; then text, in which times may be marked.
    """

    heads: tuple[tuple[int, ...], ...]  # of each of the first tokens, those that it may be
    end_token_id: int
    suppressed: tuple[int, ...] = ()
    suppressed_at_first: tuple[int, ...] = ()  # as the first token of the text
    no_speech_id: int | None = None  # told with the first token: how likely it was in its place
    first_time_id: int | None = None  # the ids from here on mark times; None: none are marked
    max_first_time: int | None = None  # what the first mark may be: so many ids after the first

    def all_ids(self) -> set[int]:
        """Every token that is named, the end included."""
        named = {id_ for id_ in (self.no_speech_id, self.first_time_id) if id_ is not None}
        heads = {id_ for head in self.heads for id_ in head}
        return {*named, *heads, *self.suppressed, *self.suppressed_at_first, self.end_token_id}


@dataclass(frozen=True)
class SamplingParams:
    """How one sequence's next token is chosen, and which tokens may end it.

    The order is: penalties, bias and `min_tokens` on the logits, then temperature, then `min_p`,
    `top_k` and `top_p`. `seed` is always set: a request without one gets a random seed where it is
    admitted, so that the noise of a sequence never depends on who shares its batch.
    """

    seed: int  # 0 <= seed < NUM_SEEDS
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # smallest set of tokens with at least this probability; 0 is the best token
    top_k: int = 0  # 0 is off
    min_p: float = 0.0  # tokens under this share of the best one's probability are out; 0 is off
    repetition_penalty: float = 1.0  # > 0; of tokens in prompt or answer (Keskar et al., 2019)
    frequency_penalty: float = 0.0  # times the token's count in the answer (OpenAI)
    presence_penalty: float = 0.0  # once for a token that is in the answer (OpenAI)
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    min_tokens: int = 0  # no end token is sampled, and no stop string counts, before as many
    ignore_eos: bool = False  # the model's own end tokens do not end the answer
    stop_token_ids: tuple[int, ...] = ()  # further end tokens
    num_logprobs: int | None = None  # alternatives to tell of each sampled token; None: none told
    num_prompt_logprobs: int | None = None  # the same of each prompt token but the first
    transcript: TranscriptRules | None = None

    @property
    def is_greedy(self) -> bool:
        """True when the best token is always taken."""
        return self.temperature < GREEDY_BELOW or self.top_p == 0.0 or self.top_k == 1
