"""The fields of a request that say how tokens are chosen, and where an answer's text ends. Pure."""

import re
from collections.abc import Mapping

from frontend import decoding
from frontend.schemas import ID_PATTERN, SamplingFields
from shared.errors import BadRequest
from shared.parts import TextOptions
from shared.sampling import NUM_SEEDS, SamplingParams

# Far above any context or vocabulary, far below what a tensor index can hold.
MANY = 2**31 - 1
_TOKEN_ID = re.compile(ID_PATTERN)

# What a request means that does not say, where the model's makers do not say either (OpenAI).
_OPENAI_DEFAULTS: dict[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


def sampling(
    request: SamplingFields,
    model_defaults: Mapping[str, float],
    *,
    random_seed: int,
    max_tokens: int | None,
    max_tokens_param: str,
    num_logprobs: int | None,
    num_prompt_logprobs: int | None,
) -> SamplingParams:
    """The request's settings, else the model's, else OpenAI's; BadRequest for impossible ones."""
    values = _OPENAI_DEFAULTS | dict(model_defaults)
    for name in _OPENAI_DEFAULTS:
        if (asked := getattr(request, name)) is not None:
            values[name] = asked
    seed = random_seed if request.seed is None else request.seed
    return SamplingParams(
        seed=seed % NUM_SEEDS,
        temperature=float(values["temperature"]),
        top_p=float(values["top_p"]),
        top_k=min(max(int(values["top_k"]), 0), MANY),
        min_p=float(values["min_p"]),
        repetition_penalty=float(values["repetition_penalty"]),
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=_logit_bias(request.logit_bias),
        min_tokens=_min_tokens(request.min_tokens, max_tokens, max_tokens_param),
        ignore_eos=request.ignore_eos,
        stop_token_ids=tuple(request.stop_token_ids),
        num_logprobs=num_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
    )


def text_options(
    request: SamplingFields,
    *,
    only_scores_prompt: bool = False,
    splits_thoughts: bool = False,
    hides_special_tokens: bool = True,
) -> TextOptions:
    """How the answer becomes text; special tokens are hidden unless the request says otherwise."""
    hides, stop = request.skip_special_tokens, request.stop
    return TextOptions(
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        includes_stop=request.include_stop_str_in_output or request.no_stop_trim,
        skips_special_tokens=hides_special_tokens if hides is None else hides,
        only_scores_prompt=only_scores_prompt,
        splits_thoughts=splits_thoughts,
    )


def _logit_bias(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    for name in given:
        if not _TOKEN_ID.fullmatch(name):
            sentence = f"The keys of 'logit_bias' are token ids, not {decoding.quoted(name)}."
            raise BadRequest(sentence, "logit_bias")
    return tuple((int(name), bias) for name, bias in given.items())


def _min_tokens(asked: int, max_tokens: int | None, param: str) -> int:
    """Within `max_tokens`; what the context leaves is known to the tokenizer only."""
    if max_tokens is not None and asked > max_tokens:
        sentence = f"'min_tokens' is at most '{param}', which is {max_tokens} here."
        raise BadRequest(sentence, "min_tokens")
    return min(asked, MANY)
