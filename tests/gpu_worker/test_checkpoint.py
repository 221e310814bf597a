"""Weights before they are loaded: found, whole, of a known size, and pickled only where allowed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gpu_worker import checkpoint
from gpu_worker.checkpoint import Weights, check_memory, find_weights
from gpu_worker.loading import load
from shared.config import ModelConfig, WorkerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError
from tests.builders import make_model
from tests.gpu_worker.engine import decoder_of

CPU = torch.device("cpu")
NUM_VALUES = 1000
SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def worker_config(path: Path, *, allow_pickle_weights: bool = False) -> WorkerConfig:
    """The worker's settings for a directory, on the CPU, in one type on every kind of it."""
    return WorkerConfig(
        model=ModelConfig(str(path)),
        accelerator_type="cpu",
        torch_dtype="float32",
        allow_pickle_weights=allow_pickle_weights,
    )


def save(path: Path, *dtypes: torch.dtype) -> Path:
    """A safetensors file with a thousand values of each of these types."""
    tensors = {str(index): torch.zeros(NUM_VALUES).to(dtype) for index, dtype in enumerate(dtypes)}
    save_file(tensors, path)
    return path


def refusal(path: Path, *, allow_pickle: bool) -> str:
    """The sentence about a directory without weights that may be loaded."""
    with pytest.raises(FatalError) as caught:
        find_weights(ModelConfig(str(path)), allow_pickle=allow_pickle)
    assert caught.value.exit_status == EXIT_CONFIGURATION
    return str(caught.value)


def save_pickled(path: Path) -> Path:
    """A model whose weights are a pickle, with a config and nothing else."""
    model = make_model("llama")
    model.config.save_pretrained(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    return path


@pytest.mark.parametrize(
    ("stored", "loaded", "bytes_each"),
    [
        (torch.float32, torch.bfloat16, 2),
        (torch.float16, torch.float32, 4),
        (torch.float64, torch.float32, 4),
        (torch.bfloat16, torch.bfloat16, 2),
        (torch.int8, torch.float32, 1),
        (torch.int64, torch.float32, 8),
        (torch.float8_e4m3fn, torch.bfloat16, 1),
    ],
)
def test_weights_have_the_size_that_loading_gives_them(
    stored: torch.dtype, loaded: torch.dtype, bytes_each: int, tmp_path: Path
) -> None:
    weights = Weights((save(tmp_path / "one.safetensors", stored),), is_pickle=False)
    assert weights.num_bytes(loaded) == NUM_VALUES * bytes_each


def test_every_shard_counts_once(tmp_path: Path) -> None:
    for file in SHARDS.values():
        save(tmp_path / file, torch.float32)
    index = {"weight_map": {**SHARDS, "c": SHARDS["a"]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = find_weights(ModelConfig(str(tmp_path)), allow_pickle=False)
    assert [file.name for file in weights.files] == sorted(SHARDS.values())
    assert weights.num_bytes(torch.float32) == 2 * 4 * NUM_VALUES


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save(tmp_path / SHARDS["a"], torch.float32)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": SHARDS}))
    make_model("llama").config.save_pretrained(tmp_path)
    with pytest.raises(FatalError, match=SHARDS["b"]):
        load(worker_config(tmp_path))


def test_a_file_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    file = save(tmp_path / "model.safetensors", torch.float32)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FatalError, match=r"model\.safetensors is not whole .*download it again"):
        Weights((file,), is_pickle=False).num_bytes(torch.float32)


def test_weights_that_do_not_fit_are_refused_with_figures_and_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mebibyte = 2**20
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(mebibyte)}, file)
    weights = Weights((file,), is_pickle=False)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda _: 4 * mebibyte)
    check_memory(weights, "model", torch.float32, CPU)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda _: 4 * mebibyte - 1)
    with pytest.raises(FatalError) as caught:
        check_memory(weights, "model", torch.float32, CPU)
    assert caught.value.exit_status == EXIT_CONFIGURATION
    for part in ("--hf-model model", "4 MiB in torch.float32", "cpu has 4 MiB", "--torch-dtype"):
        assert part in str(caught.value)
    check_memory(weights, "model", torch.bfloat16, CPU)


def test_the_memory_is_checked_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda _: 0)
    with pytest.raises(FatalError, match="MiB free"):
        load(worker_config(tmp_path))


def test_pickled_weights_are_refused_with_the_flag_that_allows_them(tmp_path: Path) -> None:
    assert "--allow-pickle-weights" in refusal(save_pickled(tmp_path), allow_pickle=False)
    with pytest.raises(FatalError, match="--allow-pickle-weights"):
        load(worker_config(tmp_path))


def test_pickled_weights_are_loaded_where_that_is_allowed(tmp_path: Path) -> None:
    loaded = load(worker_config(save_pickled(tmp_path), allow_pickle_weights=True))
    expected = make_model("llama").state_dict()
    weights = decoder_of(loaded).state_dict()
    assert torch.equal(weights["model.embed_tokens.weight"], expected["model.embed_tokens.weight"])


class Intruder:
    """What a pickle may make out of nothing: a call of any function."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        """Unpickling this would make a file."""
        return Path.touch, (self._path,)  # type: ignore[return-value]  # a path is what touch takes


def test_a_pickle_that_runs_code_is_refused_though_pickles_are_allowed(tmp_path: Path) -> None:
    directory, planted = save_pickled(tmp_path), tmp_path / "planted"
    torch.save({"model.embed_tokens.weight": Intruder(planted)}, directory / "pytorch_model.bin")
    with pytest.raises(FatalError, match="none of it was run"):
        load(worker_config(directory, allow_pickle_weights=True))
    assert not planted.exists()


def test_a_pickle_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    file = save_pickled(tmp_path) / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(FatalError, match=r"pytorch_model\.bin is broken"):
        load(worker_config(tmp_path, allow_pickle_weights=True))


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(save_pickled(tmp_path))
    weights = find_weights(ModelConfig(str(tmp_path)), allow_pickle=True)
    assert (weights.is_pickle, weights.files[0].name) == (False, "model.safetensors")


def test_pickled_weights_have_their_size_on_disk(tmp_path: Path) -> None:
    weights = find_weights(ModelConfig(str(save_pickled(tmp_path))), allow_pickle=True)
    size = (tmp_path / "pytorch_model.bin").stat().st_size
    assert weights.num_bytes(torch.float32) == size


def test_a_directory_without_any_weights_says_so(tmp_path: Path) -> None:
    assert "pytorch_model.bin; choose another" in refusal(tmp_path, allow_pickle=True)
