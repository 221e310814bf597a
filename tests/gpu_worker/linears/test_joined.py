"""Compiled code computes siblings in one call, and gives what each would give alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx

from gpu_worker.compiled import compiled
from gpu_worker.cpu_kernels.linear import load_linears
from gpu_worker.linears.fused import Joining, SharedProduct
from gpu_worker.linears.joined import join_siblings, joining_pass
from gpu_worker.linears.opaque_linear import OpaqueLinear
from scheduler.plan import StepPlan
from tests.builders import make_model
from tests.gpu_worker.engine import SETTINGS, Request, Run, run

IN_FEATURES, SIZES = 4, (3, 5, 2)
INPUTS = torch.randn(1, 6, IN_FEATURES), torch.randn(1, 6, IN_FEATURES)


class Layer(OpaqueLinear):
    """A plain product that remembers which layers were computed together."""

    def __init__(self, size: int, calls: list[int]) -> None:
        super().__init__((size, IN_FEATURES), torch.float32, None)
        self.plain = torch.randn(size, IN_FEATURES)
        self.calls = calls
        self.shared: SharedProduct | None = None

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(1)
        return x @ self.plain.T

    def product_with(
        self, others: Sequence["Layer"]
    ) -> Callable[[torch.Tensor], list[torch.Tensor]]:
        layers = [self, *others]

        def product(x: torch.Tensor) -> list[torch.Tensor]:
            self.calls.append(len(layers))
            return [x @ layer.plain.T for layer in layers]

        return product


class Siblings:
    """Three layers that may compute together."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.layers = [Layer(size, self.calls) for size in SIZES]
        self.product = SharedProduct(self.layers)

    def alike(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        """All read the first input, the last one first."""
        outputs = [layer(x) for layer in reversed(self.layers)]
        return torch.cat([outputs[2], outputs[1] * 2, outputs[0]], dim=-1)

    def apart(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """One reads another input, as keys and values of an encoder's states do."""
        first, *others = self.layers
        return torch.cat([first(x), *(layer(other) for layer in others)], dim=-1)

    def expected(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What they give, each for itself; the second is doubled in `alike`."""
        return torch.cat(
            [x @ layer.plain.T for x, layer in zip(inputs, self.layers, strict=True)], dim=-1
        )


@pytest.fixture
def siblings(monkeypatch: pytest.MonkeyPatch) -> Siblings:
    """Traced as compiled code is."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return Siblings()


def joined(function: Callable[..., torch.Tensor]) -> torch.fx.GraphModule:
    traced = make_fx(lambda x, other: function(x, other), tracing_mode="fake")(*INPUTS)
    join_siblings(traced.graph)
    traced.graph.lint()
    traced.recompile()
    return traced


def test_siblings_of_one_input_are_one_call(siblings: Siblings) -> None:
    x, other = INPUTS
    output = joined(siblings.alike)(x, other)
    expected = siblings.expected(x, x, x)
    expected[..., SIZES[0] : SIZES[0] + SIZES[1]] *= 2
    assert torch.equal(output, expected)
    assert siblings.calls == [len(SIZES)]


def test_siblings_of_different_inputs_stay_apart(siblings: Siblings) -> None:
    x, other = INPUTS
    output = joined(siblings.apart)(x, other)
    assert torch.equal(output, siblings.expected(x, other, other))
    assert siblings.calls == [1, 1, 1]


def test_layers_without_siblings_are_left_alone(siblings: Siblings) -> None:
    alone = Layer(3, [])
    traced = joined(lambda x, _: alone(x))
    assert torch.equal(traced(*INPUTS), INPUTS[0] @ alone.plain.T)
    assert alone.calls == [1]


@pytest.mark.usefixtures("fresh_compiler")
def test_the_compiler_runs_the_pass() -> None:
    siblings = Siblings()

    def forward(x: torch.Tensor) -> torch.Tensor:
        return siblings.apart(x, x)

    output = compiled(forward, {})(INPUTS[0])
    assert torch.allclose(output, siblings.expected(*[INPUTS[0]] * 3))
    assert siblings.calls == [len(SIZES)]


def steps_of(done: Run) -> list[StepPlan]:
    return [plan for plan in done.plans if not plan.is_empty]


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_of_8_bits_answers_as_it_does_uncompiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if load_linears() is None:
        pytest.skip("needs a C++ compiler and AVX-512 VNNI")
    together: list[int] = []
    apart: list[int] = []
    outputs_of, output_of = SharedProduct.outputs_of, SharedProduct.output_of

    def count_together(self: SharedProduct, x: torch.Tensor) -> list[torch.Tensor]:
        together.append(len(self.layers))
        return outputs_of(self, x)

    def count_apart(self: SharedProduct, layer: Joining, x: torch.Tensor) -> torch.Tensor:
        apart.append(1)
        return output_of(self, layer, x)

    wanted = [Request(tuple(range(5 + n, 12 + 5 * n)), 9) for n in range(4)]
    int8 = replace(SETTINGS, quantization="int8")
    plain = run(make_model("llama", num_hidden_layers=1), wanted, settings=int8)
    monkeypatch.setattr(SharedProduct, "outputs_of", count_together)
    monkeypatch.setattr(SharedProduct, "output_of", count_apart)
    settings = replace(int8, torch_compile=True)
    compiled_run = run(make_model("llama", num_hidden_layers=1), wanted, settings=settings)
    assert compiled_run.answers == plain.answers
    assert len(apart) == 3 + 2, "stock code ran once, to see whether its logits may be lazy"
    assert together == [3, 2] * (1 + 2 + len(steps_of(compiled_run))), "2 steps are the warm-up"


def test_cached_code_knows_its_siblings() -> None:
    """Code that another start has compiled is for the same siblings, or is made anew."""
    first = Siblings()
    key = joining_pass().uuid()
    assert joining_pass().uuid() == key
    second = Siblings()
    assert joining_pass().uuid() != key
    assert first.product.number != second.product.number


def test_a_graph_of_nothing_stays_one() -> None:
    graph = Graph()
    join_siblings(graph)
    assert len(graph.nodes) == 0
