"""The noise is a hash of seed, output index and token, and distributed as it should be."""

import numpy as np
import pytest
import torch

from gpu_worker import noise as noise_module
from gpu_worker.noise import _mix, exponential, token_hashes
from tests.gpu_worker.sampling import CPU


def noise(seeds: list[int], indices: list[int], vocab_size: int) -> torch.Tensor:
    """[N, V] of the noise that the sampler would use."""
    return exponential(torch.tensor(seeds), torch.tensor(indices), token_hashes(vocab_size, CPU))


def test_every_seed_index_and_token_has_its_own_noise() -> None:
    seeds = [seed for seed in (0, 1, 2, 2**63 - 1) for _ in range(8)]
    values = noise(seeds, list(range(8)) * 4, 1000).flatten()
    # 32,000 draws of 2**32: about a tenth of a pair is expected to meet; float32 merges some more.
    assert len(values.unique()) > 0.999 * len(values)


def test_a_seeds_next_token_is_not_the_next_seeds_token() -> None:
    ours, theirs = noise([5], [1], 1000), noise([6], [0], 1000)
    assert not torch.isclose(ours, theirs).any()


def test_noise_isexponential() -> None:
    values = noise([1, 2, 3, 4], [0, 1, 2, 3], 50_000).double()
    assert values.mean().item() == pytest.approx(1.0, abs=0.01)
    assert values.var().item() == pytest.approx(1.0, abs=0.03)
    assert (values < 0.1).double().mean().item() == pytest.approx(1 - np.exp(-0.1), abs=0.003)


@pytest.mark.parametrize("bits", [0, -1, 2**63 - 1, -(2**63), (1 << 32) - 1, -(1 << 32)])
def test_noise_is_positive_and_finite_whatever_the_hash(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise_module, "_mix", lambda x: x.fill_(bits))
    values = exponential(torch.tensor([1]), torch.tensor([1]), torch.tensor([1, 2]))
    assert (values > 0).all()
    assert values.log().isfinite().all()


def test_the_hash_is_splitmix64() -> None:
    state = torch.tensor([1234567]) + noise_module._GOLDEN
    # First output of the reference implementation, https://prng.di.unimi.it/splitmix64.c
    assert _mix(state).item() % 2**64 == 6457827717110365317


@pytest.mark.parametrize("vocab_size", [1, 7, 97, 1003, 50_001])
def test_a_rows_noise_is_the_same_bit_for_bit_in_any_company(vocab_size: int) -> None:
    together = noise(list(range(9)), list(range(9)), vocab_size)
    for n in range(9):
        assert torch.equal(together[n], noise([n], [n], vocab_size)[0])


def test_noise_of_some_tokens_is_a_part_of_the_noise_of_all() -> None:
    hashes, ids = token_hashes(1000, CPU), torch.tensor([[5, 999, 0], [7, 7, 500]])
    seeds = torch.tensor([3, 4])
    some = exponential(seeds, seeds, hashes[ids])
    assert torch.equal(some, exponential(seeds, seeds, hashes).gather(1, ids))
