"""Small weights cost the built-in models next to nothing: the promise that is made of each kind."""

import pytest
import torch

from benchmarks.bench_quantization import MODELS, errors, losses, main

LARGEST_CHANGE = {"int8": 0.01, "int4": 0.05}  # of the perplexity
SMALLEST_AGREEMENT = 0.95


@pytest.mark.parametrize("precision", LARGEST_CHANGE)
@pytest.mark.parametrize("model", MODELS)
def test_a_built_in_model_answers_as_in_float32(model: str, precision: str) -> None:
    dense, small = losses(model, 1, [precision])
    assert dense.change == pytest.approx(0.0, abs=1e-6)  # by kernels of our own
    assert dense.agreement == 1.0
    assert small.change <= LARGEST_CHANGE[precision]
    assert small.agreement >= SMALLEST_AGREEMENT


def test_what_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(model: torch.nn.Module, _: str) -> torch.nn.Module:
        for parameter in model.parameters():
            parameter.data.mul_(1 + 0.5 * torch.randn_like(parameter))
        return model

    monkeypatch.setattr("benchmarks.bench_quantization.in_precision", spoiled)
    (*_, small) = losses("demo-t5", 2, ["int8"])
    assert small.change > LARGEST_CHANGE["int8"]
    assert small.agreement < SMALLEST_AGREEMENT


def test_random_weights_show_the_error_of_each_precision() -> None:
    rough, small = errors("toy", ["bfloat16", "int8"])
    assert 0.001 < rough.relative < small.relative < 0.05


def test_the_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--precisions", "int8", "--models", "demo-t5", "--shapes", "tiny", "--tasks", "1"])
    lines = capsys.readouterr().out.splitlines()
    heads = [line.split()[:2] for line in lines[1:3]]
    assert heads == [["demo-t5", "float32"], ["demo-t5", "int8"]]
