"""Why a checkpoint cannot be loaded, in one sentence with the way out.

transformers wraps the Hub's errors in an OSError of several lines; what it wrapped says more.
"""

from collections.abc import Iterator

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from shared.errors import EXIT_CONFIGURATION, FatalError

_ELSEWHERE = "give a local directory, or use `demo`, which is built in"
_FORBIDDEN = (401, 403)


def unloadable(hf_model: str, error: Exception) -> FatalError:
    """The one sentence about a model that cannot be loaded."""
    return FatalError(f"--hf-model {hf_model}: {_explained(hf_model, error)}", EXIT_CONFIGURATION)


def first_line(error: Exception) -> str:
    """What an error says, without the lines of advice that libraries add."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _explained(hf_model: str, error: Exception) -> str:
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
    return f"{first_line(error)}; {_ELSEWHERE}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_forbidden(error: BaseException) -> bool:
    return isinstance(error, HfHubHTTPError) and error.response.status_code in _FORBIDDEN
