"""What can be refused before any process starts: each in one sentence with the way out.

The rooms check the rest, once they have read the checkpoint.
"""

import json
import os
import sys
from pathlib import Path

from shared.config import ModelConfig, ServerConfig, is_local_path
from shared.errors import EXIT_CONFIGURATION, FatalError

_NEEDED_OF_OS = ("pidfd_open", "memfd_create")  # in Linux, but not in every build of Python


def check(config: ServerConfig) -> None:
    """Returns if the rooms may be started, or raises FatalError."""
    _check_python()
    _refuse_two_precisions(config)
    _check_model(config.worker.model)
    if config.tokenizer.chat_template:
        _check_template(config.tokenizer.chat_template)


def _check_python() -> None:
    for name in _NEEDED_OF_OS:
        if not hasattr(os, name):
            raise _refusal(
                f"{sys.executable} was built for old kernels and lacks os.{name}: make the "
                "environment with your distribution's Python, or with a newer build"
            )


def _refuse_two_precisions(config: ServerConfig) -> None:
    if config.worker.hqq and config.worker.quantization:
        raise _refusal(
            f"--hqq and --quantization {config.worker.quantization} are two precisions of the "
            "same weights: give one of them"
        )


def _check_model(model: ModelConfig) -> None:
    if not model.hf_model:
        raise _refusal("--hf-model is empty: name a model, or `demo`, which is built in")
    is_directory = _is_directory(model)
    if is_local_path(model.hf_model) and not is_directory:
        raise _refusal(f"--hf-model {model.hf_model}: there is no such directory; correct the path")
    if is_directory:
        _check_directory(model.hf_model, Path(model.path))


def _is_directory(model: ModelConfig) -> bool:
    try:
        return Path(model.path).is_dir()
    except (OSError, RuntimeError):  # longer than a path may be, or the home of nobody
        return False


def _check_directory(hf_model: str, directory: Path) -> None:
    path = directory / "config.json"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        reason = f"{path.name}: {error.strerror}; give a directory that `save_pretrained` wrote"
        raise _refusal(f"--hf-model {hf_model}: {reason}") from error
    except (ValueError, RecursionError) as error:
        reason = f"{path.name} is not JSON ({error}); download the checkpoint again"
        raise _refusal(f"--hf-model {hf_model}: {reason}") from error
    if not isinstance(content, dict):
        reason = f"{path.name} holds no JSON object; download the checkpoint again"
        raise _refusal(f"--hf-model {hf_model}: {reason}")


def _check_template(path: str) -> None:
    try:
        Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise _refusal(f"--chat-template {path}: {error.strerror}; correct the path") from error
    except ValueError as error:
        raise _refusal(f"--chat-template {path}: it is no UTF-8 text") from error


def _refusal(sentence: str) -> FatalError:
    return FatalError(sentence, EXIT_CONFIGURATION)
