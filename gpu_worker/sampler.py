"""Logits to token ids, each row with its own settings, independent of every other row.

The order is repetition penalty, frequency and presence penalties, bias, end tokens held back, then
temperature, min_p, top_k, top_p. A greedy row takes the best token after the first four. It is
vLLM's order but for the bias, which vLLM and HF apply before the repetition penalty: here it is
added last, so that it is what OpenAI documents, whatever the token's past. HF takes min_p after
top_p; here, as in vLLM, top_p is a share of what min_p and top_k left.

Rows that ask for the same are sampled together, and how a row is computed depends on its own
settings only. Nothing here waits for the device: what the host knows of a step goes to it when the
rows of the step change, and stays there.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gpu_worker import noise
from gpu_worker.best import best_tokens
from gpu_worker.bias import Biased, Biases
from gpu_worker.penalties import Penalized, Penalties
from gpu_worker.tiles import rows_at_once
from gpu_worker.truncation import Limits, narrow, wide
from gpu_worker.upload import upload
from scheduler.plan import NO_TOKEN, Admission, StepPlan
from shared.sampling import SamplingParams

# With a top_k up to one of these, no more than so many tokens are looked at.
_NUMBERS_OF_CANDIDATES = (64, 1024)


class _Kind(NamedTuple):
    """What rows have in common that are sampled together."""

    num_candidates: int  # 0: the whole vocabulary
    has_min_p: bool
    has_top_k: bool
    has_top_p: bool


@dataclass(frozen=True)
class _Group:
    """Rows of a tile that are sampled together."""

    positions: torch.Tensor | None  # [G] int64, in the tile; None: all of it, in order
    seeds: torch.Tensor  # [G] int64
    temperatures: torch.Tensor  # [G, 1] float32
    num_candidates: int
    limits: Limits

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The group's rows of a tensor [N, …]."""
        return values if self.positions is None else values.index_select(0, self.positions)


@dataclass(frozen=True)
class _Tile:
    """What the host knows of some rows of a step; it holds as long as the step's rows do."""

    start: int  # position in the step
    end: int
    penalized: Penalized | None
    biased: Biased | None
    groups: tuple[_Group, ...]  # without the greedy rows

    @property
    def is_plain(self) -> bool:
        """True when all that is wanted is the best token of each row."""
        return self.penalized is None and self.biased is None and not self.groups


class Sampler:
    """Keeps the settings of every row and samples one token for each row it is asked for."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._settings: list[SamplingParams | None] = [None] * num_rows  # where chance has a part
        self._penalties = Penalties(num_rows, vocab_size, device)
        self._biases = Biases(vocab_size, device)
        self._token_hashes = noise.token_hashes(vocab_size, device)  # [V]
        self._rows_at_once = rows_at_once(vocab_size, device)
        self._host_rows: list[int] | None = None  # of the step that the tiles are for
        self._tiles: tuple[_Tile, ...] = ()

    def begin(self, admission: Admission) -> None:
        """Gives the row to another sequence."""
        sampling = admission.sampling
        self._settings[admission.row] = None if _takes_the_best(sampling) else sampling
        self._penalties.begin(admission)
        self._biases.begin(admission)
        self._host_rows = None

    def observe(self, plan: StepPlan) -> None:
        """Counts the tokens that the plan's decode chunks feed; a second time changes nothing."""
        self._penalties.observe(plan)

    def sample(
        self,
        logits: torch.Tensor,  # [N, V]
        rows: torch.Tensor,  # [N] int64
        output_indices: torch.Tensor,  # [N] int64
        host_rows: list[int],  # the same rows, known without asking the device
    ) -> torch.Tensor:
        """Returns [N] int64 token ids; NO_TOKEN where a row holds NaN or no finite logit."""
        if self._host_rows != host_rows:
            self._tiles = self._split(host_rows)
            self._host_rows = list(host_rows)
        if len(self._tiles) == 1:
            return self._sample_tile(self._tiles[0], logits, rows, output_indices)
        parts = []
        for tile in self._tiles:
            cut = slice(tile.start, tile.end)
            parts.append(self._sample_tile(tile, logits[cut], rows[cut], output_indices[cut]))
        return torch.cat(parts)

    def _sample_tile(
        self, tile: _Tile, logits: torch.Tensor, rows: torch.Tensor, output_indices: torch.Tensor
    ) -> torch.Tensor:
        is_edited = tile.penalized is not None or tile.biased is not None
        if not tile.is_plain:  # the best token is the same in any precision
            logits = logits.to(torch.float32, copy=is_edited)
        if tile.penalized is not None:
            self._penalties.apply(logits, rows, tile.penalized)
        if tile.biased is not None:
            self._biases.apply(logits, output_indices, tile.biased)
        best, token_ids = best_tokens(logits)  # of a row with a NaN it is NaN
        for group in tile.groups:
            sampled = self._sample_group(group, group.of(logits), group.of(output_indices))
            if group.positions is None:
                token_ids = sampled
            else:
                token_ids.index_copy_(0, group.positions, sampled)
        return token_ids.masked_fill(~best.isfinite(), NO_TOKEN)

    def _sample_group(
        self, group: _Group, logits: torch.Tensor, output_indices: torch.Tensor
    ) -> torch.Tensor:
        if not group.num_candidates:
            scaled = wide(logits, group.temperatures, group.limits)
            return noise.draw(scaled, group.seeds, output_indices, self._token_hashes)
        scaled, candidates = narrow(logits, group.temperatures, group.num_candidates, group.limits)
        hashes = self._token_hashes[candidates]
        columns = noise.draw(scaled, group.seeds, output_indices, hashes)
        return candidates.gather(-1, columns[:, None])[:, 0]

    def _split(self, host_rows: list[int]) -> tuple[_Tile, ...]:
        """The step in tiles of a good size; in one if each row just takes its best token."""
        num_rows, size = len(host_rows), self._rows_at_once
        whole = self._tile(host_rows, 0, num_rows)
        if num_rows <= size or whole.is_plain:
            return (whole,)
        starts = range(0, num_rows, size)
        return tuple(self._tile(host_rows, n, min(n + size, num_rows)) for n in starts)

    def _tile(self, host_rows: list[int], start: int, end: int) -> _Tile:
        tile_rows = host_rows[start:end]
        return _Tile(
            start,
            end,
            self._penalties.arrange(tile_rows),
            self._biases.arrange(tile_rows),
            tuple(self._groups(tile_rows)),
        )

    def _groups(self, tile_rows: list[int]) -> Iterator[_Group]:
        """The rows that are not greedy, by what they ask for."""
        members: defaultdict[_Kind, dict[int, SamplingParams]] = defaultdict(dict)
        for position, row in enumerate(tile_rows):
            sampling = self._settings[row]
            if sampling is not None:
                members[_kind(sampling, self._vocab_size)][position] = sampling
        for kind, settings in members.items():
            positions = None if len(settings) == len(tile_rows) else list(settings)
            yield self._group(kind, list(settings.values()), positions)

    def _group(
        self, kind: _Kind, settings: list[SamplingParams], positions: list[int] | None
    ) -> _Group:
        def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return upload(values, dtype, self._device)[:, None]

        log_min_ps = [math.log(s.min_p) for s in settings] if kind.has_min_p else None
        top_ks = [s.top_k for s in settings] if kind.has_top_k else None
        top_ps = [s.top_p for s in settings] if kind.has_top_p else None
        return _Group(
            positions=None if positions is None else upload(positions, torch.long, self._device),
            seeds=upload([s.seed for s in settings], torch.long, self._device),
            temperatures=column([s.temperature for s in settings]),
            num_candidates=kind.num_candidates,
            limits=Limits(
                log_min_ps=None if log_min_ps is None else column(log_min_ps),
                top_ks=None if top_ks is None else column(top_ks, torch.long),
                top_ps=None if top_ps is None else column(top_ps, torch.float64),
            ),
        )


def _takes_the_best(sampling: SamplingParams) -> bool:
    """True when nothing is left to chance: also where min_p leaves only the best."""
    return sampling.is_greedy or sampling.min_p >= 1.0


def _kind(sampling: SamplingParams, vocab_size: int) -> _Kind:
    has_top_k = 0 < sampling.top_k < vocab_size
    enough = [k for k in _NUMBERS_OF_CANDIDATES if has_top_k and k >= sampling.top_k]
    return _Kind(
        num_candidates=min(enough[0], vocab_size) if enough else 0,
        has_min_p=sampling.min_p > 0.0,
        has_top_k=has_top_k,
        has_top_p=sampling.top_p < 1.0,
    )
