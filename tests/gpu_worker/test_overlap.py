"""Overlap changes no answer of a real model; its tokens go from step to step on the device."""

import dataclasses
import os
import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from gpu_worker import batch
from gpu_worker.attention.torch_paged import TorchAttention
from gpu_worker.download import Download
from gpu_worker.families.causal_lm import CausalLM
from gpu_worker.kv_cache import BLOCK_SIZE, KVGeometry, LayerGeometry
from gpu_worker.loading import load, overlaps, serve
from gpu_worker.paged_attention import ATTENTION
from gpu_worker.pipeline import Pipeline
from gpu_worker.recovery import IsolatingRunner
from gpu_worker.sampler import Sampler
from gpu_worker.step_times import StepTimes
from scheduler.plan import TokenScore
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence, State
from shared.config import ModelConfig, WorkerConfig
from shared.sampling import SamplingParams
from tests.builders import GREEDY, make_model
from tests.gpu_worker.engine import SETTINGS, Request, Run, run
from tests.gpu_worker.test_cuda_graphs import CPU, FakeGraphDevice

NUM_ROWS = 5
SCORE = 1e-4  # logprobs, where sums are made in another company
KINDS = {
    "greedy": GREEDY,
    "seeded": SamplingParams(seed=3, temperature=1.0, top_p=0.95),
    "top k": SamplingParams(seed=4, temperature=0.7, top_k=20, min_p=0.01),
    "repetition": SamplingParams(seed=5, temperature=0.8, repetition_penalty=1.5),
    "penalties": SamplingParams(
        seed=6, temperature=0.9, frequency_penalty=0.9, presence_penalty=0.4
    ),
    "min tokens": SamplingParams(seed=7, temperature=1.0, min_tokens=9),
    "bias": SamplingParams(seed=8, temperature=0.6, logit_bias=((17, 4.0), (30, -5.0))),
    "logprobs": SamplingParams(seed=9, temperature=0.9, num_logprobs=3, num_prompt_logprobs=2),
}


def requests(seed: int, kinds: tuple[str, ...] = tuple(KINDS)) -> list[Request]:
    """Prompts of many lengths, of which some begin alike; answers that end early, or late."""
    numbers = random.Random(seed)
    shared = numbers.choices(range(2, 199), k=2 * BLOCK_SIZE)
    found = []
    for number in range(14):
        own = numbers.choices(range(2, 199), k=numbers.randint(1, 60))
        sampling = dataclasses.replace(KINDS[kinds[number % len(kinds)]], seed=seed + number)
        found.append(
            Request(
                tuple([*shared, *own] if number % 3 else own),
                numbers.randint(1, 30),
                sampling,
                num_choices=2 if number % 5 == 0 else 1,
                end_token_ids=frozenset(numbers.sample(range(200), 12)),
            )
        )
    return found


def assert_equal_scores(found: list[Any], expected: list[Any]) -> None:
    """The same tokens were told, as likely as before."""
    for one, other in zip(found, expected, strict=True):
        for score, wanted in zip(one, other, strict=True):
            assert (score is None) == (wanted is None)
            if isinstance(score, TokenScore):
                assert score.top_ids == wanted.top_ids
                logprobs = (score.logprob, *score.top_logprobs)
                assert logprobs == pytest.approx((wanted.logprob, *wanted.top_logprobs), abs=SCORE)


def assert_equal_runs(ahead: Run, in_turn: Run) -> None:
    """Everything that callers see is the same, and steps were launched ahead."""
    assert ahead.answers == in_turn.answers
    assert ahead.states == in_turn.states
    assert {State.STOPPED, State.LENGTH} <= set(ahead.states)
    assert_equal_scores(ahead.scores, in_turn.scores)
    assert_equal_scores(ahead.prompt_scores, in_turn.prompt_scores)
    assert any(plan.is_ahead for plan in ahead.plans)
    assert not any(plan.is_ahead for plan in in_turn.plans)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("llama", num_hidden_layers=2)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
def test_requests_of_every_kind_are_answered_the_same(model: PreTrainedModel, seed: int) -> None:
    wanted = requests(100 * seed)
    assert_equal_runs(run(model, wanted, overlaps=True), run(model, wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_requests_of_one_kind_are_answered_the_same(model: PreTrainedModel, kind: str) -> None:
    wanted = requests(7, (kind,))
    assert_equal_runs(run(model, wanted, overlaps=True), run(model, wanted))


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_also_where_sequences_lose_their_blocks(
    model: PreTrainedModel, prefix_caching: bool
) -> None:
    wanted = [
        dataclasses.replace(request, end_token_ids=frozenset(), max_tokens=30 - number)
        if number % 2
        else request
        for number, request in enumerate(requests(11))
    ]
    ahead = run(model, wanted, num_blocks=8, prefix_caching=prefix_caching, overlaps=True)
    in_turn = run(model, wanted, num_blocks=8, prefix_caching=prefix_caching)
    assert_equal_runs(ahead, in_turn)
    assert ahead.counters.num_preemptions > 0
    assert (ahead.counters.num_cached_tokens > 0) or not prefix_caching


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "mixtral"])
def test_other_families_are_answered_the_same(model_type: str) -> None:
    other = make_model(model_type, num_hidden_layers=2)
    wanted = requests(13)[:8]
    assert_equal_runs(run(other, wanted, overlaps=True), run(other, wanted))


def test_logits_that_are_no_numbers_fail_their_own_row(model: PreTrainedModel) -> None:
    """A token whose embedding is none, in one prompt, and fed to one answer."""
    poisoned = make_model("llama", num_hidden_layers=2)
    with torch.no_grad():
        embeddings: Any = poisoned.get_input_embeddings()
        embeddings.weight[199] = float("nan")
    forced = dataclasses.replace(GREEDY, logit_bias=((199, 1000.0),))
    wanted = [
        *requests(17, ("greedy", "seeded"))[:5],
        Request((5, 6, 7), 9, forced),
        Request((8, 199, 9), 9),
        *requests(18, ("greedy", "penalties"))[:3],
    ]
    for request in (*wanted[:5], *wanted[7:]):
        assert 199 not in request.prompt
    ahead, in_turn = run(poisoned, wanted, overlaps=True), run(poisoned, wanted)
    assert ahead.answers == in_turn.answers
    assert ahead.states == in_turn.states
    assert ahead.states.count(State.FAILED) >= 2
    assert len(set(ahead.states)) > 1


# ── on the device ────────────────────────────────────────────────────────────────────────────────


class Recorder:
    """What reaches the device, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self._note(monkeypatch, batch, "upload", "upload")
        self._note(monkeypatch, Sampler, "sample", "sample")
        self._note(monkeypatch, Download, "__init__", "download")
        self._note(monkeypatch, Download, "read", "read")

    def _note(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, event: str) -> None:
        stock = getattr(owner, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            self.events.append(event)
            return stock(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)


class NotingDevice(FakeGraphDevice):
    """Also tells the recorder of each replay."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self._events = events

    def capture(self, run: Any) -> Any:
        replay = super().capture(run)

        def noting() -> torch.Tensor:
            self._events.append("replay")
            return replay()

        return noting


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="the interpreter is off: there is a GPU"
)
def test_uploads_replay_and_sampling_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from gpu_worker.attention.triton_paged import TritonPagedAttention

    geometry = KVGeometry((LayerGeometry(2, 16, 16),), torch.float32, CPU)
    triton = TritonPagedAttention(geometry, 40, num_rows=NUM_ROWS, max_model_len=64)
    graphed = small(triton)
    recorder = Recorder(monkeypatch)
    graphed.capture(NotingDevice(recorder.events))
    recorder.events.clear()
    answers = answered(graphed, overlaps=True)
    first = ["upload", "sample", "download"]  # the prompts are computed without a graph
    step = ["upload", "replay", "read", "sample", "download"]
    assert recorder.events == [*first, *step * 5, "read"]
    assert answers == answered(small(TorchAttention(geometry, 40)), overlaps=False)


def small(backend: Any) -> CausalLM:
    """A small model over this backend."""
    decoder = make_model("llama", num_hidden_layers=1)
    decoder.set_attn_implementation(ATTENTION)
    return CausalLM(decoder, backend, NUM_ROWS)


def answered(runner: CausalLM, *, overlaps: bool) -> list[list[int]]:
    """Three prompts, answered by six tokens each."""
    scheduler = Scheduler(
        num_blocks=40, block_size=BLOCK_SIZE, max_sequences=NUM_ROWS, max_tokens_per_step=60
    )
    sequences = [
        Sequence(str(n), tuple(range(9 + n, 20 + 3 * n)), 6, frozenset(), GREEDY) for n in range(3)
    ]
    for sequence in sequences:
        scheduler.add(sequence)
    pipeline = Pipeline(scheduler, IsolatingRunner(runner), StepTimes(), overlaps=overlaps)
    while not scheduler.is_idle:
        pipeline.advance()
    return [sequence.token_ids for sequence in sequences]


def test_what_is_pending_never_reaches_the_model(model: PreTrainedModel) -> None:
    fed: list[int] = []
    loaded = serve(make_model("llama", num_hidden_layers=1), SETTINGS)
    assert isinstance(loaded.runner, CausalLM)
    loaded.runner._model.register_forward_pre_hook(
        lambda _, __, kwargs: fed.extend(kwargs["input_ids"].flatten().tolist()), with_kwargs=True
    )
    answers = answered(loaded.runner, overlaps=True)
    assert min(fed) >= 0
    assert sorted(fed) == sorted(token for answer in answers for token in answer[:-1])


@pytest.mark.parametrize(
    ("overlap", "on_cpu", "on_cuda"),
    [("auto", False, True), ("on", True, True), ("off", False, False)],
)
def test_the_flag_says_whether_steps_are_launched_ahead(
    overlap: str, on_cpu: bool, on_cuda: bool
) -> None:
    config = dataclasses.replace(SETTINGS, overlap=overlap)
    assert overlaps(config, torch.device("cpu")) is on_cpu
    assert overlaps(config, torch.device("cuda")) is on_cuda
    assert serve(make_model("llama", num_hidden_layers=1), config).overlaps is on_cpu


def test_an_encoder_decoder_says_that_its_steps_go_in_turn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = ModelConfig("demo-t5")
    assert not load(
        WorkerConfig(model=model, overlap="on", accelerator_type="cpu", cpu_threads=1)
    ).overlaps
    assert "--overlap on has no effect" in caplog.text


@pytest.mark.gpu
def test_a_download_waits_for_its_own_copy_alone() -> None:
    values = torch.arange(5, device="cuda")
    download = Download(values)
    busy = torch.rand(4096, 4096, device="cuda")
    for _ in range(50):
        busy = busy @ busy
    done = torch.cuda.Event()
    done.record()
    assert download.read().tolist() == [0, 1, 2, 3, 4]
    assert not done.query(), "it has waited for what was launched later"
