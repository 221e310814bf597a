"""Operators that torch.compile calls without looking inside, as compiled graphs find them.

A graph's arguments are tensors and numbers. So what an operator works on, an attention backend or a
packed weight, has a number, and goes when nobody but its number holds it.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch

Tensors = torch.Tensor | Sequence[torch.Tensor]

_NAMESPACE = "transformers_openai_api"
_LIBRARY = torch.library.Library(_NAMESPACE, "DEF")
_numbers = count()
_Thing = TypeVar("_Thing")
_numbered: WeakValueDictionary[int, Any] = WeakValueDictionary()


def number_of(thing: object) -> int:
    """A number of its own, by which `numbered` finds it."""
    number = next(_numbers)
    _numbered[number] = thing
    return number


def numbered(number: int) -> Any:
    """What has been given the number."""
    return _numbered[number]


def all_numbered(kind: type[_Thing]) -> list[_Thing]:
    """All of a kind that live, in the order of their numbers."""
    return [thing for _, thing in sorted(_numbered.items()) if isinstance(thing, kind)]


def operator(schema: str, shape: Callable[..., Tensors]) -> Callable[[Any], Any]:
    """Makes a function an operator; `shape` of the same arguments is as its result, but empty.

    The function may change what it works on, never its arguments, and returns new tensors.
    """
    name = schema.partition("(")[0]

    def define(compute: Callable[..., Tensors]) -> Any:
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{_NAMESPACE}::{name}", shape, lib=_LIBRARY)
        return getattr(getattr(torch.ops, _NAMESPACE), name).default

    return define
