"""Each group of 64 weights is stood for by finite numbers, as near as plain rounding at least."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gpu_worker.linears import hqq_numbers
from gpu_worker.linears.hqq_numbers import GROUP
from gpu_worker.linears.int4 import Int4
from gpu_worker.linears.int4_weight import Int4Weight
from gpu_worker.linears.min_max import UnfitWeightError, min_max_numbers, squared_errors
from gpu_worker.linears.quantization import quantize_linears
from shared.errors import EXIT_CONFIGURATION, FatalError

OUTPUTS, GROUPS = 24, 4
SHAPE = (OUTPUTS, GROUPS * GROUP)
HALF = 2.0**-11  # what half precision loses of a number, at most
SMALLEST_STEP = 2.0**-24  # of half precision


def bell(size: float) -> torch.Tensor:
    return torch.randn(SHAPE) * size


def with_outlier(outlier: float) -> torch.Tensor:
    """In each group one number is far from the others."""
    weight = bell(0.02)
    weight[:, ::GROUP] = outlier
    return weight


def constant_groups() -> torch.Tensor:
    """Each group has a number of its own."""
    return torch.randn(OUTPUTS, GROUPS, 1).expand(-1, -1, GROUP).reshape(SHAPE).contiguous()


WEIGHTS: dict[str, Callable[[], torch.Tensor]] = {
    "usual": lambda: bell(0.02),
    "below the range that hqq knows": lambda: bell(1e-5),
    "about that range": lambda: bell(5e-5),
    "below what half precision knows": lambda: bell(1e-9),
    "constant": constant_groups,
    "zero": lambda: torch.zeros(SHAPE),
    "nearly constant, far from 0": lambda: 3.0 + bell(1e-4),
    "nearly constant, very far from 0": lambda: -1000.0 + bell(0.1),
    "nearly constant, farther than half precision": lambda: 1e5 + bell(1.0),
    "close together, far from 0": lambda: 0.5 + torch.rand(SHAPE) * 1e-3,
    "huge": lambda: bell(5e4),
    "an outlier": lambda: with_outlier(4.0),
    "a huge outlier": lambda: with_outlier(-9e5),
    "of two sizes": lambda: bell(0.02) * torch.logspace(-6, 2, OUTPUTS)[:, None],
}


def groups_of(weight: torch.Tensor) -> torch.Tensor:
    """[N, G, 64] float32."""
    return weight.float().view(weight.shape[0], -1, GROUP)


def errors(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared ones of all groups, [N, G]: what is kept of a weight, and plain rounding."""
    torch.manual_seed(0)
    groups = groups_of(weight)
    numbers, scales, zeros = hqq_numbers.quantize(weight)
    assert int(numbers.max()) <= 15
    assert scales.isfinite().all()
    assert zeros.isfinite().all()
    found = squared_errors(groups, numbers.view_as(groups), scales, zeros)
    return found, squared_errors(groups, *min_max_numbers(groups))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WEIGHTS)
def test_no_group_is_further_from_the_weight_than_by_plain_rounding(
    name: str, dtype: torch.dtype
) -> None:
    found, plain = errors(WEIGHTS[name]().to(dtype))
    assert (found <= plain).all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_plain_rounding_is_within_a_step_of_every_number(name: str) -> None:
    """A step is a 15th of the range, or what half precision tells apart at this distance."""
    torch.manual_seed(0)
    groups = groups_of(WEIGHTS[name]())
    numbers, scales, zeros = min_max_numbers(groups)
    restored = Int4Weight.of(numbers.flatten(1), scales, zeros).dense(torch.float32, SHAPE[1])
    least, largest = groups.aminmax(dim=2)
    steps = torch.maximum((largest - least) / 15, HALF * groups.abs().amax(2))
    distances = (groups_of(restored) - groups).abs().amax(2)
    assert (distances <= 0.6 * steps + SMALLEST_STEP).all()


def test_hqq_stays_where_it_is_better() -> None:
    found, plain = errors(bell(0.02))
    assert found.sum() < 0.95 * plain.sum()
    assert (found < plain).float().mean() > 0.9


def test_groups_that_hqq_flattens_keep_their_16_levels() -> None:
    torch.manual_seed(0)
    weight = bell(1e-5)
    meta = hqq_numbers._quantize(weight)
    flat = squared_errors(groups_of(weight), meta[0].view(OUTPUTS, GROUPS, GROUP), *meta[1:])
    found, _ = errors(weight)
    assert flat.sum() > 0.9 * weight.square().sum(), "hqq itself loses nearly all of it"
    assert found.sum() < 0.01 * weight.square().sum()


def test_a_zero_that_half_precision_does_not_hold_is_replaced() -> None:
    torch.manual_seed(0)
    weight = 1000.0 + bell(1e-3)
    assert not hqq_numbers._quantize(weight)[2].isfinite().all()
    found, _ = errors(weight)
    assert found.max().sqrt() < HALF * 1000.0 * GROUP**0.5


def test_groups_of_zeros_stay_zeros() -> None:
    weight = bell(1.0)
    weight[:, :GROUP] = 0.0
    kept = Int4Weight.of(*hqq_numbers.quantize(weight)).dense(torch.float32, SHAPE[1])
    assert not kept[:, :GROUP].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e10, 3e38])
def test_a_weight_that_nothing_can_stand_for_is_refused(value: float) -> None:
    weight = bell(0.02)
    weight[3, 5] = value
    with pytest.raises(UnfitWeightError, match=re.escape(f"reach {value:.3g}")):
        hqq_numbers.quantize(weight)


def test_the_refusal_names_the_layer_and_the_flag() -> None:
    model = nn.ModuleDict({"up": nn.Linear(128, 64), "down": nn.Linear(64, 128)})
    with torch.no_grad():
        model["down"].get_parameter("weight")[0, 0] = float("nan")
    with pytest.raises(FatalError, match=r"--hqq cannot hold .* of down: .* nan") as refusal:
        quantize_linears(model, Int4(model, is_native=False), None)
    assert refusal.value.exit_status == EXIT_CONFIGURATION
