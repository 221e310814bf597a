"""Random requests that use every field which the API obeys, for hypothesis."""

from typing import Any

from hypothesis import strategies as st

MAX_TOKENS = 24
NUM_TOKENS = 640  # of the demo model's vocabulary
HELLO = [{"role": "user", "content": "hello"}]
ANSWERED = [*HELLO, {"role": "assistant", "content": "Well"}]

# A name that no list knows, and how the X-Ignored-Fields header may show it.
UNKNOWN_NAMES = {"foo": "foo", "x-y.z": "x-y.z", "über": "?ber", "a b": "a?b", "x" * 70: "x" * 64}

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TOKEN_ID = st.integers(0, NUM_TOKENS - 1)
TEXT = st.text("abce it\nß\U0001f600", min_size=1, max_size=12)
STOP = st.sampled_from(["a", "e", "in", "\n", "th", "ing", "!", "zq"])
PENALTY = st.floats(-2, 2)

OF_ANY_ANSWER: dict[str, st.SearchStrategy[Any]] = {
    "model": st.just("demo"),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0.5, 2),
    "frequency_penalty": PENALTY,
    "presence_penalty": PENALTY,
    "logit_bias": st.dictionaries(TOKEN_ID.map(str), st.floats(-100, 100), max_size=3),
    "min_tokens": st.integers(0, 6),
    "ignore_eos": st.booleans(),
    "stop_token_ids": st.lists(TOKEN_ID, max_size=40),
    "stop": STOP | st.lists(STOP, max_size=4),
    "n": st.sampled_from([2, 3, 1]),
    "cache_salt": st.sampled_from(["mine", "yours"]),
    "skip_special_tokens": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "no_stop_trim": st.booleans(),
    "truncate_prompt_tokens": st.sampled_from([-1, 1, 5, 100]),
    "truncate": st.sampled_from([-1, 1, 5, 100]),
    "add_special_tokens": st.booleans(),
}
LENGTHS = {
    "max_tokens": st.integers(1, MAX_TOKENS),
    "max_completion_tokens": st.integers(1, MAX_TOKENS),
}
OF_CHAT = {
    **OF_ANY_ANSWER,
    "chat_template_kwargs": st.fixed_dictionaries({"enable_thinking": st.booleans()}),
    "add_generation_prompt": st.booleans(),
    "continue_final_message": st.booleans(),
    "reasoning_effort": st.sampled_from(["none", "low", "high"]),
    "separate_reasoning": st.booleans(),
    "include_reasoning": st.booleans(),
    "tools": st.sampled_from([[], [TOOL]]),
    "tool_choice": st.just("none"),
}
OF_COMPLETION = {**OF_ANY_ANSWER, "echo": st.booleans(), "best_of": st.sampled_from([2, 1])}
PROMPTS: st.SearchStrategy[Any] = (
    TEXT
    | st.lists(TEXT, min_size=1, max_size=2)
    | st.lists(TOKEN_ID, min_size=1, max_size=8)
    | st.lists(st.lists(TOKEN_ID, min_size=1, max_size=8), min_size=1, max_size=2)
)
# Set by the test itself: both ways are compared.
FRAMING = {"stream", "stream_options"}


@st.composite
def chats(draw: st.DrawFn, *, has_logprobs: bool) -> dict[str, Any]:
    """The body of a chat request, its framing left open."""
    body: dict[str, Any] = {
        "messages": HELLO,
        "seed": 1,
        **draw(st.fixed_dictionaries({}, optional=OF_CHAT)),
    }
    body |= _length(draw, least=1)
    if body.get("continue_final_message"):
        body |= {"messages": ANSWERED, "add_generation_prompt": False}
    if has_logprobs and draw(st.booleans()):
        body["logprobs"] = True
        body |= draw(st.fixed_dictionaries({}, optional={"top_logprobs": st.integers(0, 20)}))
    return body | _unknown(draw)


@st.composite
def completions(draw: st.DrawFn, *, has_logprobs: bool) -> dict[str, Any]:
    """The body of a completion request, its framing left open."""
    body = {
        "prompt": draw(PROMPTS),
        "seed": 1,
        **draw(st.fixed_dictionaries({}, optional=OF_COMPLETION)),
    }
    body |= _length(draw, least=0 if body.get("echo") and has_logprobs else 1)
    if "best_of" in body:
        body["n"] = body["best_of"]
    if isinstance(body["prompt"], str) and not body.get("echo") and draw(st.booleans()):
        body["suffix"] = ""  # the demo model cannot fill in the middle
    if has_logprobs and draw(st.booleans()):
        body["logprobs"] = draw(st.integers(0, 20))
    return body | _unknown(draw)


def _length(draw: st.DrawFn, *, least: int) -> dict[str, int]:
    """One of the two lengths; under `min_tokens` it is a 400, which must be the same both ways."""
    name = draw(st.sampled_from(sorted(LENGTHS)))
    length = draw(LENGTHS[name])
    return {name: least if least == 0 and draw(st.booleans()) else length}


def _unknown(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(UNKNOWN_NAMES)), unique=True, max_size=2))
    return dict.fromkeys(names, 1)
