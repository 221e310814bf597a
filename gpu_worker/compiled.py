"""The forward pass under torch.compile: two graphs, made before the first request, and no more.

One is of a single token, the other of any number of them, prompts and decodes alike: torch treats
the size 1 by itself. Attention and packed weights are operators that the compiler does not look
into. CUDA graphs are ours (`cuda_graphs`), whatever the mode: torch's own stay off.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from gpu_worker.batch import Batch, Span, over_fixed_inputs
from shared.errors import EXIT_CONFIGURATION, FatalError

logger = logging.getLogger(__name__)

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

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
    "size_asserts": False,  # checks of its own code, in every call
    "alignment_asserts": False,
    # What takes more operations than this is computed once for all who read it: RoPE's angles.
    "realize_opcount_threshold": 8,
}


class CompiledForward:
    """Token ids and positions [1, T] and K kept tokens to logits [1, K, V]."""

    def __init__(self, forward: Forward, mode: str, device: torch.device) -> None:
        self._run: Forward = torch.compile(
            _own(forward), fullgraph=True, options=options_of(mode, device)
        )

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The logits [N + S, V] of a batch that all who look at batches know of."""
        num_kept = batch.kept.shape[0]
        missing = min(batch.slots.shape[0], _KEPT) - num_kept
        kept = pad(batch.kept, (0, missing)) if missing > 0 else batch.kept
        return self._run(batch.token_ids, batch.positions, kept)[0, :num_kept]

    def warm_up(self, begin: Callable[[Batch], None], padding: torch.Tensor, num_rows: int) -> bool:
        """Compiles for all that will come; False, with one warning, where the model resists.

        `padding`, [DECODE_FIELDS], is a row of nobody; `num_rows` is what large batches have.
        """
        try:
            for num_tokens in (1, max(num_rows, _FEWEST_TOKENS)):
                self._compile(begin, _batch_of(padding, num_tokens))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # all of torch's compiler's errors are
            reason = str(error).strip().partition("\n")[0]
            logger.warning("--torch-compile: serving uncompiled, as this model resists: %s", reason)
            return False
        return True

    def _compile(self, begin: Callable[[Batch], None], batch: Batch) -> None:
        num_tokens = batch.slots.shape[0]
        sizes = "one token" if num_tokens == 1 else "any number of tokens"
        logger.info("compiling the forward pass of %s", sizes)
        start = time.monotonic()
        begin(batch)
        if num_tokens > 1:
            for tensor in (batch.token_ids, batch.positions, batch.rope_lengths, batch.kept):
                torch._dynamo.mark_dynamic(tensor, tensor.dim() - 1)
        self(batch)
        logger.info("compiled it in %.1f s", time.monotonic() - start)


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


def _batch_of(padding: torch.Tensor, num_tokens: int) -> Batch:
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
