"""Tensors that look like others and take no memory until somebody computes with them."""

from typing import Any

import torch
from torch.utils import _pytree as pytree


class Deferred(torch.Tensor):
    """One whose numbers come from `plain`."""

    def plain(self) -> torch.Tensor:
        """The tensor that this one looks like."""
        raise NotImplementedError

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares its own as a C function
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Every computation sees the plain tensor."""

        def plain(value: Any) -> Any:
            return value.plain() if isinstance(value, Deferred) else value

        args, kwargs = pytree.tree_map(plain, (args, kwargs or {}))
        return func(*args, **kwargs)
