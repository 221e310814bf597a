"""The fields of a chat request that say how the model thinks, and where its thoughts go. Pure."""

from typing import Any

from frontend.schemas import ChatRequest

# By the choices of `--reasoning-field`; None: thoughts stay in the content, as they were written.
_KEYS: dict[str, tuple[str, ...] | None] = {
    "both": ("reasoning_content", "reasoning"),
    "reasoning_content": ("reasoning_content",),
    "reasoning": ("reasoning",),
    "none": None,
}


def template_kwargs(request: ChatRequest) -> dict[str, Any]:
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
