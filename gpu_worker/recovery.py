"""A step that raises harms only the sequence that makes it raise.

Executing a plan, or a part of it, a second time changes nothing. So a plan that raises is run again
in halves, until the culprit is alone: at most 2 log2(B) runs more for one culprit among B
sequences, and one for a sequence that is alone from the start. A device without memory for the
whole step gets it in parts in the same way, and even a single chunk in pieces, unless it aligns.

A step that was launched ahead of one that raises has read what that one left undone. So it is
given up, and executed from its beginning once the tokens that it feeds are known.
"""

import logging
import traceback
from collections.abc import Mapping
from itertools import groupby

import torch

from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.runner import Flight, Runner, launch
from scheduler.plan import NO_TOKEN, StepPlan, StepResult
from shared.errors import EXIT_FAILED, FatalError

logger = logging.getLogger(__name__)

# CUDA errors after which every call fails: the context is lost, and only a new process helps.
# https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html
STICKY_ERRORS = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction",
    "invalid program counter",
    "hardware stack error",
    "launch timed out",
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "GPU is lost",
)
# What others say than torch's CUDA allocator when there is no memory.
OUT_OF_MEMORY_SIGNS = (
    "can't allocate memory",  # torch's CPU allocator
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",  # its workspace is allocated at the first product
)


class IsolatingRunner:
    """A runner that fails sequences instead of raising; FatalError is the one exception."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._newest: IsolatedFlight | None = None

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step; the sequences that cannot be computed are in `failed_rows`."""
        return self._execute(plan, is_whole=True)

    def launch(self, plan: StepPlan) -> "IsolatedFlight":
        """See `LaunchingRunner`; what raises is mended in the flight's `result`."""
        before, self._newest = self._newest, IsolatedFlight(self, plan)
        if before is None or not before.is_broken or not plan.is_ahead:
            self.attempt(self._newest)
        return self._newest

    def attempt(self, flight: "IsolatedFlight") -> None:
        """Launches the flight's step."""
        flight.attempt(self._runner)

    def give_up_ahead_of(self, flight: "IsolatedFlight") -> None:
        """The flight broke: a step that was launched ahead of it has read what it left undone."""
        if self._newest is not None and self._newest is not flight:
            self._newest.give_up()

    def mend(self, plan: StepPlan, error: Exception | None, dead: frozenset[int]) -> StepResult:
        """Executes a step that was launched in vain, by this error if any.

        Dead rows failed in the step before: they fail unseen.
        """
        if error is not None and not dead:
            return self._execute_in_parts(plan, error, is_whole=True)
        results: list[StepResult] = []
        runs = groupby(range(len(plan.chunks)), lambda number: plan.chunks[number].row in dead)
        for is_dead, numbers in runs:
            places = list(numbers)
            part = plan.part(places[0], places[-1] + 1)
            if is_dead:
                results += map(StepResult.failure, part.chunks)
            else:
                results.append(self._execute(part, is_whole=True))
        return StepResult.joined(results)

    def _execute(self, plan: StepPlan, *, is_whole: bool) -> StepResult:
        try:
            return self._runner.execute(plan)
        except FatalError:
            raise
        except Exception as error:  # noqa: BLE001 — whatever it is, it must not harm the others
            _refuse_sticky(error)
            return self._execute_in_parts(plan, error, is_whole=is_whole)

    def _execute_in_parts(self, plan: StepPlan, error: Exception, *, is_whole: bool) -> StepResult:
        is_out_of_memory = _is_out_of_memory(error)
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the forward pass
        if is_out_of_memory:
            torch.cuda.empty_cache()  # does nothing without CUDA
        parts = _split(plan, pieces=is_out_of_memory)
        if not parts and is_whole:  # as a sequence in company, it gets a second try
            logger.warning("step %d is run again, because of %r", plan.step, error)
            return self._execute(plan, is_whole=False)
        if not parts:
            (chunk,) = plan.chunks
            logger.error("a sequence failed in step %d", plan.step, exc_info=error)
            return StepResult.failure(chunk)
        logger.warning("step %d is run in parts, because of %r", plan.step, error)
        results: list[StepResult] = []
        for part in parts:
            results.append(self._execute_part(part, results))
        return StepResult.joined(results)

    def _execute_part(self, part: StepPlan, earlier: list[StepResult]) -> StepResult:
        """The later piece of a chunk whose earlier one failed fails without being run."""
        has_failed = any(part.chunks[0].row in result.failed_rows for result in earlier)
        if len(part.chunks) == 1 and has_failed:
            return StepResult.failure(part.chunks[0])
        return self._execute(part, is_whole=False)


class IsolatedFlight:
    """A step under way whose result raises nothing but FatalError; see `Flight`."""

    def __init__(self, runner: IsolatingRunner, plan: StepPlan) -> None:
        self._runner = runner
        self._plan = plan
        self._flight: Flight | None = None  # None: it broke, or was given up
        self._error: Exception | None = None  # by which it broke
        self._dead = frozenset[int]()  # rows that failed in the step before

    @property
    def is_broken(self) -> bool:
        """True when the device has not computed, or will not compute, what the plan says."""
        return self._flight is None

    def attempt(self, runner: Runner) -> None:
        """Launches the step."""
        try:
            self._flight = launch(runner, self._plan)
        except Exception as error:  # noqa: BLE001 — as in `IsolatingRunner`
            self._break(error)

    def give_up(self) -> None:
        """Whatever it computes does not count."""
        self._flight = None

    def sample(self, fed: Mapping[int, int]) -> None:
        """See `Flight`; one that was given up is launched again, now that its tokens are known."""
        self._dead = frozenset(row for row, token_id in fed.items() if token_id == NO_TOKEN)
        self._plan = self._plan.fed(fed)
        if self._flight is None and self._error is None and not self._dead:
            self._runner.attempt(self)
        if self._flight is None:
            return
        try:
            self._flight.sample(fed)
        except Exception as error:  # noqa: BLE001 — likewise
            self._break(error)

    def result(self) -> StepResult:
        """See `Flight`; of one that broke it is computed here."""
        if self._flight is not None:
            try:
                return self._flight.result()
            except Exception as error:  # noqa: BLE001 — likewise
                self._break(error)
        self._runner.give_up_ahead_of(self)
        return self._runner.mend(self._plan, self._error, self._dead)

    def _break(self, error: Exception) -> None:
        if isinstance(error, FatalError):
            raise error
        _refuse_sticky(error)
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the forward pass
        self._flight, self._error = None, error


def _split(plan: StepPlan, *, pieces: bool) -> tuple[StepPlan, ...]:
    """Two halves of the plan; of a single chunk only if `pieces` allows it; else none."""
    if len(plan.chunks) > 1:
        middle = len(plan.chunks) // 2
        return plan.part(0, middle), plan.part(middle, len(plan.chunks))
    chunk = plan.chunks[0]
    if pieces and len(chunk.token_ids) > 1 and not chunk.num_aligned:  # which is told as a whole
        return plan.cut(len(chunk.token_ids) // 2, BLOCK_SIZE)
    return ()


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(sign in text for sign in OUT_OF_MEMORY_SIGNS)


def _refuse_sticky(error: Exception) -> None:
    """Raises FatalError where nothing on this device can work any more."""
    text = str(error)
    if isinstance(error, RuntimeError) and any(sticky in text for sticky in STICKY_ERRORS):
        reason = f"the GPU is lost to this process: {text.splitlines()[0]}"
        raise FatalError(reason, EXIT_FAILED) from error
