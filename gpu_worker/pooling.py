"""Vectors of texts: which ones a checkpoint makes, and from a model's states to unit vectors.

A decoder's vector is the state of its last token, the only one that has seen the whole text; an
encoder's is the mean of all its states. A checkpoint of Sentence Transformers says what it was
trained for (https://sbert.net/docs/sentence_transformer/custom_models.html), and is refused where
that is something else: a vector that is made otherwise means nothing.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
)
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from shared.parts import EmbeddingFacts

POOLS_LAST = "lasttoken"  # modes by their names in Sentence Transformers
POOLS_MEAN = "mean"
_MODULES = ("Transformer", "Pooling", "Normalize")  # what we do as they do


def embedding_facts(size: int, path: str, mode: str) -> EmbeddingFacts:
    """The vectors of a checkpoint whose states have this size, pooled in this mode; or why none."""
    if not size:
        return EmbeddingFacts(0, "This model makes no embeddings: it shows no states of texts.")
    try:
        refusal = _refusal(path, mode)
    except (ValueError, TypeError, AttributeError):  # any JSON, but not what it should be
        refusal = "its modules.json, or what that names, cannot be read"
    except OSError:
        refusal = "whether it has a modules.json could not be found out without the network"
    if refusal:
        return EmbeddingFacts(0, f"This checkpoint's embeddings are not supported: {refusal}.")
    return EmbeddingFacts(size)


@contextmanager
def recorded_states(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Collects what the decoder's last layer gives while the context lasts, each [1, T, D]."""
    states: list[torch.Tensor] = []
    stock: Any = model  # transformers types no submodule
    decoder = stock.get_decoder()
    if decoder is model:
        decoder = getattr(model, "model", None)
    if not isinstance(decoder, torch.nn.Module):
        yield states
        return
    hook = decoder.register_forward_hook(lambda _module, _inputs, output: states.append(output[0]))
    try:
        yield states
    finally:
        hook.remove()


def unit(states: torch.Tensor) -> torch.Tensor:
    """[P, D] states to float32 vectors of length 1."""
    return functional.normalize(states.float(), dim=-1)


def mean(states: torch.Tensor, is_input: torch.Tensor) -> torch.Tensor:
    """[n, E, D] states to the means [n, D] of those that `is_input` [n, E] marks, in float32."""
    marks = is_input[..., None].float()
    return (states.float() * marks).sum(1) / marks.sum(1)


def read_vectors(vectors: torch.Tensor) -> tuple[bytes | None, ...]:
    """The rows of [P, D] float32, on the host, as bytes; None for one that is not of numbers."""
    is_sound = vectors.isfinite().all(-1).tolist()
    return tuple(
        row.numpy().tobytes() if sound else None
        for row, sound in zip(vectors, is_sound, strict=True)
    )


def shortened(vectors: bytes, size: int, dimensions: int) -> bytes:
    """The first `dimensions` numbers of each vector of `size` numbers, again of length 1."""
    if dimensions == size:
        return vectors
    rows = torch.frombuffer(bytearray(vectors), dtype=torch.float32).view(-1, size)
    return unit(rows[:, :dimensions]).numpy().tobytes()


def _refusal(path: str, mode: str) -> str:
    """Why the checkpoint's own way to its vectors is not ours; "" if it is, or it has none."""
    modules = _read(path, "modules.json")
    if modules is None:
        return ""
    foreign = [kind for kind in map(_kind, modules) if kind not in _MODULES]
    if foreign:
        return f"it puts a module {foreign[0]} behind the model"
    places = [str(module.get("path", "")) for module in modules if _kind(module) == "Pooling"]
    if not places:
        return ""
    stated = _modes(_read(path, f"{places[0]}/config.json") or {})
    return "" if stated == {mode} else f"it pools by {', '.join(sorted(stated)) or 'nothing known'}"


def _modes(config: dict[str, Any]) -> set[str]:
    """The modes of a Pooling module, under their old names and the new one."""
    prefix = "pooling_mode_"
    asked = {key.removeprefix(prefix) for key, value in config.items() if value is True}
    stated = {mode.removesuffix("_tokens") for mode in asked if prefix + mode in config}
    new = config.get("pooling_mode")
    return stated | ({new} if isinstance(new, str) else set(new or ()))


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rpartition(".")[2]


def _is_unknown(cause: BaseException | None) -> bool:
    """True where the Hub could not be asked whether there is such a file."""
    if isinstance(cause, LocalEntryNotFoundError):
        return True
    return isinstance(cause, HfHubHTTPError) and not isinstance(cause, EntryNotFoundError)


def _read(path: str, name: str) -> Any:
    """A JSON file of the checkpoint; None where there is none, OSError where nobody can tell."""
    try:
        file = cached_file(path, name)
    except OSError as error:
        if _is_unknown(error.__cause__):
            raise
        return None
    return json.loads(Path(str(file)).read_text(encoding="utf-8"))
