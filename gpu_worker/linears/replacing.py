"""Puts other layers in the place of a model's plain linear ones, which are freed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gpu_worker.linears.opaque_linear import OpaqueLinear

# By its name, such as `model.layers.0.mlp.up_proj`, and itself; None: it stays.
Make = Callable[[str, nn.Module], OpaqueLinear | None]


@dataclass(frozen=True)
class Replaced:
    """What became of a model's linear layers."""

    layers: dict[str, OpaqueLinear]
    kept: tuple[str, ...]  # names of those that stay plain
    twice_bytes: int  # held twice: a tied head is replaced, the embedding keeps its rows


def replace_linears(model: nn.Module, make: Make) -> Replaced:
    """Replaces each plain linear layer, `nn.Linear` or GPT-2's, by what `make` makes of it."""
    made: dict[nn.Module, OpaqueLinear | None] = {}  # a layer may be used in several places
    names: dict[nn.Module, str] = {}
    places = list(_plain_layers(model))
    plain = {layer for _, _, _, layer in places}
    others = _addresses(module for module in model.modules() if module not in plain)
    twice_bytes = 0
    for name, parent, attribute, layer in places:
        if layer not in made:
            new = made[layer] = make(name, layer)
            names[layer] = name
            if new is not None:
                is_tied = layer.get_parameter("weight").data_ptr() in others
                twice_bytes += new.num_bytes if is_tied else 0
                del layer.weight
        if (new := made[layer]) is not None:
            setattr(parent, attribute, new)
    layers = {names[layer]: new for layer, new in made.items() if new is not None}
    kept = tuple(names[layer] for layer, new in made.items() if new is None)
    return Replaced(layers, kept, twice_bytes)


def plain_weight(layer: nn.Module) -> tuple[torch.Tensor, bool]:
    """The weight [out, in] of a plain linear layer, and whether the layer is GPT-2's."""
    weight = layer.get_parameter("weight").detach()
    is_conv1d = isinstance(layer, Conv1D)
    return weight.t() if is_conv1d else weight, is_conv1d


def plain_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The plain linear layers by the names that `replace_linears` gives them, each once."""
    found: dict[nn.Module, str] = {}
    for name, _, _, layer in _plain_layers(model):
        found.setdefault(layer, name)
    return {name: layer for layer, name in found.items()}


def _plain_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Name, parent, attribute and layer of all that are exactly what their class says."""
    for prefix, parent in model.named_modules():
        for attribute, child in parent._modules.items():  # `named_children` gives each child once
            if child is None:
                continue
            hooks = child._forward_hooks or child._forward_pre_hooks
            is_plain = not hooks and "forward" not in vars(child)
            if type(child) in (nn.Linear, Conv1D) and is_plain:
                yield f"{prefix}.{attribute}".lstrip("."), parent, attribute, child


def _addresses(modules: Iterator[nn.Module]) -> set[int]:
    return {
        parameter.data_ptr() for module in modules for parameter in module.parameters(recurse=False)
    }
