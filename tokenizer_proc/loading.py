"""From settings to a tokenizer that can serve, or a FatalError that names the setting."""

import logging
from pathlib import Path
from typing import Any

import transformers
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils.chat_template_utils import _compile_jinja_template

from shared.checkpoint_errors import first_line, unloadable
from shared.config import TokenizerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError
from tokenizer_proc.chat import TEMPLATE_ERRORS
from tokenizer_proc.decoding import Decoder
from tokenizer_proc.transcription import Listener, LogMel
from tokenizer_proc.transcripts import read_format

logger = logging.getLogger(__name__)

_TRIAL = ({"role": "user", "content": "Hello"},)


def load_tokenizer(config: TokenizerConfig, fallback_template: str | None = None) -> Any:
    """The checkpoint's tokenizer with the chat template that it shall use, or FatalError.

    That is the one of `--chat-template`, else the checkpoint's, else the fallback.
    """
    tokenizer_class = _tokenizer_class(config)
    tokenizer = _load(tokenizer_class, config)
    if not hasattr(tokenizer, "backend_tokenizer"):
        reason = f"its tokenizer {type(tokenizer).__name__} is in Python, and only fast ones serve"
        raise _refusal(f"--hf-model {config.model.hf_model}: {reason}; choose another model")
    if config.chat_template:
        tokenizer.chat_template = _read_template(config.chat_template)
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = fallback_template
    if tokenizer.chat_template is not None:
        _try_template(tokenizer, config)
    if config.identity.index == 0:  # each tokenizer process would say the same
        _log_what_to_expect(config, tokenizer)
    return tokenizer


def load_listener(config: TokenizerConfig, tokenizer: Any) -> Listener | None:
    """What puts sound into words, where the checkpoint is made for that; or FatalError."""
    model = config.model
    try:
        model_config = AutoConfig.from_pretrained(
            model.path, trust_remote_code=model.trust_remote_code
        )
    except Exception:  # noqa: BLE001 — as in `has_encoder`: the worker says what is wrong
        return None
    if model_config.model_type != "whisper":
        return None
    try:
        # By its full name, because importing it loads torch, and only Whisper needs it.
        extractor = transformers.WhisperFeatureExtractor.from_pretrained(model.path)
    except Exception as error:  # what loaders raise over a foreign file is anything
        raise unloadable(model.hf_model, error, part="its feature extractor") from error
    format_ = read_format(model.path, model.hf_model, tokenizer, model_config)
    decoder = Decoder(f"decoder-{config.identity.index}")
    return Listener(format_, LogMel(extractor), config.max_audio_seconds, decoder)


def _load(tokenizer_class: Any, config: TokenizerConfig) -> Any:
    try:
        tokenizer = tokenizer_class.from_pretrained(
            config.model.path, trust_remote_code=config.model.trust_remote_code
        )
        if tokenizer_class is not AutoTokenizer:
            tokenizer("text, ☃")  # a class of another kind can load files that it cannot use
    except Exception as error:  # what loaders raise over a foreign file is anything
        if tokenizer_class is AutoTokenizer:
            raise unloadable(config.model.hf_model, error, part="its tokenizer") from error
        name = tokenizer_class.__name__
        reason = f"--tokenizer-type {name} cannot read this checkpoint ({first_line(error)})"
        raise _refusal(f"{reason}; leave the flag out") from error
    return tokenizer


def _tokenizer_class(config: TokenizerConfig) -> Any:
    """The class that reads the tokenizer; a text model's processor is its tokenizer as well."""
    asked = {
        "--tokenizer-type": _named("--tokenizer-type", config.tokenizer_type),
        "--processor-type": _named("--processor-type", config.processor_type),
    }
    if asked["--processor-type"] is AutoProcessor:  # it finds the tokenizer of a text model
        asked["--processor-type"] = AutoTokenizer
    for flag, cls in asked.items():
        is_tokenizer = cls is AutoTokenizer or issubclass(cls, PreTrainedTokenizerBase)
        if not is_tokenizer:
            reason = f"{flag} {cls.__name__} is no tokenizer, and the served models read text"
            raise _refusal(f"{reason}; leave the flag out")
    named = {cls for cls in asked.values() if cls is not AutoTokenizer}
    if len(named) > 1:
        names = " and ".join(f"{flag} {cls.__name__}" for flag, cls in asked.items())
        raise _refusal(f"{names} differ: a text model has one tokenizer; leave one flag out")
    return named.pop() if named else AutoTokenizer


def _named(flag: str, asked: str) -> Any:
    """The transformers class of that name; the predecessor's dotted paths end in one."""
    found = getattr(transformers, asked.rpartition(".")[2], None) if asked else AutoTokenizer
    if not isinstance(found, type):
        version = transformers.__version__
        raise _refusal(f"{flag} {asked}: transformers {version} has no such class; leave it out")
    return found


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = f"--chat-template {path}: {first_line(error)}; correct the file"
        raise _refusal(reason) from error


def _try_template(tokenizer: Any, config: TokenizerConfig) -> None:
    """Compiles every template and renders a short conversation with the one for conversations."""
    found = tokenizer.chat_template
    try:
        for source in found.values() if isinstance(found, dict) else [found]:
            _compile_jinja_template(source)
        rendered = tokenizer.apply_chat_template(
            [*_TRIAL], tokenize=False, add_generation_prompt=True
        )
    except TEMPLATE_ERRORS as error:
        if type(error) is not TemplateError:  # that is the template's own `raise_exception`
            raise _broken_template(config, first_line(error)) from error
    else:
        if not rendered.strip():
            raise _broken_template(config, "it makes an empty prompt of a conversation")


def _broken_template(config: TokenizerConfig, reason: str) -> FatalError:
    if config.chat_template:
        return _refusal(f"--chat-template {config.chat_template}: {reason}; correct the file")
    remedy = "correct it, or give --chat-template FILE"
    name = config.model.hf_model
    return _refusal(f"--hf-model {name}: its chat template is broken: {reason}; {remedy}")


def _log_what_to_expect(config: TokenizerConfig, tokenizer: Any) -> None:
    if not config.tokenizer_use_fast:
        logger.info("--tokenizer-use-fast false has no effect: transformers 5 has only fast ones")
    if tokenizer.chat_template is None:
        logger.warning(
            "%s has no chat template: /v1/chat/completions will refuse every request; "
            "give --chat-template FILE, or use /v1/completions", config.model.hf_model,
        )  # fmt: skip


def _refusal(sentence: str) -> FatalError:
    return FatalError(sentence, EXIT_CONFIGURATION)
