"""Nobody pays for what others ask, and nothing waits for the device."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_worker.sampler import Sampler
from shared.sampling import SamplingParams
from tests.builders import make_admission
from tests.gpu_worker.sampling import CPU, decode_plan, random_logits

V = 5000
# They answer the host, or need it to know the size of their result.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2", "item"}
EVERYTHING: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "frequency_penalty": 0.7,
    "logit_bias": ((7, 2.5),),
    "min_tokens": 6,
}


class Operation(NamedTuple):
    """One call of torch."""

    name: str
    first_shape: tuple[int, ...]  # of the first argument
    indices: set[torch.dtype]
    num_bytes: int  # of the result


class Recorded(TorchDispatchMode):
    """Records what torch runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first = args[0] if args else None
        lists = [arg for arg in args if isinstance(arg, list)]
        self.operations.append(
            Operation(
                func.overloadpacket.__name__,
                tuple(first.shape) if isinstance(first, torch.Tensor) else (),
                {x.dtype for xs in lists for x in xs if isinstance(x, torch.Tensor)},
                result.nbytes if isinstance(result, torch.Tensor) else 0,
            )
        )
        return result

    @property
    def names(self) -> Counter[str]:
        """How often each operation ran."""
        return Counter(operation.name for operation in self.operations)


def steady(*settings: dict[str, Any]) -> Callable[[], torch.Tensor]:
    """One decode step of these rows, after a first one."""
    sampler = Sampler(len(settings), V, CPU)
    for row, sampling in enumerate(settings):
        params = SamplingParams(**{"seed": row, **sampling})
        sampler.begin(make_admission(row, params, token_ids=(3, 4), num_prompt_tokens=2))
    rows = list(range(len(settings)))
    logits, on_device = random_logits(len(rows), V), torch.tensor(rows)

    def step() -> torch.Tensor:
        return sampler.sample(logits, on_device, on_device, rows)

    step()
    return step


def operations(*settings: dict[str, Any]) -> Counter[str]:
    """What a decode step of these rows runs, in a steady state."""
    step = steady(*settings)
    recorded = Recorded()
    with recorded:
        step()
    return recorded.names


def test_a_greedy_step_looks_at_the_logits_once() -> None:
    names = operations(*[{"temperature": 0.0}] * 40)
    assert names["max"] == 1
    assert sum(names.values()) <= 24  # most of them on one number for each block or row
    assert not names.keys() & {"sort", "topk", "log1p_", "bitwise_xor_", "clone", "_to_copy"}


@pytest.mark.parametrize(
    "sampling", [{}, {"min_p": 0.1}, {"top_p": 0.9}, {"top_k": 2000}, {"temperature": 0.3}]
)
def test_nothing_is_sorted_but_a_few_candidates(sampling: dict[str, Any]) -> None:
    assert not operations(sampling).keys() & {"sort", "topk"}


def test_a_temperature_alone_cuts_nothing() -> None:
    assert not operations({}).keys() & {"scatter_add_", "cumsum", "masked_fill_"}


@pytest.mark.parametrize(("top_k", "width"), [(2, 64), (64, 64), (65, 1024), (1024, 1024)])
def test_a_small_top_k_hashes_only_its_candidates(top_k: int, width: int) -> None:
    step = steady({"top_k": top_k, "top_p": 0.9})
    recorded = Recorded()
    with recorded:
        step()
    widths = {op.first_shape[-1] for op in recorded.operations if op.name == "bitwise_xor_"}
    assert widths == {1, width}  # the row's own key, then its candidates


def test_rows_that_ask_for_nothing_add_no_operation() -> None:
    alone = operations({"top_p": 0.9})
    with_greedy = operations({"top_p": 0.9}, {"temperature": 0.0})
    # The group's rows are picked out and put back.
    assert sum((with_greedy - alone).values()) <= 4


@pytest.mark.parametrize(
    "settings",
    [
        [{}],
        [{"temperature": 0.0}],
        [{"top_k": 50, "top_p": 0.9, "min_p": 0.1}],
        [{"top_k": 2000, "top_p": 0.9, "min_p": 0.1}],
        [EVERYTHING, {"temperature": 0.0}, {"top_k": 50}, {**EVERYTHING, "top_p": 0.9}],
    ],
)
def test_a_step_never_waits_for_the_device(settings: list[dict[str, Any]]) -> None:
    step = steady(*settings)
    recorded = Recorded()
    with recorded:
        step()
    assert not recorded.names.keys() & WAITING
    assert not any(
        torch.bool in op.indices for op in recorded.operations
    )  # such an index is a nonzero


def test_a_steady_step_sends_nothing_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    step = steady(EVERYTHING, {"top_k": 50}, {"top_p": 0.9})

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a copy to the device")

    for module in ("sampler", "penalties", "bias"):
        monkeypatch.setattr(f"gpu_worker.{module}.upload", refuse)
    step()


def test_observing_neither_waits_nor_touches_rows_without_penalties() -> None:
    sampler = Sampler(2, V, CPU)
    sampler.begin(make_admission(0, SamplingParams(seed=1)))
    sampler.begin(make_admission(1, SamplingParams(seed=1, **EVERYTHING)))
    recorded = Recorded()
    with recorded:
        sampler.observe(decode_plan([(0, 1, 5)]))
        assert not recorded.operations
        sampler.observe(decode_plan([(0, 2, 5), (1, 1, 6)]))
    assert recorded.operations
    assert not recorded.names.keys() & WAITING


def test_tables_of_penalties_are_made_when_a_row_first_needs_them() -> None:
    sampler = Sampler(8, V, CPU)
    recorded = Recorded()

    def made(**sampling: Any) -> list[int]:
        """Bytes of the tables that the next row makes."""
        recorded.operations.clear()
        sampler.begin(make_admission(1, SamplingParams(seed=1, **sampling)))
        return [op.num_bytes for op in recorded.operations if op.name == "zeros"]

    with recorded:
        assert made(top_p=0.5) == []
        assert made(repetition_penalty=1.1) == [8 * V]
        assert made(presence_penalty=1.0) == [8 * V * 4]
        assert made(**EVERYTHING) == []
