"""Vectors are those of stock code, whatever shares the step; a checkpoint's own way is kept to."""

import copy
import json
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch.nn.functional import normalize

from gpu_worker import pooling
from gpu_worker.families.encoder_decoder import EncoderDecoder
from gpu_worker.loading import serve
from gpu_worker.pooling import (
    POOLS_LAST,
    POOLS_MEAN,
    embedding_facts,
    read_vectors,
    shortened,
)
from gpu_worker.runner import Runner
from scheduler.plan import NO_INPUT, EncoderInput
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence, State
from tests.builders import GREEDY, make_model
from tests.gpu_worker.encoder_decoders import MODELS, START, difference, make_t5, requests, served
from tests.gpu_worker.engine import BUDGET, NUM_ROWS, PLAIN_TORCH, SETTINGS, Request
from tests.gpu_worker.engine import assert_as_generated as assert_generated
from tests.gpu_worker.test_architectures import ARCHITECTURES, model_of

SIZE = 64
LENGTHS = (1, 100, 16, 33, 2, 64, 39)


def pooled(number: int, ids: tuple[int, ...], *, is_encoded: bool = False) -> Sequence:
    """One input whose vector is wanted."""
    return Sequence(
        f"v{number}",
        (START,) if is_encoded else ids,
        1,
        frozenset(),
        GREEDY,
        encoder_input=EncoderInput.text(ids) if is_encoded else NO_INPUT,
        is_pooled=True,
    )


def inputs(vocab_size: int, longest: int = 200) -> list[tuple[int, ...]]:
    """Inputs of mixed lengths, two of which begin alike."""
    numbers = torch.Generator().manual_seed(3)
    made = [torch.randint(2, vocab_size, (n,), generator=numbers) for n in LENGTHS if n <= longest]
    return [tuple(ids.tolist()) for ids in (*made, made[1][: longest // 2])]


def run(scheduler: Scheduler, runner: Runner, arriving: list[Sequence]) -> dict[str, bytes | None]:
    """Serves sequences, one of which arrives with each step; the vectors by request."""
    vectors: dict[str, bytes | None] = {}
    waiting = list(arriving)
    while waiting or not scheduler.is_idle:
        if waiting:
            scheduler.add(waiting.pop(0))
        plan = scheduler.schedule()
        for output in scheduler.apply(plan, runner.execute(plan)):
            if output.sequence.is_pooled:
                vectors[output.sequence.request_id] = output.vector
        scheduler.check()
    return vectors


def assert_close(vector: bytes | None, expected: torch.Tensor) -> None:
    """The numbers are those of the state, scaled to length 1."""
    assert vector is not None
    found = torch.tensor(array("f", vector))
    torch.testing.assert_close(found, normalize(expected.float(), dim=-1), atol=2e-5, rtol=0)


@pytest.mark.parametrize("settings", [SETTINGS, PLAIN_TORCH], ids=["native", "plain"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_decoders_vector_is_the_state_of_its_last_token(kind: str, settings: Any) -> None:
    model = make_model(kind)
    served_model = copy.deepcopy(model)
    loaded = serve(served_model, settings)
    assert loaded.state_size == model.config.hidden_size
    scheduler = Scheduler(
        num_blocks=loaded.cache.num_blocks,
        block_size=loaded.cache.block_size,
        max_sequences=NUM_ROWS,
        max_tokens_per_step=BUDGET,
    )
    texts = inputs(200)
    answer = Sequence("a", tuple(range(3, 40)), 12, loaded.end_token_ids, GREEDY)
    sequences = [pooled(number, ids) for number, ids in enumerate(texts)]
    vectors = run(scheduler, loaded.runner, [sequences[0], answer, *sequences[1:]])
    for number, ids in enumerate(texts):
        states: Any = model.base_model(torch.tensor([ids])).last_hidden_state
        assert_close(vectors[f"v{number}"], states[0, -1])
    assert_generated(model, Request(tuple(range(3, 40)), 12), answer.token_ids[37:])
    assert scheduler.counters.num_cached_tokens > 0, "no prefix was found"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tested_decoder_shows_its_states(name: str) -> None:
    model: Any = model_of(name)
    loaded = serve(copy.deepcopy(model), SETTINGS)
    scheduler = loaded.scheduler(SETTINGS)
    ids = tuple(range(3, 20))
    vector = run(scheduler, loaded.runner, [pooled(0, ids)])["v0"]
    stock = model(torch.tensor([ids]), output_hidden_states=True)
    assert_close(vector, stock.hidden_states[-1][0, -1])
    assert vector is not None
    assert len(vector) == 4 * loaded.state_size


@pytest.mark.parametrize("name", MODELS)
def test_an_encoders_vector_is_the_mean_of_its_states(name: str) -> None:
    reference: Any = make_t5(name)
    runner, scheduler = served(make_t5(name))
    texts = inputs(120, longest=70)
    answers = requests(4)
    vectors = run(
        scheduler,
        runner,
        [
            *answers[:2],
            *(pooled(n, ids, is_encoded=True) for n, ids in enumerate(texts)),
            *answers[2:],
        ],
    )
    for number, ids in enumerate(texts):
        states = reference.get_encoder()(torch.tensor([ids])).last_hidden_state
        assert_close(vectors[f"v{number}"], states[0].mean(0))
    assert [found for s in answers if (found := difference(reference, s))] == []


def test_a_step_of_vectors_alone_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, scheduler = served(make_t5("t5"))
    decoded: list[object] = []
    adapter: Any = runner._adapter
    monkeypatch.setattr(adapter, "decode", lambda *given: decoded.append(given))
    assert isinstance(runner, EncoderDecoder)
    vectors = run(scheduler, runner, [pooled(0, (5, 6, 7), is_encoded=True)])
    assert vectors["v0"] is not None
    assert decoded == []


def test_a_vector_that_is_not_of_numbers_fails_its_request_alone() -> None:
    nan = float("nan")
    assert read_vectors(torch.tensor([[1.0, 2.0], [nan, 3.0]])) == (
        array("f", (1.0, 2.0)).tobytes(),
        None,
    )
    model = make_model("llama")
    loaded = serve(model, SETTINGS)
    embeddings: Any = model.get_input_embeddings()
    embeddings.weight.data[7] = nan
    scheduler = Scheduler(
        num_blocks=20, block_size=16, max_sequences=NUM_ROWS, max_tokens_per_step=BUDGET
    )
    poisoned, sound = pooled(0, (3, 7)), pooled(1, (3, 8))
    vectors = run(scheduler, loaded.runner, [poisoned, sound])
    assert vectors["v0"] is None
    assert poisoned.state is State.FAILED
    assert vectors["v1"] is not None


def test_fewer_dimensions_have_length_one_again() -> None:
    vectors = array("f", (0.6, 0.8, 0.0, 0.0, 0.0, 1.0)).tobytes()
    assert shortened(vectors, 3, 3) == vectors
    two = torch.tensor(array("f", shortened(vectors, 3, 2)))
    assert torch.allclose(two, torch.tensor([0.6, 0.8, 0.0, 0.0]))
    one = torch.tensor(array("f", shortened(vectors, 3, 1)))
    assert torch.allclose(one, torch.tensor([1.0, 0.0]))


def modules(path: Path, *kinds: str, **stated: object) -> str:
    """A checkpoint of Sentence Transformers with these modules."""
    entries = [{"type": f"sentence_transformers.models.{k}", "path": f"1_{k}"} for k in kinds]
    (path / "modules.json").write_text(json.dumps(entries))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(stated))
    return str(path)


@pytest.mark.parametrize(
    ("mode", "stated"),
    [
        (POOLS_LAST, {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}),
        (POOLS_MEAN, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}),
        (POOLS_MEAN, {"pooling_mode": "mean", "include_prompt": True}),
    ],
)
def test_a_checkpoint_that_pools_as_we_do_is_served(
    tmp_path: Path, mode: str, stated: dict[str, object]
) -> None:
    path = modules(tmp_path, "Transformer", "Pooling", "Normalize", **stated)
    assert embedding_facts(SIZE, path, mode).size == SIZE


@pytest.mark.parametrize(
    ("kinds", "stated", "reason"),
    [
        (("Transformer", "Pooling", "Dense"), {"pooling_mode_lasttoken": True}, "Dense"),
        (("Transformer", "Pooling"), {"pooling_mode_cls_token": True}, "pools by cls"),
        (("Transformer", "Pooling"), {"pooling_mode": "weightedmean"}, "pools by weightedmean"),
        (("Transformer", "Pooling"), {"pooling_mode": 5}, "cannot be read"),
    ],
)
def test_a_checkpoint_that_pools_otherwise_makes_no_embeddings(
    tmp_path: Path, kinds: tuple[str, ...], stated: dict[str, object], reason: str
) -> None:
    path = modules(tmp_path, *kinds, **stated)
    facts = embedding_facts(SIZE, path, POOLS_LAST)
    assert facts.size == 0
    assert reason in facts.refusal


def test_a_plain_checkpoint_is_pooled_by_its_kind(tmp_path: Path) -> None:
    assert embedding_facts(SIZE, str(tmp_path), POOLS_LAST).refusal == ""


def test_nothing_is_promised_where_the_network_alone_could_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("no network") from LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(pooling, "cached_file", unreachable)
    facts = embedding_facts(SIZE, "organisation/model", POOLS_LAST)
    assert facts.size == 0
    assert "could not be found out" in facts.refusal


def test_states_that_cannot_be_read_make_no_embeddings(tmp_path: Path) -> None:
    assert "shows no states" in embedding_facts(0, str(tmp_path), POOLS_LAST).refusal
