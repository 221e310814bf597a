"""A screen changes nothing but the time: the best outputs are those of all outputs."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from gpu_worker.cpu_kernels import screen as screens
from gpu_worker.cpu_kernels.linear import NativeProduct, NativeWeight
from gpu_worker.cpu_kernels.screen import Screen
from gpu_worker.linears.choice import settle_linears
from gpu_worker.linears.native import NativeLinear
from tests.builders import make_model
from tests.gpu_worker.engine import SETTINGS, Request, assert_as_generated, run
from tests.gpu_worker.test_native_linear import DTYPES, library

STRIP = 32


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Watched(Screen):
    """Remembers the strips that were computed."""

    num_strips = 0

    def pays(self, num_strips: int, num_rows: int) -> bool:
        self.num_strips = num_strips
        return True


def screened(weight: torch.Tensor) -> tuple[NativeProduct, Watched]:
    """A product with a screen; the test is skipped where it would not help."""
    loaded = library(weight.dtype)
    if not loaded.takes_screen(weight.dtype):
        pytest.skip("the matrix unit is faster")
    product, screen = NativeProduct(loaded, [NativeWeight(weight)]), Watched([weight])
    product.screen = screen
    return product, screen


def assert_the_best_of_all(weight: torch.Tensor, x: torch.Tensor) -> int:
    """Returns how many strips were computed."""
    product, screen = screened(weight)
    values, places = product.best(x)
    expected_values, expected_places = NativeProduct(
        library(weight.dtype), [NativeWeight(weight)]
    ).best(x)
    assert torch.equal(values.view(torch.int32), expected_values.view(torch.int32))
    assert torch.equal(places, expected_places)
    return screen.num_strips


# ── nothing is lost ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_rows", [0, 1, 12, 17, 100])
@pytest.mark.parametrize("num_outputs", [1, 31, 64, 5001])
@pytest.mark.parametrize("num_inputs", [1, 64, 65, 577])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_size(
    dtype: torch.dtype, num_inputs: int, num_outputs: int, num_rows: int, num_threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        weight = torch.randn(num_outputs, num_inputs).to(dtype)
        assert_the_best_of_all(weight, torch.randn(num_rows, num_inputs).to(dtype))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_and_rows_of_all_magnitudes(dtype: torch.dtype) -> None:
    weight = torch.randn(3000, 70) * torch.logspace(-12, 12, 3000)[torch.randperm(3000), None]
    x = torch.randn(200, 70) * torch.logspace(-25, 12, 200)[:, None]
    assert_the_best_of_all(weight.to(dtype), x.to(dtype))
    assert_the_best_of_all(torch.randn(3000, 70).to(dtype), (x * 1e-20).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_weights_and_small_rows(dtype: torch.dtype) -> None:
    """In units of the row's scale, outputs would be infinite."""
    for size in (1e20, 1e30, 1e34, 1e36):
        weight, x = torch.randn(3000, 1001) * size, torch.randn(60, 1001) * 1e-6
        weight[:1500], x[:30] = -weight[:1500].abs(), x[:30].abs()
        assert_the_best_of_all(weight.to(dtype), x.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_that_are_all_negative_zero_or_equal(dtype: torch.dtype) -> None:
    x = torch.rand(20, 40).to(dtype)
    for weight in (-torch.rand(1003, 40), torch.zeros(1003, 40), torch.ones(1003, 40)):
        assert_the_best_of_all(weight.to(dtype), x)
        assert_the_best_of_all(weight.to(dtype), torch.zeros_like(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_near_ties_and_ties_across_strips(dtype: torch.dtype) -> None:
    base = torch.randn(1, 96)
    for distance in (0.0, 1e-7, 1e-5, 1e-3, 1e-1):
        weight = base + distance * torch.randn(4001, 96)
        assert_the_best_of_all(weight.to(dtype), torch.randn(50, 96).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_a_number_is_seen(dtype: torch.dtype) -> None:
    weight, x = torch.randn(2000, 24).to(dtype), torch.randn(40, 24).to(dtype)
    x[3, 4], x[5, 0], x[7, 23], x[9] = math.nan, math.inf, -math.inf, 3e38
    assert_the_best_of_all(weight, x)
    weight[100, 3], weight[700, 0], weight[1500, 1] = math.nan, math.inf, -math.inf
    assert_the_best_of_all(weight, x)


@pytest.mark.parametrize("lead", [1, -1])
@pytest.mark.parametrize(("size", "row_size"), [(1, 1), (1, -1), (5e33, -1e-6)])
def test_a_winner_whose_integers_come_to_far_less(size: float, row_size: float, lead: int) -> None:
    """Margins that were a tenth smaller would lose it; in the last case one sum is infinite."""
    ones = torch.ones(4000)
    whole = torch.tensor([127.0])  # by which an integer is 1, in rows and weights
    x = torch.cat([whole, 10 * ones, 0.49 * ones])  # of the rest, integers say nothing
    plain = torch.cat([whole, ones, 10 * ones])  # 10 and 4.9, by integers 10
    steep = torch.cat([whole, (1.98 + lead * 1e-3) * ones, -10 * ones])  # the same, by integers 20
    weight = whole.expand(20 * STRIP, 1) * nn.functional.one_hot(torch.tensor(0), len(x))
    weight[STRIP:] = 2 * steep if row_size < 0 else weight[STRIP:]  # nothing else is the best
    weight[:STRIP], weight[STRIP], weight[10 * STRIP] = plain, steep, plain
    weight[15 * STRIP] = steep
    weight, x = size * weight, row_size * x
    expected = int((weight.double() @ x.double()).argmax())
    assert expected == (STRIP if lead * row_size > 0 else 0)
    assert screened(weight)[0].best(x[None])[1].tolist() == [expected]


def test_outputs_that_differ_until_they_are_stored() -> None:
    """Integers are exact here; 16,576 and 16,704 both become 16,640 in bfloat16."""
    weight = torch.zeros(640, 140)
    weight[5, :131] = torch.tensor([127.0] * 130 + [66])
    weight[40, :132] = torch.tensor([127.0] * 131 + [67])
    values, places = screened(weight.bfloat16())[0].best(torch.ones(1, 140).bfloat16())
    assert values.tolist() == [16640]
    assert places.tolist() == [5]


def test_outputs_that_differ_by_the_order_of_their_sums() -> None:
    """Integers are exact here; sums above 2^24 are not, so that the best may not be the largest."""
    for seed in range(10):
        torch.manual_seed(seed)
        x = torch.randint(100, 127, (20, 4000)).float()
        x[:, 0] = 127
        weight = torch.randint(100, 127, (1, 4000)).expand(640, -1).clone()
        weight[torch.arange(640), torch.randint(4000, (640,))] += torch.randint(-3, 4, (640,))
        weight[:, 0] = 127
        assert_the_best_of_all(weight.float(), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_layers(dtype: torch.dtype) -> None:
    for seed in range(40):
        torch.manual_seed(seed)
        num_outputs, num_inputs = (int(torch.randint(1, n, ())) for n in (3000, 300))
        outliers = torch.where(torch.rand(num_inputs) < 0.05, 30.0, 1.0)
        weight = torch.randn(num_outputs, num_inputs) * torch.rand(num_outputs, 1)
        copies = torch.randint(num_outputs, (2, num_outputs // 2))
        weight[copies[0]] = weight[copies[1]]  # ties
        x = torch.randn(int(torch.randint(1, 60, ())), num_inputs) * outliers
        assert_the_best_of_all(weight.to(dtype), x.to(dtype))


# ── work is saved ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_few_strips_are_computed(dtype: torch.dtype) -> None:
    num_rows, num_outputs = 30, 20000
    weight, x = torch.randn(num_outputs, 64).to(dtype), torch.randn(num_rows, 64).to(dtype)
    num_strips = assert_the_best_of_all(weight, x)
    assert num_rows <= num_strips < num_rows * num_outputs / STRIP * 0.03


def test_a_screen_that_rules_out_too_little_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    weight, x = torch.randn(1, 64).expand(4096, 64).contiguous(), torch.randn(100, 64)
    layer = NativeLinear(library(torch.float32), weight, None)
    plain = layer.num_bytes
    layer.become_head()
    assert layer.num_bytes > plain
    with caplog.at_level("INFO", screens.__name__):
        answers = [layer.best(x) for _ in range(5)]
    assert layer.num_bytes == plain
    assert [record.message for record in caplog.records if "dropped" in record.message] == [
        "output layer: the copy rules out too few tokens and is dropped"
    ]
    for values, places in answers:
        assert places.tolist() == [0] * 100
        assert torch.equal(values, answers[-1][0])


def test_one_answer_without_numbers_does_not_drop_it() -> None:
    layer = NativeLinear(library(torch.float32), torch.randn(4096, 64), None)
    layer.become_head()
    with_screen = layer.num_bytes
    for _ in range(100):  # an answer's worth
        layer.best(torch.full((1, 64), math.nan))
        layer.best(torch.randn(1, 64))
    assert layer.num_bytes == with_screen


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (torch.zeros(4095, 8), None),
        (torch.zeros(4096, 1025), None),
        (torch.zeros(4096, 8), torch.zeros(4096)),
    ],
    ids=["few outputs", "many inputs", "a bias"],
)
def test_heads_that_it_would_not_help_have_none(
    weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    layer = NativeLinear(library(torch.float32), weight, bias)
    plain = layer.num_bytes
    layer.become_head()
    assert layer.is_lazy
    assert layer.num_bytes == plain


def test_a_head_of_bytes_has_none() -> None:
    weight = torch.ones(4096, 8, dtype=torch.int8)
    layer = NativeLinear(library(torch.int8), weight, None, scales=torch.ones(4096))
    plain = layer.num_bytes
    layer.become_head()
    assert layer.num_bytes == plain


# ── models ───────────────────────────────────────────────────────────────────────────────────────


def test_greedy_answers_are_those_of_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library(torch.float32).takes_screen(torch.float32)
    counts, pays = [], Screen.pays

    def counted(self: Screen, num_strips: int, num_rows: int) -> bool:
        counts.append(num_strips / num_rows)
        return pays(self, num_strips, num_rows)

    monkeypatch.setattr(Screen, "pays", counted)
    model = make_model("llama", vocab_size=8192)
    wanted = [Request(tuple(range(5 + n, 10 + 5 * n)), 7) for n in range(5)]
    done = run(model, wanted)
    for request, answer in zip(wanted, done.answers, strict=True):
        assert_as_generated(model, request, answer)
    assert counts
    assert max(counts) < 8192 / STRIP / 4


def make_whisper() -> PreTrainedModel:
    """A small one with many tokens."""
    model: PreTrainedModel = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=4096,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=1,
            decoder_attention_heads=1,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    return model


def make_t5() -> PreTrainedModel:
    """The same of T5."""
    model: PreTrainedModel = T5ForConditionalGeneration(
        T5Config(vocab_size=4096, d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    )
    return model


@pytest.mark.parametrize(("make", "has_screen"), [(make_t5, True), (make_whisper, False)])
def test_a_head_whose_logits_are_always_masked_has_none(
    make: Callable[[], PreTrainedModel], has_screen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    library(torch.float32)
    model = make().eval()
    with caplog.at_level("INFO", screens.__name__):
        settle_linears(model, SETTINGS)
    assert any("tell which tokens" in record.message for record in caplog.records) == has_screen
