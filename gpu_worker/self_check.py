"""A start-up check for models that no test covers: the paged logits equal the stock ones.

Two sequences of different lengths run flat, chunked and together over a small paged cache, and
one by one through the stock attention. Wrong attention, or a row that depends on others, shows.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from gpu_worker.architectures import refusal, text_config
from gpu_worker.attention.torch_paged import TorchAttention
from gpu_worker.batch import Batch, Rows, prepare
from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.paged_attention import ATTENTION, bind
from gpu_worker.probe import ModelUse
from gpu_worker.rope import SequenceAngles
from scheduler.plan import Admission, Chunk, StepPlan
from shared.sampling import SamplingParams

_NUM_DECODES = 8  # last tokens of the shorter sequence
_SHORT = BLOCK_SIZE + _NUM_DECODES + 5
_LONG = 2 * BLOCK_SIZE + 5
_FIRST_CHUNK = 10  # of the longer sequence
_LONGEST_RULE = 256  # windows and chunks up to this are crossed; more would be slow at start
# Errors relative to the logits' own spread; wrong attention gives about 1. In half precision a few
# tokens may take another expert for rounding alone, so that only this share must be within.
_TOLERANCE = {torch.float32: (1e-3, 1.0), torch.float16: (5e-2, 0.9), torch.bfloat16: (2e-1, 0.9)}


class SelfCheck:
    """Stock logits, taken before the model is changed, and what they are compared with."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, use: ModelUse) -> None:
        self._model = model
        self._use = use
        self._token_ids = _sequences(model, use)
        model.set_attn_implementation("eager")
        try:
            forward: Any = model
            self._expected = [
                forward(input_ids=_row(ids, model.device), use_cache=False).logits[0]
                for ids in self._token_ids
            ]
        finally:
            model.set_attn_implementation(ATTENTION)

    @torch.inference_mode()
    def run(self, angles: SequenceAngles) -> float:
        """The relative error of the tokens' logits; FatalError if it is no rounding error."""
        num_blocks = sum(-(-len(ids) // BLOCK_SIZE) for ids in self._token_ids)
        backend = TorchAttention(self._use.geometry, 2 * num_blocks)
        bind(self._model, backend)
        rows = Rows(len(self._token_ids))
        actual: list[list[torch.Tensor]] = [[] for _ in self._token_ids]
        for plan in _plans(self._token_ids):
            rows.update(plan)
            batch = prepare(plan, rows, self._model.device)
            angles.begin(batch)
            backend.begin(batch)
            logits = self._logits(batch, backend)
            for span in batch.spans:
                actual[span.row].append(logits[span.start : span.end])
        pairs = zip(actual, self._expected, strict=True)
        return self._judged([_errors(torch.cat(parts), expected) for parts, expected in pairs])

    def _logits(self, batch: Batch, backend: TorchAttention) -> torch.Tensor:
        forward: Any = self._model
        logits: torch.Tensor = forward(
            input_ids=batch.token_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=torch.arange(batch.token_ids.shape[1], device=self._model.device),
            backend=backend,
        ).logits
        return logits[0]

    def _judged(self, errors: list[torch.Tensor]) -> float:
        """The worse sequence's error, where enough of its tokens are no worse."""
        tolerance, share = _TOLERANCE[self._model.dtype]
        error = max(float(own.quantile(share)) for own in errors)
        if not error < tolerance:
            raise refusal(
                text_config(self._model.config).model_type,
                f"over a paged cache its logits are not its own (relative error {error:.2g})",
            )
        return error


def _sequences(model: PreTrainedModel, use: ModelUse) -> list[list[int]]:
    """A long and a short sequence of random tokens; the long one crosses windows and chunks."""
    bounds = [rule for layer in use.layers for rule in (layer.rules.window, layer.rules.chunk)]
    crossed = max((b for b in bounds if b is not None and b <= _LONGEST_RULE), default=0)
    vocab_size = text_config(model.config).vocab_size
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(vocab_size, (length,), generator=generator).tolist()
        for length in (2 * crossed + _LONG, _SHORT)
    ]


def _plans(token_ids: list[list[int]]) -> Iterator[StepPlan]:
    """A chunk of the long sequence beside the short one, then their rests; blocks are scattered."""
    long, short = (tuple(ids) for ids in token_ids)
    sampling = SamplingParams(seed=0, temperature=0.0)
    admissions = tuple(
        Admission(row, sampling, ids, len(ids), frozenset(), ())
        for row, ids in enumerate((long, short))
    )
    odd = range(1, 2 * len(long), 2)[: -(-len(long) // BLOCK_SIZE)]
    prefills = (
        Chunk(0, 0, long[:_FIRST_CHUNK], tuple(odd[:1]), 0, samples=False),
        Chunk(1, 0, short[:-_NUM_DECODES], (2, 4), 0, samples=True),
    )
    yield StepPlan(1, admissions, prefills, 0)
    rest = Chunk(0, _FIRST_CHUNK, long[_FIRST_CHUNK:], tuple(odd[1:]), 0, samples=True)
    for position in range(len(short) - _NUM_DECODES, len(short)):
        decode = Chunk(1, position, short[position : position + 1], (), 1, samples=True)
        is_first = position == len(short) - _NUM_DECODES
        yield StepPlan(2, (), (decode, rest) if is_first else (decode,), 1)


def _row(token_ids: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([token_ids], device=device)


def _errors(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """[tokens], relative, of logits [tokens, V]; a constant added to a token's logits is none."""
    actual, expected = (
        logits.float() - logits.float().mean(-1, keepdim=True) for logits in (actual, expected)
    )
    relative: torch.Tensor = (actual - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(1e-9)
    return relative
