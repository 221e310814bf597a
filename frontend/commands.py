"""What a tokenizer is told of a request. Pure."""

import struct
from dataclasses import replace

from frontend.life import Life
from frontend.submission import Embedding, Lookup, Submission, Transcription, Wanted
from shared.config import Identity
from shared.messages import Decode, Embed, Encode, Tokenize, Transcribe
from shared.parts import (
    Prompt,
    Route,
    TextOptions,
    TranscriptOptions,
)
from shared.sampling import MAX_PROMPT_LOGPROBS, NUM_SEEDS, SamplingParams

# One greedy token after one token that every vocabulary has.
_WARM_UP = Submission(
    id_prefix="warm-up",
    prompts=(Prompt(token_ids=(0,)),),
    max_tokens=1,
    is_strict=False,
    echo=False,
    text=TextOptions(),
    sampling=SamplingParams(seed=0, temperature=0.0),
    num_choices=1,
    cache_salt="",
)

# A tenth of a second in which nothing is heard, as a WAV file.
_NUM_SILENT = 1600
_SILENCE = Transcription(
    b"RIFF" + struct.pack("<I", 36 + 2 * _NUM_SILENT) + b"WAVEfmt "
    + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    + b"data" + struct.pack("<I", 2 * _NUM_SILENT) + bytes(2 * _NUM_SILENT),
    TranscriptOptions(),
    SamplingParams(seed=0, temperature=0.0),
)  # fmt: skip


def command(
    request_id: str, wanted: Wanted, number: int, route: Route, worker: Life
) -> Tokenize | Embed | Transcribe:
    """What the tokenizer is told of a request, or of the `number`-th of its prompts."""
    if isinstance(wanted, Transcription):
        return Transcribe(
            request_id,
            route,
            worker.number,
            wanted.options,
            wanted.sampling,
            wanted.audio,
        )
    if isinstance(wanted, Embedding):
        return Embed(
            request_id,
            replace(route, detokenizer_epoch=None),
            worker.number,
            wanted.inputs,
            wanted.dimensions,
            wanted.cache_salt,
        )
    return _tokenize(request_id, wanted, number, route, worker)


def _tokenize(
    request_id: str, wanted: Submission, number: int, route: Route, worker: Life
) -> Tokenize:
    seed = (wanted.sampling.seed + number * wanted.num_choices) % NUM_SEEDS
    return Tokenize(
        request_id=request_id,
        route=route,
        worker_id=worker.number,
        prompt=wanted.prompts[number],
        max_tokens=wanted.max_tokens,
        max_tokens_param=wanted.max_tokens_param,
        is_strict=wanted.is_strict,
        echo=wanted.echo,
        text=wanted.text,
        sampling=replace(wanted.sampling, seed=seed),
        # Each choice shows its prompt's scores.
        max_prompt_scores=MAX_PROMPT_LOGPROBS // wanted.total_choices,
        num_choices=wanted.num_choices,
        cache_salt=wanted.cache_salt,
    )


def route(frontend: Identity, detokenizer: Life) -> Route:
    """The lives that an answer goes through."""
    return Route(frontend.index, frontend.epoch, detokenizer.epoch, detokenizer.number)


def warm_up(
    request_id: str, route: Route, worker: Life, *, hears: bool
) -> Tokenize | Embed | Transcribe:
    """The command for the first words that show that the rooms work together."""
    return command(request_id, _SILENCE if hears else _WARM_UP, 0, route, worker)


def look_up(request_id: str, wanted: Lookup, frontend_id: int) -> Encode | Decode:
    """The command for a request that a tokenizer alone answers."""
    if wanted.prompt is None:
        return Decode(request_id, frontend_id, wanted.token_ids)
    return Encode(request_id, frontend_id, wanted.prompt, wanted.wants_strings)
