"""How a Whisper checkpoint frames its answers: the ids of its control tokens, and its rules.

All of it is read from the checkpoint (generation_config.json, else the vocabulary's names): ids
differ between versions of the model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE
from transformers.utils.hub import cached_file

from shared.errors import EXIT_CONFIGURATION, BadRequest, FatalError
from shared.parts import TranscriptOptions
from shared.sampling import TranscriptRules
from tokenizer_proc.text_only import TextOnlyTokenizer

_MAX_FIRST_TIME = 50  # steps of 20 ms: speech begins within a second (Whisper's reference)
_NO_LANGUAGE = frozenset({"", "null", "none", "auto"})  # as some clients say it


@dataclass(frozen=True)
class TranscriptFormat:
    """One checkpoint's tokens and lengths."""

    start_id: int
    end_id: int
    previous_id: int
    no_speech_id: int
    no_times_id: int
    first_time_id: int
    languages: Mapping[str, int]  # by code; none: the model knows English alone
    tasks: Mapping[str, int]
    suppressed: tuple[int, ...]
    suppressed_at_first: tuple[int, ...]
    max_first_time: int
    max_positions: int  # of prompt and answer together
    num_heard: int  # positions of the encoder, each of which a mark of time can name
    text_only: TextOnlyTokenizer

    def rules(self, options: TranscriptOptions) -> TranscriptRules:
        """What a window may be answered with, or BadRequest."""
        heads: list[tuple[int, ...]] = []
        if self.languages:
            code = language_code(options.language)
            if code is not None and code not in self.languages:
                raise BadRequest(f"This model does not know the language '{code}'.", "language")
            known = tuple(self.languages.values())
            heads += [
                known if code is None else (self.languages[code],),
                (self.tasks[options.task],),
            ]
        elif options.task != "transcribe":
            raise BadRequest("This model knows English alone and translates nothing.", "model")
        elif language_code(options.language) not in (None, "en"):
            raise BadRequest("This model knows English alone.", "language")
        if not options.marks_times:
            heads.append((self.no_times_id,))
        return TranscriptRules(
            heads=tuple(heads),
            end_token_id=self.end_id,
            suppressed=self.suppressed,
            suppressed_at_first=self.suppressed_at_first,
            no_speech_id=self.no_speech_id,
            first_time_id=self.first_time_id if options.marks_times else None,
            max_first_time=self.max_first_time if options.marks_times else None,
        )

    @property
    def max_text_tokens(self) -> int:
        """The most tokens of one window's text, marks included (Whisper's reference)."""
        return self.max_positions // 2

    def mark_seconds(self, window_seconds: float) -> float:
        """The time from one mark to the next."""
        return window_seconds / self.num_heard

    def text_ids(self, prompt: str) -> list[int]:
        """The tokens of a text that might have come before."""
        text = prompt.strip()
        return self.text_only.encode(f" {text}") if text else []

    def prompt_ids(self, before: Sequence[int]) -> tuple[int, ...]:
        """What comes before the answer: the last of what came earlier, then the start."""
        if not before:
            return (self.start_id,)
        return (self.previous_id, *before[-(self.max_text_tokens - 1) :], self.start_id)


def language_code(language: str | None) -> str | None:
    """A language's code, given that or its English name in any case; None: nothing is given."""
    name = (language or "").strip().lower()
    if name in _NO_LANGUAGE:
        return None
    code = TO_LANGUAGE_CODE.get(name, name.partition("-")[0])
    if code not in LANGUAGES:
        raise BadRequest(f"'language' is no language that is known: '{name[:40]}'.", "language")
    return str(code)


def read_format(path: str, hf_model: str, tokenizer: Any, config: Any) -> TranscriptFormat:
    """The checkpoint's format, or FatalError for one that lacks a token."""
    stated = _stated(path)
    vocabulary: dict[str, int] = tokenizer.get_vocab()

    def token(*names: str) -> int:
        for name in names:
            if name in vocabulary:
                return vocabulary[name]
        sentence = f"--hf-model {hf_model}: its vocabulary has no token {names[0]}"
        raise FatalError(f"{sentence}; choose a Whisper checkpoint", EXIT_CONFIGURATION)

    no_times_id = token("<|notimestamps|>")
    is_multilingual = bool(stated.get("is_multilingual", "<|translate|>" in vocabulary))
    codes = {code: f"<|{code}|>" for code in LANGUAGES} if is_multilingual else {}
    special = [name for name in vocabulary if name.startswith("<|") and name.endswith("|>")]
    return TranscriptFormat(
        start_id=token("<|startoftranscript|>"),
        end_id=token("<|endoftext|>"),
        previous_id=token("<|startofprev|>"),
        no_speech_id=token("<|nospeech|>", "<|nocaptions|>"),
        no_times_id=no_times_id,
        # Right behind it, whether they have names in the vocabulary or not.
        first_time_id=no_times_id + 1,
        languages={code: vocabulary[name] for code, name in codes.items() if name in vocabulary},
        tasks={
            task: token(f"<|{task}|>") for task in ("transcribe", "translate") if is_multilingual
        },
        suppressed=_ids(stated, "suppress_tokens", vocabulary),
        suppressed_at_first=_ids(stated, "begin_suppress_tokens", vocabulary),
        max_first_time=int(stated.get("max_initial_timestamp_index") or _MAX_FIRST_TIME),
        max_positions=int(config.max_target_positions),
        num_heard=int(config.max_source_positions),
        text_only=TextOnlyTokenizer(tokenizer.backend_tokenizer, special),
    )


def _ids(stated: Mapping[str, Any], name: str, vocabulary: Mapping[str, int]) -> tuple[int, ...]:
    most = max(vocabulary.values())
    found = stated.get(name) or ()
    return tuple(i for i in found if isinstance(i, int) and 0 <= i <= most)


def _stated(path: str) -> dict[str, Any]:
    """The checkpoint's generation_config.json; {} without one."""
    try:
        found = json.loads(
            Path(str(cached_file(path, "generation_config.json"))).read_text("utf-8")
        )
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
