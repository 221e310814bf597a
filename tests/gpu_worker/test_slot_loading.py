"""An encoder-decoder from its checkpoint to its slots: lengths, memory, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config

from gpu_worker import slot_loading
from gpu_worker.intake import EncoderLimits
from gpu_worker.loading import load
from gpu_worker.slot_cache import SlotGeometry
from gpu_worker.slot_loading import lengths, num_slots_of
from shared.config import ModelConfig, WorkerConfig
from shared.errors import FatalError
from tests.gpu_worker.encoder_decoders import END, START, make_t5

GEOMETRY = SlotGeometry(2, 4, 8, 99, 100, torch.float32, torch.device("cpu"))
SLOT_BYTES = 2 * 2 * 4 * 8 * 4 * (99 + 1 + 100)


def settings(**fields: Any) -> WorkerConfig:
    return WorkerConfig(**{"continuous_batching_batch_size": 4, **fields})


def test_a_slot_holds_both_lengths_and_a_place_for_nobody() -> None:
    assert GEOMETRY.bytes_per_slot == SLOT_BYTES


@pytest.mark.parametrize(
    ("fields", "n_positions", "expected"),
    [
        ({}, 512, (512, 512)),
        ({}, 1024, (1024, 1024)),
        ({"max_encoder_len": 2000, "model": ModelConfig("-", 30)}, 512, (2000, 30)),
        ({"static_cache": True}, 512, (256, 256)),
        (
            {
                "static_cache": True,
                "static_cache_encoder_max_length": 7,
                "static_cache_decoder_max_length": 8,
            },
            512,
            (7, 8),
        ),
    ],
)
def test_lengths(fields: dict[str, Any], n_positions: int, expected: tuple[int, int]) -> None:
    config = T5Config()
    config.n_positions = n_positions
    assert lengths(config, settings(**fields)) == expected


@pytest.mark.parametrize(("num_bytes", "num_slots"), [(100, 4), (2.5, 2)])
def test_there_are_as_many_slots_as_the_memory_holds(
    num_bytes: float, num_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_loading, "free_bytes", lambda _: int(num_bytes * SLOT_BYTES))
    found, reason = num_slots_of(GEOMETRY, settings(kv_cache_memory_fraction=1.0))
    assert found == num_slots
    assert f"{num_slots} slots of 100 + 99 tokens" in reason
    assert ("of free memory" in reason) == (num_slots < 4)


@pytest.mark.parametrize(("num_bytes", "is_static"), [(0.5, False), (2.5, True)])
def test_too_little_memory_is_refused_with_what_helps(
    num_bytes: float, is_static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_loading, "free_bytes", lambda _: int(num_bytes * SLOT_BYTES))
    config = settings(kv_cache_memory_fraction=1.0, static_cache=is_static)
    with pytest.raises(FatalError, match="lower --continuous-batching-batch-size"):
        num_slots_of(GEOMETRY, config)


def test_a_directory_is_loaded(tmp_path: Path) -> None:
    make_t5("gated t5").save_pretrained(tmp_path)
    config = settings(
        model=ModelConfig(str(tmp_path), 30),
        accelerator_type="cpu",
        torch_dtype="float32",
        max_encoder_len=50,
    )
    loaded = load(config)
    assert loaded.encoder == EncoderLimits(50, (START,))
    assert (loaded.max_model_len, loaded.end_token_ids) == (30, frozenset({END}))
    assert dataclasses.astuple(loaded.cache) == (4, 30, 4, True)


def test_answers_must_begin_with_something(tmp_path: Path) -> None:
    model = make_t5("t5")
    model.config.decoder_start_token_id = 500
    assert model.generation_config is not None
    model.generation_config.decoder_start_token_id = 500
    model.save_pretrained(tmp_path)
    config = settings(model=ModelConfig(str(tmp_path)), accelerator_type="cpu")
    with pytest.raises(FatalError, match="decoder_start_token_id is 500"):
        load(config)
