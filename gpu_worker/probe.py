"""What a model asks of an attention backend, learnt from one forward pass of one token.

Names in configs differ from family to family; what reaches the attention function does not.
"""

import inspect
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from gpu_worker.architectures import refusal, text_config
from gpu_worker.attention.backend import AttentionRules
from gpu_worker.batch import Batch
from gpu_worker.kv_cache import KVGeometry, LayerGeometry
from gpu_worker.paged_attention import ATTENTION, bind
from gpu_worker.pooling import recorded_states

_NEEDED_ARGUMENTS = ("position_ids", "logits_to_keep")


@dataclass(frozen=True)
class LayerUse:
    """How one layer called the seam."""

    num_heads: int
    geometry: LayerGeometry
    rules: AttentionRules


@dataclass(frozen=True)
class ModelUse:
    """How every layer of a model called the seam, in the order of layers."""

    layers: tuple[LayerUse, ...]
    dtype: torch.dtype  # of the keys and values
    device: torch.device
    state_size: int = 0  # numbers of a token's state behind the last layer; 0: it shows none

    @property
    def geometry(self) -> KVGeometry:
        """What the paged cache must hold."""
        layers = tuple(layer.geometry for layer in self.layers)
        return KVGeometry(layers, self.dtype, self.device)


@dataclass
class Recorder:
    """An attention backend that keeps nothing and remembers who called."""

    calls: list[tuple[int, LayerUse]] = field(default_factory=list)
    dtype: torch.dtype | None = None

    def begin(self, batch: Batch) -> None:
        """Nothing is to be prepared."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rules: AttentionRules,
    ) -> torch.Tensor:
        """Right for one token alone, up to sinks: it sees itself, so the answer is its value."""
        geometry = LayerGeometry(key.shape[1], key.shape[3], value.shape[3])
        self.calls.append((layer, LayerUse(query.shape[1], geometry, rules)))
        self.dtype = key.dtype
        group = query.shape[1] // key.shape[1]
        return value.transpose(1, 2).repeat_interleave(group, 2)


@torch.inference_mode()
def probe(model: PreTrainedModel) -> ModelUse:
    """Runs one token through a model, which is set to our attention; FatalError if it evades it."""
    model_type = text_config(model.config).model_type
    arguments = inspect.signature(model.forward).parameters
    for name in _NEEDED_ARGUMENTS:
        if name not in arguments:
            raise refusal(model_type, f"its forward pass takes no {name}")
    recorder = Recorder()
    row = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    forward: Any = model  # transformers types no forward pass
    try:
        model.set_attn_implementation(ATTENTION)
        _expect_no_padding(model)
        bind(model, recorder)
        with recorded_states(model) as states:
            forward(
                input_ids=row,
                position_ids=row,
                use_cache=False,
                logits_to_keep=row[0],
                backend=recorder,
            )
    except Exception as error:
        reason = f"it does not run over a paged cache ({type(error).__name__}: {error})"
        raise refusal(model_type, reason) from error
    return replace(_checked(model, recorder), state_size=_state_size(states))


def _state_size(states: list[torch.Tensor]) -> int:
    is_one = len(states) == 1 and states[0].dim() == 3 and states[0].shape[:2] == (1, 1)
    return states[0].shape[2] if is_one else 0


def _expect_no_padding(model: PreTrainedModel) -> None:
    """Stock code of GPT-2 and others looks for it in every step, and so waits for the device."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            cast("Any", module).warn_if_padding_and_no_attention_mask = _warn_of_nothing


def _warn_of_nothing(*_: Any) -> None:
    """A flat row has no padding."""


def _checked(model: PreTrainedModel, recorder: Recorder) -> ModelUse:
    config = text_config(model.config)
    num_layers: int = config.num_hidden_layers
    if sorted(layer for layer, _ in recorder.calls) != list(range(num_layers)):
        called = len(recorder.calls)
        reason = f"its {num_layers} layers call the attention interface {called} times"
        raise refusal(config.model_type, reason)
    layers = tuple(use for _, use in sorted(recorder.calls, key=lambda call: call[0]))
    for layer, use in enumerate(layers):
        _check_rules(config, layer, use.rules)
    assert recorder.dtype is not None
    return ModelUse(layers, recorder.dtype, model.device)


def _check_rules(config: Any, layer: int, rules: AttentionRules) -> None:
    """The window and the chunk that reached the seam are those of the config's layer type."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return
    window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    expected = {
        "full_attention": (None, None),
        "sliding_attention": (window, None),
        "chunked_attention": (None, chunk),
    }.get(layer_types[layer])
    if expected is None:
        reason = f"its layer {layer} is of type {layer_types[layer]!r}"
        raise refusal(config.model_type, reason)
    if expected != (rules.window, rules.chunk):
        reason = f"its layer {layer} attends otherwise than {layer_types[layer]!r} says"
        raise refusal(config.model_type, reason)
