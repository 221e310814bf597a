"""What went wrong with a checkpoint, in one sentence: errors as the Hub's library raises them."""

from pathlib import Path

import pytest
from httpx2 import Request, Response
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from shared.checkpoint_errors import unloadable
from shared.errors import EXIT_CONFIGURATION

REQUEST = Request("HEAD", "https://huggingface.co/org/model")


def response(status: int) -> Response:
    """What the Hub answered."""
    return Response(status, request=REQUEST)


def sentence(cause: Exception) -> str:
    """How a cause is explained once transformers has wrapped it in an error of several lines."""
    wrapped = OSError("You are trying to access a gated repo.\nMake sure to have access.\nMore.")
    wrapped.__cause__ = cause
    fatal = unloadable("org/model", wrapped)
    assert fatal.exit_status == EXIT_CONFIGURATION
    assert "\n" not in str(fatal)
    assert str(fatal).startswith("--hf-model org/model: ")
    return str(fatal)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_names_its_page_and_the_token(status: int) -> None:
    told = sentence(GatedRepoError("no", response=response(status)))
    assert "https://huggingface.co/org/model" in told
    assert "HF_TOKEN" in told


@pytest.mark.parametrize(
    "error",
    [
        RepositoryNotFoundError("no", response=response(404)),
        HfHubHTTPError("no", response=response(401)),
        HfHubHTTPError("no", response=response(403)),
    ],
)
def test_a_model_that_is_not_shown_may_need_a_token(error: Exception) -> None:
    assert "correct the id, or set HF_TOKEN" in sentence(error)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_counts_though_the_cache_was_asked_last(status: int) -> None:
    missing = LocalEntryNotFoundError("not in the cache")
    missing.__cause__ = HfHubHTTPError("no", response=response(status))
    assert "HF_TOKEN" in sentence(missing)


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("not in the cache"), OfflineModeIsEnabled("offline")]
)
def test_without_the_hub_a_directory_or_the_demo_helps(error: Exception) -> None:
    told = sentence(error)
    assert "cannot be reached" in told
    assert "`demo`" in told


def test_code_of_the_checkpoint_names_the_flag_that_allows_it() -> None:
    told = unloadable("x", ValueError("…\nPlease pass the argument `trust_remote_code=True`"))
    assert "--trust-remote-code" in str(told)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("Bad.\nAdvice."), "Bad; "),
        (ValueError(), "ValueError; "),
        (OSError(" "), "OSError"),
        (
            ValueError("Bad field:\n    TypeError: no int\nAdvice."),
            "Bad field: TypeError: no int; ",
        ),
        (KeyError("added_tokens"), "KeyError: 'added_tokens'; "),
        (ZeroDivisionError("modulo by zero"), "ZeroDivisionError: modulo by zero; "),
    ],
)
def test_anything_else_is_told_by_its_first_line(error: Exception, reason: str) -> None:
    assert str(unloadable("x", error)).startswith(f"--hf-model x: {reason}")


def test_who_gave_a_directory_is_not_told_to_give_one(tmp_path: Path) -> None:
    for hf_model in ("./model", str(tmp_path), "demo"):
        told = str(unloadable(hf_model, KeyError("added_tokens"), part="its tokenizer"))
        assert told.startswith(f"--hf-model {hf_model}: its tokenizer: KeyError: 'added_tokens'; ")
        assert told.endswith("correct the checkpoint, or download it again")
    assert "give a local directory" in str(unloadable("x" * 5000, KeyError("added_tokens")))
