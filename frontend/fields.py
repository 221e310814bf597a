"""Every field of a chat request that clients send, in three lists: the one place to look them up.

A field that would change the answer is obeyed or refused by name, never ignored.

* Obeyed: the fields of `schemas.ChatRequest`.
* Refused unless null or neutral: `NEUTRAL_VALUES`, with the values that ask for nothing special.
* Accepted without effect: `WITHOUT_EFFECT`; the answer would be the same if we obeyed them.

A name in none of the lists is accepted, and reported in the `X-Ignored-Fields` header.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from frontend.schemas import ChatRequest
from shared.errors import BadRequest, ErrorCode

OBEYED = frozenset(ChatRequest.__struct_fields__)

WITHOUT_EFFECT = frozenset({
    # OpenAI: bookkeeping, caching and speed
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "verbosity", "prediction", "moderation",
    "parallel_tool_calls",  # tools themselves are refused
    # other servers: names and order of requests
    "priority", "request_id", "rid", "session_id",
})  # fmt: skip

NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": (),
    "web_search_options": (),
    # vLLM, SGLang and the predecessor
    "length_penalty": (1,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "no_stop_trim": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "echo": (False,),
    "documents": ([],),
    "chat_template": (),
    "prompt_embeds": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "grammar": (),
    "prompt_logprobs": (),
    "logprob_token_ids": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "truncate_prompt_tokens": (),
    "truncate": (),
    "separate_reasoning": (False,),
    "include_reasoning": (True,),
}

_UNSAFE_IN_HEADER = re.compile(r"[^A-Za-z0-9_.-]")
_MAX_NAMES = 16
_MAX_NAME_CHARACTERS = 64


def refuse_unsupported(given: Mapping[str, Any]) -> None:
    """Raises BadRequest for the first field that asks for what this server cannot do."""
    for name, neutral_values in NEUTRAL_VALUES.items():
        if name in given and not any(_is_same(given[name], value) for value in neutral_values):
            raise BadRequest(
                f"'{name}' with this value is not supported by this server.",
                name,
                ErrorCode.UNSUPPORTED_PARAMETER,
            )


def ignored_names(names: Iterable[str]) -> str:
    """The unknown ones of these names, as the value of a header: safe and bounded."""
    known = OBEYED | WITHOUT_EFFECT | NEUTRAL_VALUES.keys()
    unknown = [name for name in names if name not in known][:_MAX_NAMES]
    return ", ".join(_UNSAFE_IN_HEADER.sub("?", name[:_MAX_NAME_CHARACTERS]) for name in unknown)


def _is_same(value: Any, neutral: Any) -> bool:
    """Equal, where `true` is not 1 and `false` is not 0."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
