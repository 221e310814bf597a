"""The fields of a chat request that say how the model thinks, and where its thoughts go. Pure."""

from collections.abc import Mapping
from typing import Any

from frontend.schemas import ChatRequest, TokenizeRequest
from shared.errors import BadRequest

# By the choices of `--reasoning-field`; None: thoughts stay in the content, as they were written.
_KEYS: dict[str, tuple[str, ...] | None] = {
    "both": ("reasoning_content", "reasoning"),
    "reasoning_content": ("reasoning_content",),
    "reasoning": ("reasoning",),
    "none": None,
}
# What templates are told of by fields of their own; the tokenizer knows the rest of such names.
_RESERVED_NAMES = frozenset({
    "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message",
})  # fmt: skip


def refuse_reserved_names(given: Mapping[str, Any]) -> None:
    """Raises BadRequest for a variable of the template that the body may not set, of any type."""
    variables = given.get("chat_template_kwargs")
    for name in variables if isinstance(variables, dict) else ():
        if name in _RESERVED_NAMES:
            sentence = f"'{name}' is a reserved name: 'chat_template_kwargs' may not set it."
            raise BadRequest(sentence, f"chat_template_kwargs.{name}")


def template_kwargs(request: ChatRequest | TokenizeRequest) -> dict[str, Any]:
    """What the chat template is told; the caller's own words for it win over the effort."""
    told: dict[str, Any] = {}
    if request.reasoning_effort is not None:
        told["reasoning_effort"] = request.reasoning_effort
    if request.reasoning_effort == "none":
        told["enable_thinking"] = False
    return told | (request.chat_template_kwargs or {})


def reasoning_keys(request: ChatRequest, reasoning_field: str) -> tuple[str, ...] | None:
    """The names of the thoughts in messages; (): left out; None: they are not told apart."""
    if not request.include_reasoning:
        return ()
    return _KEYS[reasoning_field] if request.separate_reasoning else None
