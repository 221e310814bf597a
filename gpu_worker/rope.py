"""What stock code takes from the whole flat row, taken from each token's own sequence instead.

RoPE of type `dynamic` (NTK scaling) and `longrope` (https://arxiv.org/abs/2402.13753) chooses
frequencies by the row's largest position; Llama 4 tempers queries by their place in the row.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gpu_worker.batch import Batch


@dataclass(frozen=True)
class _Dynamic:
    """NTK scaling: every length above the threshold has frequencies of its own."""

    threshold: int  # up to this length all sequences share the original frequencies
    original: torch.Tensor  # [D/2]
    base: float
    factor: float

    def beyond(self, lengths: torch.Tensor) -> torch.Tensor:
        """[T, D/2] for lengths [T, 1]; the order of operations is that of stock code."""
        size = 2 * self.original.shape[0]
        lengths = lengths.clamp(min=self.threshold)
        ratio = self.factor * lengths / self.threshold - (self.factor - 1)
        bases = self.base * ratio ** (size / (size - 2))
        exponents = torch.arange(0, size, 2, device=lengths.device).float() / size
        frequencies: torch.Tensor = 1.0 / bases**exponents
        return frequencies

    def prefix_class(self, prompt_length: int) -> str:
        """Equal for prompts above the threshold whose keys are rotated alike."""
        return str(prompt_length)


@dataclass(frozen=True)
class _Long:
    """LongRoPE: one set of frequencies up to the threshold, another above it."""

    threshold: int
    original: torch.Tensor  # [D/2]
    long: torch.Tensor  # [D/2]

    def beyond(self, lengths: torch.Tensor) -> torch.Tensor:
        """[T, D/2] for lengths [T, 1]."""
        return self.long.expand(lengths.shape[0], -1)

    def prefix_class(self, _: int) -> str:
        """Equal for prompts above the threshold whose keys are rotated alike."""
        return "long"


_Frequencies = _Dynamic | _Long


class SequenceAngles:
    """Changes a model's modules so that a token's angles depend on its own sequence alone.

    As in `generate()`, a prompt token's angles are those of the whole prompt's length, and a
    generated token's those of the sequence up to itself. One instance serves a model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._lengths: torch.Tensor | None = None  # [T]
        self._positions: torch.Tensor | None = None  # [1, T]
        self._frequencies: list[_Frequencies] = []
        for module in model.modules():
            if found := dict(_found_frequencies(module)):
                self._frequencies += found.values()
                self._replace_forward(module, found)
            if getattr(module, "attn_temperature_tuning", False):
                self._replace_temperature(module)

    def begin(self, batch: Batch) -> None:
        """Tells the lengths and positions of the next forward pass."""
        self._lengths = batch.rope_lengths
        self._positions = batch.positions

    def prefix_class(self, prompt_length: int) -> str:
        """Prompts of different classes share no cached keys; "" for all where length is nothing."""
        classes = {
            frequencies.prefix_class(prompt_length)
            for frequencies in self._frequencies
            if prompt_length > frequencies.threshold
        }
        return "/".join(sorted(classes))

    def _replace_forward(self, rotary: Any, found: dict[str | None, _Frequencies]) -> None:
        stock = inspect.unwrap(type(rotary).forward)  # without the update by the row's length

        def forward(x: torch.Tensor, position_ids: torch.Tensor, layer_type: Any = None) -> Any:
            by_type = {} if layer_type is None else {"layer_type": layer_type}
            if self._lengths is None or layer_type not in found:
                return stock(rotary, x, position_ids, **by_type)
            name = _buffer_name("inv_freq", layer_type)
            row_independent = getattr(rotary, name)
            setattr(rotary, name, _per_token(found[layer_type], self._lengths))
            try:
                return stock(rotary, x, position_ids, **by_type)
            finally:
                setattr(rotary, name, row_independent)

        rotary.forward = forward

    def _replace_temperature(self, attention: Any) -> None:
        """Llama 4 (https://arxiv.org/abs/2501.19399) in layers without RoPE."""
        attention.attn_temperature_tuning = False
        if attention.use_rope:
            return

        def temperature(query: torch.Tensor) -> torch.Tensor:  # [1, H, T, Dk]
            if self._positions is None:
                return query
            steps = torch.floor((self._positions.float() + 1.0) / attention.floor_scale)
            scales = torch.log1p(steps) * attention.attn_scale + 1.0
            tempered: torch.Tensor = (query * scales[:, None, :, None]).to(query.dtype)
            return tempered

        attention.row_temperature = temperature  # the seam applies it


def _per_token(frequencies: _Frequencies, lengths: torch.Tensor) -> torch.Tensor:
    """[T, D/2], or [D/2] where a glance at the lengths is allowed and waits for no GPU."""
    original = frequencies.original
    can_look = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
    if can_look and int(lengths.max()) <= frequencies.threshold:
        return original
    column = lengths[:, None]
    return torch.where(column > frequencies.threshold, frequencies.beyond(column), original)


def _found_frequencies(module: Any) -> Iterator[tuple[str | None, _Frequencies]]:
    """By layer type (None: for all) the frequencies of a RoPE module that depend on length."""
    rope_types = getattr(module, "rope_type", None)
    if isinstance(rope_types, str):
        rope_types = {None: rope_types}
    if not isinstance(rope_types, dict):
        return
    for layer_type, rope_type in rope_types.items():
        if rope_type == "dynamic":
            yield layer_type, _dynamic(module, layer_type)
        elif rope_type == "longrope":
            yield layer_type, _long(module, layer_type)


def _dynamic(module: Any, layer_type: str | None) -> _Dynamic:
    parameters = _parameters(module, layer_type)
    return _Dynamic(
        threshold=module.config.max_position_embeddings,
        original=_original(module, layer_type),
        base=parameters["rope_theta"],
        factor=parameters["factor"],
    )


def _long(module: Any, layer_type: str | None) -> _Long:
    threshold = _parameters(module, layer_type)["original_max_position_embeddings"]
    original = _original(module, layer_type)
    long, _ = ROPE_INIT_FUNCTIONS["longrope"](
        module.config, original.device, seq_len=threshold + 1, layer_type=layer_type
    )
    return _Long(threshold, original, long)


def _parameters(module: Any, layer_type: str | None) -> Any:
    parameters = module.config.rope_parameters
    return parameters if layer_type is None else parameters[layer_type]


def _original(module: Any, layer_type: str | None) -> torch.Tensor:
    original: torch.Tensor = getattr(module, _buffer_name("original_inv_freq", layer_type))
    return original.float()


def _buffer_name(name: str, layer_type: str | None) -> str:
    return name if layer_type is None else f"{layer_type}_{name}"
