"""Operators that torch.compile calls without looking inside, as compiled graphs find them.

A graph's arguments are tensors and numbers. So what an operator works on, an attention backend or a
packed weight, has a number, and goes when nobody but its number holds it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch

Tensors = torch.Tensor | Sequence[torch.Tensor]

_NAMESPACE = "transformers_openai_api"
_LIBRARY = torch.library.Library(_NAMESPACE, "DEF")
_numbers = count()
_functions: dict[str, Callable[..., Tensors]] = {}  # of every operator, by its name
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
        _functions[name] = compute
        return getattr(getattr(torch.ops, _NAMESPACE), name).default

    return define


def sources() -> list[Path]:
    """The files of this module and of all operators: what says how they are called."""
    codes = (function.__code__ for function in _functions.values())
    return sorted({Path(__file__), *(Path(code.co_filename) for code in codes)})


def call_directly() -> None:
    """From now on code that is compiled calls the operators' functions themselves.

    Through torch's dispatcher a call takes two microseconds more, and a step makes hundreds of
    them. So it is where torch has no such registry.
    """
    try:
        from torch._inductor.codegen.custom_extern_kernel_codegen import (  # noqa: PLC0415 — slow
            CUSTOM_EXTERN_KERNEL_CODEGEN,
            CustomCodegen,
        )
    except ImportError:
        return
    from torch._inductor.select_algorithm import extern_kernels  # noqa: PLC0415 — as above

    for name, function in _functions.items():
        attribute = f"{_NAMESPACE}_{name}"
        setattr(extern_kernels, attribute, function)
        write = partial(_write_call, f"extern_kernels.{attribute}")
        key = f"torch.ops.{_NAMESPACE}.{name}.default"
        CUSTOM_EXTERN_KERNEL_CODEGEN[key] = CustomCodegen(python=write)


def _write_call(function: str, node: Any, writeline: Callable[[str], None]) -> None:
    arguments = ", ".join([*node.codegen_args(), *node.codegen_kwargs()])
    writeline(f"{node.get_name()} = {function}({arguments})")
