"""Why a checkpoint cannot be loaded, in one sentence with the way out.

transformers wraps the Hub's errors in an OSError of several lines; what it wrapped says more.
"""

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from shared.config import BUILT_IN_MODELS, is_local_path
from shared.errors import EXIT_CONFIGURATION, FatalError

_ELSEWHERE = "give a local directory, or use `demo`, which is built in"
MEND = "correct the checkpoint, or download it again"
# Python's own errors over a foreign file: without its type, such a text says nothing.
_TERSE = (LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)
_FORBIDDEN = (401, 403)


def unloadable(hf_model: str, error: Exception, *, part: str = "") -> FatalError:
    """The one sentence about a model that cannot be loaded; `part` is what of it was being read."""
    reason = _explained(hf_model, error, f"{part}: " if part else "")
    return FatalError(f"--hf-model {hf_model}: {reason}", EXIT_CONFIGURATION)


def first_line(error: Exception) -> str:
    """What an error says, without the lines of advice that libraries add."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    while len(lines) > 1 and lines[0].endswith(":"):  # it only says what comes
        lines[:2] = [f"{lines[0]} {lines[1]}"]
    name = type(error).__name__
    if not lines:
        return name
    said = lines[0].rstrip(".")
    return f"{name}: {said}" if isinstance(error, _TERSE) else said


def _explained(hf_model: str, error: Exception, place: str) -> str:
    causes = list(_causes(error))
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        page = f"https://huggingface.co/{hf_model}"
        return f"it is gated; ask for access at {page} and set HF_TOKEN to your token"
    if any(isinstance(cause, RepositoryNotFoundError) or _is_forbidden(cause) for cause in causes):
        return "the Hub shows no such model; correct the id, or set HF_TOKEN to your token"
    if any(isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled) for cause in causes):
        return f"it is not on this machine, and the Hub cannot be reached; {_ELSEWHERE}"
    if "trust_remote_code" in str(error):
        return "it needs Python code of its own; give --trust-remote-code if you trust it"
    remedy = MEND if _is_on_this_machine(hf_model) else _ELSEWHERE
    return f"{place}{first_line(error)}; {remedy}"


def _is_on_this_machine(hf_model: str) -> bool:
    if hf_model in BUILT_IN_MODELS or is_local_path(hf_model):
        return True
    try:
        return Path(hf_model).is_dir()
    except OSError:  # longer than a path may be
        return False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_forbidden(error: BaseException) -> bool:
    return isinstance(error, HfHubHTTPError) and error.response.status_code in _FORBIDDEN
