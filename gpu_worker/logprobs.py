"""Logits to log probabilities, for those who ask, and the one transfer of a step's results.

A token's logprob is the log softmax of the model's own logits in float32, before any setting of
the caller (vLLM's "raw"). Each row is computed by itself, so that it does not depend on its
company. Nothing here waits for the device but `Results.read`, once a step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import torch

from gpu_worker.download import Download
from gpu_worker.pooling import read_vectors
from gpu_worker.tiles import rows_at_once
from gpu_worker.truncation import float_ranks
from gpu_worker.upload import upload
from scheduler.plan import Admission, Chunk, StepPlan, StepResult, TokenScore
from shared.sampling import MIN_LOGPROB

_ID_BITS = 32
_PROMPT_LOGITS = 2**25  # at once: 256 tokens at a vocabulary of 128 Ki, 64 MiB in half precision


@dataclass(frozen=True)
class Scores:
    """How likely some tokens were; on the device until somebody reads it."""

    # [M, 1 + 2 K] float64, which holds ids and float32 numbers alike: the token's logprob, the ids
    # of the K best tokens, their logprobs. NaN where the logits were not numbers.
    values: torch.Tensor
    counts: tuple[int, ...]  # of the best tokens, how many each row asks for; K is the largest

    def read(self, numbers: Iterator[float]) -> Iterator[TokenScore | None]:
        """What was asked for, from the numbers of `values`; None for NaN."""
        width = self.values.shape[1]
        for count in self.counts:
            logprob, *best = islice(numbers, width)
            ids, logprobs = best[:count], best[width // 2 :][:count]
            is_number = not math.isnan(logprob)
            yield TokenScore(logprob, tuple(map(int, ids)), tuple(logprobs)) if is_number else None


class Computed(NamedTuple):
    """What one forward pass gave, on the device."""

    token_ids: torch.Tensor  # [N] int64
    asking: tuple[int, ...]  # which of the N are scored
    scores: tuple[Scores, ...]  # of these
    prompt_scores: tuple[Scores, ...]  # of the plan's targets
    vectors: torch.Tensor | None = None  # [P, D] float32, of the plan's prompts that are pooled
    alignments: tuple[torch.Tensor, ...] = ()  # [T, E] float32, of each chunk that aligns

    def flat(self) -> torch.Tensor:
        """All of it but vectors and alignments, which are rare, in one row, float64."""
        parts = [scores.values.view(-1) for scores in (*self.scores, *self.prompt_scores)]
        return torch.cat([self.token_ids.double(), *parts])

    def read(self, numbers: Iterator[float], vectors: torch.Tensor | None) -> StepResult:
        """The result, from the numbers of `flat`, the vectors on the host, and the others."""
        token_ids = tuple(int(number) for number in islice(numbers, len(self.token_ids)))
        scores: list[TokenScore | None] = [None] * len(token_ids)
        found = chain.from_iterable(part.read(numbers) for part in self.scores)
        for place, score in zip(self.asking, found, strict=True):
            scores[place] = score
        prompt_scores = chain.from_iterable(part.read(numbers) for part in self.prompt_scores)
        return StepResult(
            token_ids,
            scores=tuple(scores),
            prompt_scores=tuple(prompt_scores),
            vectors=() if vectors is None else read_vectors(vectors),
            alignments=tuple(matrix.cpu().numpy().tobytes() for matrix in self.alignments),
        )


class Results:
    """What a step's forward passes gave, on its way to the host."""

    def __init__(self, passes: list[Computed]) -> None:
        first = passes[0]
        has_others = first.vectors is not None or first.alignments
        has_more = first.scores or first.prompt_scores or has_others
        self._passes = passes
        self._is_plain = len(passes) == 1 and not has_more
        self._numbers = Download(
            first.token_ids if self._is_plain else torch.cat([part.flat() for part in passes])
        )
        self._vectors = [
            None if part.vectors is None else Download(part.vectors) for part in passes
        ]

    def read(self) -> StepResult:
        """The step's result; waits for the device."""
        if self._is_plain:
            return StepResult(tuple(self._numbers.read().tolist()))
        numbers = iter(self._numbers.read().tolist())
        found = zip(self._passes, self._vectors, strict=True)
        return StepResult.joined(
            part.read(numbers, None if vectors is None else vectors.read())
            for part, vectors in found
        )


def read(passes: list[Computed]) -> StepResult:
    """The result of the step whose parts these forward passes computed; waits for the device."""
    return Results(passes).read()


@dataclass(frozen=True)
class _Asking:
    """Rows of a step that are scored together."""

    positions: torch.Tensor  # [M] int64, in the step
    counts: tuple[int, ...]


class Scorer:
    """Keeps what every row asks to be told, and scores those that ask."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._rows_at_once = rows_at_once(vocab_size, device)
        self._counts: dict[int, int] = {}  # by row that asks: alternatives to a sampled token
        self._prompt_counts: dict[int, int] = {}  # to a prompt's token
        self._host_rows: list[int] | None = None  # of the step that the next two are for
        self._places: tuple[int, ...] = ()
        self._asking: tuple[_Asking, ...] = ()

    def begin(self, admission: Admission) -> None:
        """Gives the row to another sequence."""
        row, sampling = admission.row, admission.sampling
        for counts, asked in (
            (self._counts, sampling.num_logprobs),
            (self._prompt_counts, sampling.num_prompt_logprobs),
        ):
            counts.pop(row, None)
            if asked is not None:
                counts[row] = min(asked, self._vocab_size)
        self._host_rows = None

    def score_sampled(
        self, logits: torch.Tensor, token_ids: torch.Tensor, host_rows: list[int]
    ) -> tuple[tuple[int, ...], tuple[Scores, ...]]:
        """Which of the sampled tokens [N] ask, and the scores of these; `logits` is [N, V]."""
        if not self._counts:
            return (), ()
        if self._host_rows != host_rows:
            self._arrange(host_rows)
        return self._places, tuple(
            _score(
                logits.index_select(0, asking.positions),
                token_ids.index_select(0, asking.positions),
                asking.counts,
            )
            for asking in self._asking
        )

    def score_prompts(
        self, logits: torch.Tensor, targets: torch.Tensor, chunks: tuple[Chunk, ...]
    ) -> tuple[Scores, ...]:
        """The scores of the targets [S] of these chunks; `logits` is [S, V]."""
        counts = tuple(
            self._prompt_counts[chunk.row] for chunk in chunks for _ in range(len(chunk.targets))
        )
        cuts = [slice(n, n + self._rows_at_once) for n in range(0, len(counts), self._rows_at_once)]
        return tuple(_score(logits[cut], targets[cut], counts[cut]) for cut in cuts)

    def _arrange(self, host_rows: list[int]) -> None:
        """Finds the rows of a step that ask; they stay the same as long as its rows do."""
        self._host_rows = list(host_rows)
        self._places = tuple(n for n, row in enumerate(host_rows) if row in self._counts)
        size = self._rows_at_once
        parts = [self._places[n : n + size] for n in range(0, len(self._places), size)]
        self._asking = tuple(
            _Asking(
                upload(part, torch.long, self._device),
                tuple(self._counts[host_rows[place]] for place in part),
            )
            for part in parts
        )


def _score(logits: torch.Tensor, token_ids: torch.Tensor, counts: tuple[int, ...]) -> Scores:
    """Scores tokens [M] by their logits [M, V]."""
    logprobs = torch.log_softmax(logits, -1, dtype=torch.float32)
    own = logprobs.gather(-1, token_ids[:, None].clamp(min=0))  # NO_TOKEN is none
    ids = _best(logprobs, max(counts))
    told = torch.cat((own, logprobs.gather(-1, ids)), -1).clamp_(min=MIN_LOGPROB).double()
    return Scores(torch.cat((told[:, :1], ids.double(), told[:, 1:]), -1), counts)


def _best(logprobs: torch.Tensor, count: int) -> torch.Tensor:
    """Ids of the best tokens of each row, [M, count] int64: the best first, equals by id."""
    if not count:
        return torch.empty(len(logprobs), 0, dtype=torch.long, device=logprobs.device)
    # Numbers that are all different, the smaller the better: `topk` has no choice to make.
    keys = float_ranks(logprobs).long().bitwise_left_shift_(_ID_BITS)
    keys.bitwise_or_(torch.arange(logprobs.shape[1], device=logprobs.device))
    return keys.topk(count, largest=False).values.bitwise_and_(2**_ID_BITS - 1)


def prompt_tiles(plan: StepPlan, vocab_size: int, block_size: int) -> list[StepPlan]:
    """The plan in parts whose forward passes hold no more logits of prompts than memory may take.

    A prompt's logits are far larger than all else in a step: at a vocabulary of 128,000, half a
    mebibyte a token.
    """
    if plan.num_decodes == len(plan.chunks):
        return [plan]
    return [*plan.tiles(max(1, _PROMPT_LOGITS // vocab_size), block_size)]
