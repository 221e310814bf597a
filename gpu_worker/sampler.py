"""Logits to token ids, each row with its own settings, independent of every other row.

Randomness is counter-based (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"):
the noise of a token is a hash of (seed, number of the token in its answer, token id), so it does
not depend on the batch, on the row, or on what was sampled before. The Gumbel-max trick in its
exponential form picks argmax(p / e) with e ~ Exp(1), which is a sample of p.
"""

import torch

from scheduler.plan import NO_TOKEN, Admission

# Multipliers and shift of splitmix64 (Steele et al., 2014, "Fast splittable pseudorandom number
# generators"), written as signed 64-bit integers because torch has no unsigned arithmetic.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_MAX_UNIFORM = 1.0 - 2.0**-24  # largest float32 below 1: log1p(-1) would be infinite


class Sampler:
    """Keeps the settings of every row and samples one token for each row it is asked for."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._random_rows: set[int] = set()
        self._filtered_rows: set[int] = set()
        self._seeds = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._temperatures = torch.ones(num_rows, device=device)
        self._top_ps = torch.ones(num_rows, device=device)
        self._top_ks = torch.full((num_rows,), vocab_size, device=device)
        self._token_hashes = _mix(torch.arange(vocab_size, device=device) * _GOLDEN)  # [V]

    def begin(self, admission: Admission) -> None:
        """Gives the row to another sequence."""
        row, sampling = admission.row, admission.sampling
        self._random_rows.discard(row)
        self._filtered_rows.discard(row)
        if sampling.is_greedy:
            return
        self._random_rows.add(row)
        self._seeds[row] = sampling.seed
        self._temperatures[row] = sampling.temperature
        self._top_ps[row] = sampling.top_p
        self._top_ks[row] = min(sampling.top_k or self._vocab_size, self._vocab_size)
        if sampling.top_p < 1.0 or 0 < sampling.top_k < self._vocab_size:
            self._filtered_rows.add(row)

    def sample(
        self,
        logits: torch.Tensor,  # [N, V]
        rows: torch.Tensor,  # [N] int64
        output_indices: torch.Tensor,  # [N] int64
        host_rows: list[int],  # the same rows, known without asking the device
    ) -> torch.Tensor:
        """Returns [N] int64 token ids; NO_TOKEN where a row holds NaN or no finite logit."""
        logits = logits.float()
        token_ids = logits.argmax(-1)
        random = [n for n, row in enumerate(host_rows) if row in self._random_rows]
        if random:
            chosen = torch.tensor(random, device=logits.device)
            filtered = any(host_rows[n] in self._filtered_rows for n in random)
            token_ids[chosen] = self._sample_random(
                logits[chosen], rows[chosen], output_indices[chosen], filtered=filtered
            )
        is_broken = ~logits.amax(-1).isfinite()  # amax of a row with a NaN is NaN
        return token_ids.masked_fill(is_broken, NO_TOKEN)

    def _sample_random(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        output_indices: torch.Tensor,
        *,
        filtered: bool,
    ) -> torch.Tensor:
        scaled = logits / self._temperatures[rows, None]
        if filtered:
            scaled = _filter(scaled, self._top_ks[rows], self._top_ps[rows])
        noise = _exponential(self._seeds[rows], output_indices, self._token_hashes)
        # The largest p / e is the largest log p - log e; logits are log p up to a constant.
        return (scaled - noise.log()).argmax(-1)


def _filter(logits: torch.Tensor, top_ks: torch.Tensor, top_ps: torch.Tensor) -> torch.Tensor:
    """Sets to -inf all but the top k, then all but the smallest set of probability p; [N, V]."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    ordered = ordered.masked_fill(ranks >= top_ks[:, None], float("-inf"))
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # the first token always stays
    # A row without top p keeps its tail, which rounding puts at 1.0, whoever shares its batch.
    is_beyond = (before >= top_ps[:, None]) & (top_ps[:, None] < 1.0)
    ordered = ordered.masked_fill(is_beyond, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def _exponential(
    seeds: torch.Tensor, output_indices: torch.Tensor, token_hashes: torch.Tensor
) -> torch.Tensor:
    """Noise ~ Exp(1) for every (seed, output index, token id); [N, V] float32, never 0."""
    row_keys = _mix(_mix(seeds + _GOLDEN) + output_indices * _GOLDEN)  # [N]
    bits = _mix(row_keys[:, None] ^ token_hashes)  # [N, V]
    uniform = (_shift(bits, 32).float() + 0.5) * 2.0**-32  # finest near 0, where it decides most
    return -torch.log1p(-uniform.clamp(max=_MAX_UNIFORM))


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 on int64 tensors, wrapping around as it must."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right: torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
