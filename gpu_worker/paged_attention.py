"""The seam to stock model code: an attention function registered with transformers as `paged`.

Stock code calls it in every layer. The step's side channel, the attention backend, comes through
the model's keyword arguments, or from the module where stock code does not pass those on.
Transformers builds no mask for an attention function without a mask function: none is registered.
"""

from typing import Any, cast

import torch
from transformers import AttentionInterface, PreTrainedModel

from gpu_worker.attention.backend import AttentionBackend, AttentionRules
from gpu_worker.opaque import number_of, numbered, operator

ATTENTION = "paged"


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, Dk]
    key: torch.Tensor,  # [1, Hkv, T, Dk]
    value: torch.Tensor,  # [1, Hkv, T, Dv]
    attention_mask: torch.Tensor | None,
    *,
    backend: AttentionBackend | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Hands one layer's attention to the backend; [1, T, H, Dv]."""
    assert attention_mask is None, "masks follow from the positions, never from a padded batch"
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # torch types every attribute so
    rules = AttentionRules(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window or None,
        chunk=_chunk(module, layer),
        softcap=softcap or None,
        sinks=s_aux,
    )
    temperature: Any = getattr(module, "row_temperature", None)  # see `rope.SequenceAngles`
    if temperature is not None:
        query = temperature(query)
    if torch.compiler.is_compiling():
        number = cast("int", module.paged_backend_number)
        limits = (rules.scaling, rules.window, rules.chunk, rules.softcap)
        return _attend(query, key, value, rules.sinks, number, layer, *limits), None
    if backend is None:
        backend = cast("AttentionBackend", module.paged_backend)
    return backend.attend(layer, query, key, value, rules), None


def _output(query: torch.Tensor, _: torch.Tensor, value: torch.Tensor, *__: Any) -> torch.Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


@operator(
    "attend(Tensor query, Tensor key, Tensor value, Tensor? sinks, int backend, int layer, "
    "float scaling, int? window, int? chunk, float? softcap) -> Tensor",
    _output,
)
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    backend: int,
    layer: int,
    *limits: Any,
) -> torch.Tensor:
    """One layer's attention, as compiled code calls it."""
    scaling, window, chunk, softcap = limits
    rules = AttentionRules(scaling, window, chunk, softcap, sinks)
    output: torch.Tensor = numbered(backend).attend(layer, query, key, value, rules)
    return output


def bind(model: PreTrainedModel, backend: AttentionBackend) -> None:
    """Lets a model attend through this backend, also where keyword arguments do not arrive."""
    number = number_of(backend)
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            cast("Any", module).paged_backend = backend
            cast("Any", module).paged_backend_number = number


def unbind(model: PreTrainedModel) -> None:
    """Lets go of the backend, and with it of its cache."""
    for module in model.modules():
        vars(module).pop("paged_backend", None)


def _chunk(module: torch.nn.Module, layer: int) -> int | None:
    """The size of the layer's attention chunks, which stock code tells its masks only."""
    config: Any = getattr(module, "config", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None or layer_types[layer] != "chunked_attention":
        return None
    chunk: int = config.attention_chunk_size
    return chunk


AttentionInterface.register(ATTENTION, paged_attention)
