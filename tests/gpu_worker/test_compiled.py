"""Compiled, a model answers as before: by two graphs, both made before the first step."""

import copy
import logging
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from gpu_worker.batch import Batch
from gpu_worker.compiled import CompiledForward, options_of, refuse_missing_tools
from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.loaded import LoadedModel
from gpu_worker.loading import serve
from gpu_worker.opaque import number_of, numbered
from scheduler.plan import StepPlan, TokenScore
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from shared.errors import EXIT_CONFIGURATION, FatalError
from tests.builders import GREEDY, make_model
from tests.gpu_worker.engine import (
    BUDGET,
    NUM_ROWS,
    SETTINGS,
    Request,
    Run,
    assert_as_generated,
    run,
)
from tests.gpu_worker.test_causal_lm import requests
from tests.gpu_worker.test_native_linear import library

pytestmark = pytest.mark.usefixtures("fresh_compiler")

CPU = torch.device("cpu")
COMPILED = replace(SETTINGS, torch_compile=True)
SCORED = replace(GREEDY, num_logprobs=3)
MOE = {"num_experts_per_tok": 2, "num_local_experts": 4}
OTHERS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 16, "sliding_window": 24},
    "gpt2": {},
    "mixtral": MOE,
    "gpt_oss": {"head_dim": 16, "sliding_window": 24, **MOE},
    "llama dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        "max_position_embeddings": 64,
    },
    "llama4_text": {
        "head_dim": 16,
        "attention_chunk_size": 32,
        "intermediate_size_mlp": 96,
        "num_local_experts": 2,
        "no_rope_layers": [1, 0],
        "num_hidden_layers": 2,
    },
}


@pytest.fixture
def num_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every call of compiled code."""
    calls: list[int] = []
    call = CompiledForward.__call__

    def counted(self: CompiledForward, batch: Batch) -> torch.Tensor:
        calls.append(len(batch.slots))
        return call(self, batch)

    monkeypatch.setattr(CompiledForward, "__call__", counted)
    return calls


def serve_all(model_type: str, **overrides: Any) -> Run:
    """The answers of a compiled model, which are what `generate()` answers."""
    model = make_model(model_type, **overrides)
    wanted = [replace(request, max_tokens=request.max_tokens + 15) for request in requests()]
    wanted[:2] = wanted[1::-1]  # first a long prompt alone, whose first chunk samples nothing
    done = run(model, wanted, num_blocks=13, prefix_caching=True, settings=COMPILED)
    for request, answer in zip(wanted, done.answers, strict=True):
        assert_as_generated(copy.deepcopy(model), request, answer)  # RoPE may remember lengths
    return done


def test_two_graphs_compute_every_step_as_stock_code_does(num_calls: list[int]) -> None:
    done = serve_all("llama", num_hidden_layers=1)
    steps = [len(tokens) for plan in done.plans if (tokens := _tokens(plan))]
    assert num_calls == [1, NUM_ROWS, *steps], "one to warm up for each graph, then one a step"
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert done.shapes == [], "stock code ran"
    decoding = {plan.num_decodes for plan in done.plans if plan.num_decodes == len(plan.chunks)}
    assert decoding >= {1, 2, 3, 4}
    assert sum(plan.is_mixed for plan in done.plans) > 5
    assert not any(chunk.samples for chunk in done.plans[0].chunks)
    assert done.counters.num_preemptions > 0


def test_bfloat16_rounds_alike_alone_and_in_company() -> None:
    """A graph of one token and one of several fuse differently."""
    library(torch.bfloat16)
    loaded = serve(make_model("llama", num_hidden_layers=2).bfloat16(), COMPILED)
    wanted = [replace(request, sampling=SCORED) for request in requests()[:NUM_ROWS]]
    alone = [scores for request in wanted for scores in _scores(loaded, [request])]
    assert _scores(loaded, wanted) == alone
    assert min(map(len, alone)) > 0


def _scores(loaded: LoadedModel, wanted: list[Request]) -> list[list[TokenScore | None]]:
    """Of the tokens of each answer, when all come at once."""
    sequences = [
        Sequence(str(n), request.prompt, request.max_tokens, frozenset(), request.sampling)
        for n, request in enumerate(wanted)
    ]
    scheduler = Scheduler(
        num_blocks=loaded.cache.num_blocks,
        block_size=BLOCK_SIZE,
        max_sequences=NUM_ROWS,
        max_tokens_per_step=BUDGET,
    )
    for sequence in sequences:
        scheduler.add(sequence)
    scores: dict[str, list[TokenScore | None]] = {s.request_id: [] for s in sequences}
    while not scheduler.is_idle:
        plan = scheduler.schedule()
        for output in scheduler.apply(plan, loaded.runner.execute(plan)):
            scores[output.sequence.request_id].append(output.score)
    return list(scores.values())


def _tokens(plan: StepPlan) -> list[int]:
    return [token_id for chunk in plan.chunks for token_id in chunk.token_ids]


def test_a_start_says_what_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_worker.compiled.compiled", lambda forward, _: forward)
    stages: list[str] = []
    serve(make_model("llama", num_hidden_layers=1), COMPILED, stages.append)
    assert stages == [
        "sizing the KV cache",
        "compiling the forward pass of one token (1 of 2)",
        "compiling the forward pass of any number of tokens (2 of 2)",
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
@pytest.mark.parametrize("name", OTHERS)
def test_other_families_compile_too(name: str) -> None:
    serve_all(name.split()[0], **{"num_hidden_layers": 1, **OTHERS[name]})
    assert counters["stats"]["unique_graphs"] == 2


def test_a_model_that_resists_is_served_uncompiled_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_model("llama", num_hidden_layers=1)
    norm: Any = model.get_decoder().norm
    stock = type(norm).forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()  # as code that asks what a tensor holds
        normed: torch.Tensor = stock(norm, hidden)
        return normed

    norm.forward = forward
    wanted = requests()[:3]
    with caplog.at_level(logging.WARNING, "gpu_worker"):
        done = run(model, wanted, settings=COMPILED)
    (warning,) = [m for m in caplog.messages if "--torch-compile" in m]
    assert "uncompiled" in warning
    assert "graph_break" in warning
    assert len(done.shapes) == len([plan for plan in done.plans if not plan.is_empty])
    for request, answer in zip(wanted, done.answers, strict=True):
        assert_as_generated(make_model("llama", num_hidden_layers=1), request, answer)


@pytest.mark.parametrize(
    ("device", "named"), [("cpu", "a C++ compiler"), ("cuda", "Triton")], ids=str
)
def test_what_the_compiler_needs_is_asked_for_by_name(
    device: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/no/compiler",)}),
        pytest.raises(FatalError, match=re.escape(f"--torch-compile needs {named}")) as caught,
    ):
        refuse_missing_tools(torch.device(device))
    assert caught.value.exit_status == EXIT_CONFIGURATION
    refuse_missing_tools(CPU)


@pytest.mark.parametrize(
    "mode", ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
)
def test_a_mode_is_torchs_own_but_for_graphs(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tunes = mode.startswith("max-autotune")
    told = options_of(mode, torch.device("cuda"))
    assert told["triton.cudagraphs"] is False
    assert told.get("max_autotune", False) is tunes
    assert not caplog.messages
    assert options_of(mode, CPU) == options_of("default", CPU)
    assert len([m for m in caplog.messages if f"--torch-compile-mode {mode}: " in m]) == tunes


def test_a_number_holds_nothing() -> None:
    thing = torch.nn.Identity()
    number = number_of(thing)
    assert numbered(number) is thing
    del thing
    with pytest.raises(KeyError):
        numbered(number)
