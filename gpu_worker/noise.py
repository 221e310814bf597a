"""The randomness of sampling: a hash of (seed, number of the token in its answer, token id).

It is counter-based (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"): the noise
of a token depends neither on the batch, nor on the row, nor on what was sampled before. The
Gumbel-max trick in its exponential form picks argmax(p / e) with e ~ Exp(1): a sample of p.
"""

import torch

from gpu_worker.best import best_tokens

# Multipliers and shifts of splitmix64 (Steele et al., 2014, "Fast splittable pseudorandom number
# generators"), written as signed 64-bit integers because torch has no unsigned arithmetic.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_MAX_UNIFORM = 1.0 - 2.0**-24  # largest float32 below 1: log1p(-1) would be infinite


def token_hashes(vocab_size: int, device: torch.device) -> torch.Tensor:
    """One hash for each token id, [V] int64; computed once and shared by all rows."""
    return _mix(torch.arange(vocab_size, device=device) * _GOLDEN)


def exponential(
    seeds: torch.Tensor,  # [N] int64
    output_indices: torch.Tensor,  # [N] int64
    hashes: torch.Tensor,  # [V] int64, or [N, K] of some tokens of each row
) -> torch.Tensor:
    """Noise ~ Exp(1) for every (seed, output index, token); [N, V] or [N, K] float32, never 0."""
    row_keys = _mix(_mix(seeds + _GOLDEN) + output_indices * _GOLDEN)  # [N]
    bits = _mix(row_keys[:, None] ^ hashes)
    # The upper half as a number of (0, 1), finest near 0, where it decides most.
    uniform = _shift(bits, 32, out=bits).float().add_(0.5).mul_(2.0**-32)
    return uniform.clamp_(max=_MAX_UNIFORM).neg_().log1p_().neg_()


def draw(
    logits: torch.Tensor,  # [N, V] or [N, K] float32; log p up to a constant of each row
    seeds: torch.Tensor,
    output_indices: torch.Tensor,
    hashes: torch.Tensor,
) -> torch.Tensor:
    """Samples one column of each row, [N] int64; the last three as in `exponential`."""
    noise = exponential(seeds, output_indices, hashes)
    # The largest p / e is the largest log p - log e.
    return best_tokens(torch.sub(logits, noise.log_(), out=noise))[1]


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 on int64, in place, wrapping around as it must; returns `x`."""
    spare = torch.empty_like(x)
    x.bitwise_xor_(_shift(x, 30, out=spare)).mul_(_MIX_1)
    x.bitwise_xor_(_shift(x, 27, out=spare)).mul_(_MIX_2)
    return x.bitwise_xor_(_shift(x, 31, out=spare))


def _shift(x: torch.Tensor, bits: int, *, out: torch.Tensor) -> torch.Tensor:
    """Logical shift to the right: torch's own keeps the sign."""
    torch.bitwise_right_shift(x, bits, out=out)
    return out.bitwise_and_((1 << (64 - bits)) - 1)
