"""Which tokens may be sampled: min_p, then top_k, then top_p, each on what the one before left.

Probabilities are compared as sums of integers. Such sums are exact in every order, so that the set
of a row depends neither on its companions nor on how a device adds up.
"""

from dataclasses import dataclass

import torch

_MASS_BITS = 40  # the best token weighs 2**40: room for 2**23 of them in an int64
_DIGIT_BITS = 11
_NUM_BINS = 2**_DIGIT_BITS  # three digits hold the 32 bits of a float
_SIGN = -(2**31)
_NO_TOKEN = float("-inf")


@dataclass(frozen=True)
class Limits:
    """What some rows may sample, after temperature; None where no row of them asks for it."""

    log_min_ps: torch.Tensor | None  # [N, 1] float32; -inf is off
    top_ks: torch.Tensor | None  # [N, 1] int64, 1 to V; V is off
    top_ps: torch.Tensor | None  # [N, 1] float64, above 0; 1 is off


def narrow(
    logits: torch.Tensor,  # [N, V]
    temperatures: torch.Tensor,  # [N, 1]
    num_candidates: int,
    limits: Limits,  # whose top_ks are at most `num_candidates`
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns [N, K] scaled logits, best first and -inf where cut, and their token ids.

    Of equal logits the lower id is better, if it is among the candidates at all: which of those
    that tie for the last place are is `torch.topk`'s choice, a function of the row alone.
    """
    values, token_ids = logits.topk(num_candidates)
    token_ids, order = token_ids.sort(dim=-1)
    values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    token_ids = token_ids.gather(-1, order)
    scaled = _cut_min_p(values / temperatures, limits.log_min_ps)
    if limits.top_ks is not None:
        ranks = torch.arange(num_candidates, device=logits.device)
        scaled = scaled.masked_fill(ranks >= limits.top_ks, _NO_TOKEN)
    if limits.top_ps is not None:
        masses = _masses(scaled)
        before = masses.cumsum(-1) - masses
        is_beyond = (before >= _targets(masses, limits.top_ps)) & (limits.top_ps < 1.0)
        scaled = scaled.masked_fill(is_beyond, _NO_TOKEN)
    return scaled, token_ids


def wide(logits: torch.Tensor, temperatures: torch.Tensor, limits: Limits) -> torch.Tensor:
    """Returns [N, V] scaled logits, -inf where cut. Of equal logits the lower id is better."""
    scaled = _cut_min_p(logits / temperatures, limits.log_min_ps)
    if limits.top_ks is not None:
        is_kept = _heaviest(scaled, torch.ones_like(scaled, dtype=torch.long), limits.top_ks)
        scaled.masked_fill_(~is_kept, _NO_TOKEN)
    if limits.top_ps is not None:
        masses = _masses(scaled)
        is_kept = _heaviest(scaled, masses, _targets(masses, limits.top_ps))
        scaled.masked_fill_(~(is_kept | (limits.top_ps >= 1.0)), _NO_TOKEN)
    return scaled


def _cut_min_p(scaled: torch.Tensor, log_min_ps: torch.Tensor | None) -> torch.Tensor:
    """Cuts, in place, what is less likely than the best token times min_p (Nguyen et al., 2024)."""
    if log_min_ps is None:
        return scaled
    floors = scaled.amax(-1, keepdim=True) + log_min_ps
    return scaled.masked_fill_(scaled < floors, _NO_TOKEN)


def _masses(scaled: torch.Tensor) -> torch.Tensor:
    """Probabilities as integers, 2**40 for the best token of each row; int64."""
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp_()
    return weights.mul_(2.0**_MASS_BITS).long()


def _targets(masses: torch.Tensor, top_ps: torch.Tensor) -> torch.Tensor:
    """The mass that the smallest set must reach, [N, 1] int64 (Holtzman et al., 2020)."""
    return (masses.sum(-1, keepdim=True) * top_ps).ceil_().long()


def _heaviest(
    scaled: torch.Tensor,  # [N, V] float32
    weights: torch.Tensor,  # [N, V] int64, equal where `scaled` is; used up
    targets: torch.Tensor,  # [N, 1] int64
) -> torch.Tensor:
    """True for the best tokens of each row, as few as weigh `targets` together; [N, V] bool.

    A radix selection over the bits of the floats: a histogram of the weights by the highest bits
    shows where the target is reached, one by the next bits shows it more closely. No sort.
    """
    ranks = float_ranks(scaled)
    unsigned = ranks ^ _SIGN
    digits, places = torch.empty_like(ranks), torch.empty_like(weights)
    last = torch.zeros_like(targets)
    for shift in (2 * _DIGIT_BITS, _DIGIT_BITS, 0):
        torch.bitwise_right_shift(unsigned, shift, out=digits).bitwise_and_(_NUM_BINS - 1)
        bins = weights.new_zeros(len(weights), _NUM_BINS)
        bins.scatter_add_(-1, places.copy_(digits), weights)
        reached = bins.cumsum(-1)
        digit = (reached < targets).sum(-1, keepdim=True)
        digit.clamp_(max=_NUM_BINS - 1)  # rows of NaN weigh nothing sensible
        targets = targets - (reached - bins).gather(-1, digit)
        last = (last << _DIGIT_BITS) | digit
        weights.masked_fill_(digits != digit.int(), 0)
    # What still has a weight ties for the last place: by id, until the rest of the target is met.
    torch.cumsum(weights, -1, out=places).sub_(weights)
    last_rank = (last + _SIGN).int()
    return (ranks < last_rank) | ((ranks == last_rank) & (places < targets))


def float_ranks(scaled: torch.Tensor) -> torch.Tensor:
    """Numbers that order the floats from the largest down; int32."""
    bits = (scaled + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    mirror = (bits >> 31).bitwise_and_(0x7FFFFFFF)  # negative floats grow the other way (IEEE 754)
    return bits.bitwise_xor_(mirror).bitwise_not_()
