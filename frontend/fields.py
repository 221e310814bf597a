"""Every field that clients send, in three lists for each endpoint: the one place to look them up.

A known field that would change the answer is obeyed or refused by name, never ignored.

* Obeyed: the fields of the endpoint's shape in `schemas.py`.
* Refused unless null or neutral: with the values that ask for nothing special. Here are also the
  fields of other endpoints and of other servers (`other_servers.py`).
* Accepted without effect: the answer would be the same if we obeyed them.

A name in none of the lists is accepted, and reported in the `X-Ignored-Fields` header.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from frontend.other_servers import OF_OTHER_SERVERS
from frontend.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    SoundRequest,
    TokenizeRequest,
)
from shared.errors import BadRequest, ErrorCode

_BOOKKEEPING = frozenset({
    # OpenAI: bookkeeping, caching and speed
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention",
    # other servers: names and order of requests
    "priority", "request_id", "rid", "session_id",
})  # fmt: skip

_OF_CHAT: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    # vLLM, SGLang and the predecessor
    "documents": ([],),
    "chat_template": (),
    # completions
    "best_of": (1,),
    "echo": (False,),
    "prompt": (),
    "suffix": ("",),
}
_OF_COMPLETIONS: dict[str, tuple[Any, ...]] = {
    "messages": (),
    "top_logprobs": (0,),
    "add_generation_prompt": (),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "reasoning_effort": (),
    "separate_reasoning": (False,),  # a completion has all of the text in one place
    "include_reasoning": (True,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}
_OF_ANY_ANSWER: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    **OF_OTHER_SERVERS,
}
_OF_EMBEDDINGS: dict[str, tuple[Any, ...]] = {
    # vLLM
    "messages": (),
    "normalize": (True,),
    "use_activation": (True,),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "truncation_side": ("left",),
    # text-embeddings-inference
    "prompt_name": (),
    "truncate": (False,),
    # of models that read images
    "mm_processor_kwargs": ({},),
}
_OF_SOUND: dict[str, tuple[Any, ...]] = {
    "keywords": (),
    "languages": (),
    "known_speaker_names": (),
    "known_speaker_references": (),
    # vLLM and others
    "use_beam_search": ("false", "0"),
    "hotwords": ("",),
    "vad_filter": ("false", "0"),
    "without_timestamps": ("false", "0"),
    "min_p": ("0", "0.0"),
    "frequency_penalty": ("0", "0.0"),
    "presence_penalty": ("0", "0.0"),
    "max_completion_tokens": (),
}
_OF_TOKENIZE: dict[str, tuple[Any, ...]] = {
    "chat_template": (),
    "documents": ([],),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "suffix": ("",),
    "truncate": (),
    "truncate_prompt_tokens": (),
    "enable_thinking": (),
    "thinking": (),
    "reasoning": (),
    # llama.cpp; control tokens in text count here, as in /v1/completions
    "add_special": (),
    "parse_special": (True,),
    "with_pieces": (False,),
}


@dataclass(frozen=True)
class Fields:
    """The three lists of one endpoint."""

    shape: type[Struct]  # its fields are obeyed
    neutral_values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    without_effect: frozenset[str] = _BOOKKEEPING

    @property
    def known(self) -> frozenset[str]:
        """The names in any list."""
        obeyed = frozenset(self.shape.__struct_fields__)
        return obeyed | self.without_effect | self.neutral_values.keys()

    def refuse_unsupported(self, given: Mapping[str, Any]) -> None:
        """Raises BadRequest for the first field that asks for what this server cannot do."""
        for name, neutral_values in self.neutral_values.items():
            if name in given and not any(_is_same(given[name], value) for value in neutral_values):
                raise BadRequest(
                    f"'{name}' with this value is not supported by this server.",
                    name,
                    ErrorCode.UNSUPPORTED_PARAMETER,
                )

    def ignored_names(self, names: Iterable[str]) -> str:
        """The unknown ones of these names, as the value of a header: safe and bounded."""
        known = self.known
        unknown = [name for name in names if name not in known][:_MAX_NAMES]
        return ", ".join(
            _UNSAFE_IN_HEADER.sub("?", name[:_MAX_NAME_CHARACTERS]) for name in unknown
        )


CHAT = Fields(
    ChatRequest,
    _OF_ANY_ANSWER | _OF_CHAT,
    _BOOKKEEPING
    | {
        "verbosity", "prediction", "moderation",
        "parallel_tool_calls",  # tools themselves are refused
    },
)  # fmt: skip
COMPLETION = Fields(CompletionRequest, _OF_ANY_ANSWER | _OF_COMPLETIONS)
EMBEDDING = Fields(EmbeddingRequest, _OF_EMBEDDINGS)
SOUND = Fields(SoundRequest, _OF_SOUND, _BOOKKEEPING | {"file"})
TOKENIZE = Fields(TokenizeRequest, _OF_TOKENIZE)
DETOKENIZE = Fields(DetokenizeRequest, {"skip_special_tokens": (False,)})  # SGLang's default: true

_UNSAFE_IN_HEADER = re.compile(r"[^A-Za-z0-9_.-]")
_MAX_NAMES = 16
_MAX_NAME_CHARACTERS = 64


def _is_same(value: Any, neutral: Any) -> bool:
    """Equal, where `true` is not 1 and `false` is not 0."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
