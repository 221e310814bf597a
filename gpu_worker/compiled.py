"""The forward pass under torch.compile: a few graphs, made before the first request, and no more.

A decoder's are two: of a single token, and of any number of them, prompts and decodes alike, for
torch treats the size 1 by itself. Attention and packed weights are operators that the compiler does
not look into, so that lengths and positions are not compiled in. CUDA graphs are ours
(`cuda_graphs`), whatever the mode: torch's own stay off.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from gpu_worker.batch import Batch, Span, over_fixed_inputs
from gpu_worker.linears.joined import joining_pass
from gpu_worker.linears.lazy_logits import LazyLogits
from gpu_worker.linears.native import NativeLinear
from gpu_worker.opaque import call_directly
from shared.errors import EXIT_CONFIGURATION, FatalError

logger = logging.getLogger(__name__)

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Report = Callable[[str], None]  # is told each stage of a start
FirstCall = tuple[str, Callable[[], object]]  # with what the log says of it

# So many tokens are compiled for at least: more than are kept, or the two would be taken for one.
_FEWEST_TOKENS = 3
_KEPT = 2


def _about_inputs(guards: Sequence[Any]) -> list[bool]:
    """Which of torch's guards stay: a serving model never changes, and checking it takes time."""
    return [
        guard.guard_type == "SHAPE_ENV"
        or (guard.guard_type == "TENSOR_MATCH" and not isinstance(guard.value, nn.Parameter))
        for guard in guards
    ]


_OPTIONS = {
    "triton.cudagraphs": False,
    "guard_filter_fn": _about_inputs,
    # Results are rounded to the model's dtype wherever stock code does so: else an answer depended
    # on whether a step has one token or several, as their graphs fuse differently. What is left is
    # the order of float32 sums.
    "emulate_precision_casts": True,
    "size_asserts": False,  # checks of its own code, in every call
    "alignment_asserts": False,
    # What takes more operations than this is computed once for all who read it: RoPE's angles.
    "realize_opcount_threshold": 5,
}


class CompiledForward:
    """Token ids and positions [1, T] and K kept tokens to logits [1, K, V]."""

    def __init__(
        self,
        forward: Forward,
        mode: str,
        device: torch.device,
        head: NativeLinear | None = None,
    ) -> None:
        """With a `head` the logits are lazy: the graph ends before it."""
        self._run: Forward = compiled(forward, options_of(mode, device))
        self._head = head
        if head is not None:
            head.returns_states = True

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The logits [N + S, V] of a batch that all who look at batches know of."""
        num_kept = batch.kept.shape[0]
        missing = min(batch.slots.shape[0], _KEPT) - num_kept
        kept = pad(batch.kept, (0, missing)) if missing > 0 else batch.kept
        output = self._run(batch.token_ids, batch.positions, kept)[0, :num_kept]
        return output if self._head is None else LazyLogits(self._head, output)

    def warm_up(
        self,
        begin: Callable[[Batch], None],
        padding: torch.Tensor,
        num_rows: int,
        report: Report,
    ) -> bool:
        """Compiles for all that will come; False, with one warning, where the model resists.

        `padding`, [DECODE_FIELDS], is a row of nobody; `num_rows` is what large batches have.
        """
        num_tokens = max(num_rows, _FEWEST_TOKENS)
        calls = [
            (
                "compiling the forward pass of one token",
                partial(self._call, begin, batch_of(padding, 1)),
            ),
            (
                "compiling the forward pass of any number of tokens",
                partial(self._call, begin, batch_of(padding, num_tokens)),
            ),
        ]
        return make_graphs(calls, report)

    def _call(self, begin: Callable[[Batch], None], batch: Batch) -> None:
        begin(batch)
        for tensor in (batch.token_ids, batch.positions, batch.rope_lengths, batch.kept):
            let_grow(tensor, tensor.dim() - 1)
        self(batch)


def compiled(function: Callable[..., torch.Tensor], options: dict[str, Any]) -> Any:
    """The function, which is compiled in its first calls, whole or not at all."""
    call_directly()
    options = {**options, "post_grad_custom_pre_pass": joining_pass()}
    return torch.compile(_own(function), fullgraph=True, options=options)


def let_grow(tensor: torch.Tensor, dim: int) -> None:
    """Lets the graph that this input is for take any size of the dimension, but for the size 1."""
    if tensor.shape[dim] > 1:
        torch._dynamo.mark_dynamic(tensor, dim)


def make_graphs(calls: Sequence[FirstCall], report: Report) -> bool:
    """Makes the first calls; False, with one warning, where the model resists."""
    try:
        for number, (stage, call) in enumerate(calls, 1):
            report(f"{stage} ({number} of {len(calls)})")
            start = time.monotonic()
            call()
            logger.info("%s took %.1f s", stage, time.monotonic() - start)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # all of torch's compiler's errors are
        reason = str(error).strip().partition("\n")[0]
        logger.warning("--torch-compile: serving uncompiled, as this model resists: %s", reason)
        return False
    return True


def options_of(mode: str, device: torch.device) -> dict[str, Any]:
    """What torch's compiler is told in a mode of `torch.compile`; on the CPU all are alike."""
    from torch._inductor import list_mode_options  # noqa: PLC0415 — slow, and seldom needed

    if device.type != "cpu":
        return {**list_mode_options(mode), **_OPTIONS}
    if mode.startswith("max-autotune"):
        logger.info(
            "--torch-compile-mode %s: the CPU has nothing to tune, all modes are alike", mode
        )
    return _OPTIONS


def refuse_missing_tools(device: torch.device) -> None:
    """FatalError where the device's code could not be made."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415 — as above
    from torch._inductor.exc import InvalidCxxCompiler  # noqa: PLC0415
    from torch.utils._triton import has_triton  # noqa: PLC0415

    missing = ""
    if device.type == "cpu":
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            missing = "a C++ compiler, and there is none: install g++"
    elif not has_triton():
        missing = "Triton, which does not work here: install the package triton"
    if missing:
        sentence = f"--torch-compile needs {missing}, or start without the flag"
        raise FatalError(sentence, EXIT_CONFIGURATION)


def batch_of(padding: torch.Tensor, num_tokens: int) -> Batch:
    """Decodes of nobody, on the scratch block, of which two are kept."""
    batch = over_fixed_inputs(padding[:, None].repeat(1, num_tokens))
    row = int(padding[4])
    spans = [Span(row, n, n + 1, context_length=1, blocks=[0]) for n in range(num_tokens)]
    return replace(batch, spans=tuple(spans), kept=batch.kept[:_KEPT].clone())


def _own(forward: Any) -> Any:
    """The function with code of its own, by which torch finds the graphs of one model."""
    return FunctionType(
        forward.__code__.replace(), forward.__globals__, closure=forward.__closure__
    )
