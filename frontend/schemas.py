"""The shapes of requests, as OpenAI and common servers define them; only what is obeyed.

Null top-level fields are dropped before these shapes are applied, so absent and null are one.
Where the default is None, what it becomes is said in `translate.py`.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from shared.sampling import (
    MAX_BIAS,
    MAX_BIASED_TOKENS,
    MAX_LOGPROBS,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_STOP_TOKENS,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
)

MAX_MESSAGES = 1024
MAX_PARTS = 1024  # of a message; templates take their time with many small things
MAX_TOOL_CALLS = 128  # of a message
MAX_TOOLS = 128
MAX_PROMPTS = 1024  # of one completion request
MAX_INPUTS = 2048  # of one embedding request (OpenAI)
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_SALT_CHARACTERS = 256
MIN_TEMPERATURE_STEP = 0.05  # of a sound's tries, of which there are 21 then; or 0
_INT64 = 2**63
_INT31 = 2**31 - 1

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Scalar = bool | int | float | str | None
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Penalty = Annotated[float, Meta(ge=-MAX_PENALTY, le=MAX_PENALTY)]
Bias = Annotated[float, Meta(ge=-MAX_BIAS, le=MAX_BIAS)]
TokenId = Annotated[int, Meta(ge=0, le=_INT31)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]  # of one prompt
ID_PATTERN = "0|[1-9][0-9]{0,9}"  # one spelling for each, so that none comes twice
Biases = Annotated[
    dict[str, Bias],
    Meta(
        max_length=MAX_BIASED_TOKENS,
        extra_json_schema={"propertyNames": {"pattern": f"^({ID_PATTERN})$"}},
    ),
]
Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Truncation = Annotated[int, Meta(ge=-1, le=_INT31, extra_json_schema={"not": {"const": 0}})]


def _one_or_several(most: int) -> Any:
    return {
        "anyOf": [
            {"items": {"type": "integer"}},
            {"items": {"type": ["string", "array"]}, "maxItems": most},
        ]
    }


# A list is of strings, of the token ids of one prompt, or of several prompts' token ids.
Prompts = Annotated[
    list[str | TokenId | TokenIds],
    Meta(min_length=1, extra_json_schema=_one_or_several(MAX_PROMPTS)),
]
NotEmpty = Annotated[str, Meta(min_length=1)]
Inputs = Annotated[
    list[NotEmpty | TokenId | TokenIds],
    Meta(min_length=1, extra_json_schema=_one_or_several(MAX_INPUTS)),
]
TemperatureStep = Annotated[
    float,
    Meta(
        ge=0,
        le=1,
        extra_json_schema={"anyOf": [{"const": 0}, {"minimum": MIN_TEMPERATURE_STEP}]},
    ),
]
Null = Annotated[
    Any, Meta(extra_json_schema={"type": "null"})
]  # refused with a sentence of its own
NumLogprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]


class ContentPart(Struct, frozen=True):
    """One part of a message's content; kinds other than `text` and `refusal` are refused."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text", "refusal"]})]
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Struct, frozen=True):
    """What the model called: `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True):
    """One call in a replayed assistant message."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"


class ChatMessage(Struct, frozen=True):
    """One message of the conversation."""

    role: Role
    content: str | Annotated[list[ContentPart], Meta(max_length=MAX_PARTS)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOL_CALLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    function_call: Null = None
    audio: Null = None


Messages = Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]


class StreamOptions(Struct, frozen=True):
    """How a stream is framed."""

    include_usage: bool | None = None
    continuous_usage_stats: Annotated[
        bool | None, Meta(extra_json_schema={"enum": [False, None]})
    ] = None


class SamplingFields(Struct, frozen=True, kw_only=True):
    """What chat and completions have in common: how answers are made and framed."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=MAX_TEMPERATURE)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: (
        Annotated[float, Meta(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)] | None
    ) = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: Biases = {}
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    ignore_eos: bool = False
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKENS)] = []
    seed: Annotated[int, Meta(ge=-_INT64, le=_INT64 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    n: Annotated[int, Meta(ge=1)] = 1
    cache_salt: Annotated[str, Meta(min_length=1, max_length=MAX_SALT_CHARACTERS)] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool = False
    no_stop_trim: bool = False  # SGLang's name for the same
    truncate_prompt_tokens: Truncation | None = None
    truncate: Truncation | None = None  # the predecessor's name
    add_special_tokens: bool | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Messages
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: NumLogprobs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Scalar] | None = None
    reasoning_effort: Effort | None = None
    separate_reasoning: bool = True
    include_reasoning: bool = True
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] = []
    tool_choice: Annotated[Any, Meta(extra_json_schema={"enum": ["none", "auto"]})] = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | Prompts
    suffix: str | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=0)] | None = None
    logprobs: NumLogprobs | None = None
    echo: bool = False
    best_of: Annotated[int, Meta(ge=1)] | None = None


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    """The body of POST /v1/embeddings."""

    input: NotEmpty | Inputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    truncate_prompt_tokens: Truncation | None = None
    add_special_tokens: bool | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=MAX_SALT_CHARACTERS)] | None = None


class ServerVad(Struct, frozen=True, forbid_unknown_fields=True):
    """OpenAI's name for cutting a sound where it is quiet; its parameters are refused."""

    type: Literal["server_vad"]


class SoundRequest(Struct, frozen=True, kw_only=True):
    """The form of POST /v1/audio/transcriptions and translations, but for `file`."""

    model: str | None = None
    language: str | None = None
    prompt: str = ""
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: Annotated[float, Meta(ge=0, le=MAX_TEMPERATURE)] = 0.0
    temperature_inc: TemperatureStep | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1)] = 0
    repetition_penalty: Annotated[
        float, Meta(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)
    ] = 1.0
    seed: Annotated[int, Meta(ge=-_INT64, le=_INT64 - 1)] | None = None
    stream: bool = False
    timestamp_granularities: list[Literal["segment", "word"]] = []
    include: list[Literal["logprobs"]] = []
    chunking_strategy: Literal["auto", "sequential"] | ServerVad | None = None


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """The body of POST /tokenize; exactly one of the first three."""

    prompt: str | None = None
    content: str | None = None  # llama.cpp's name for the same
    messages: Messages | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Scalar] | None = None
    reasoning_effort: Effort | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] = []
    tool_choice: Annotated[Any, Meta(extra_json_schema={"enum": ["none", "auto"]})] = None
    return_token_strs: bool = False


CHAT_OPTIONS = (  # of a TokenizeRequest: what only a conversation can have
    "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "reasoning_effort",
    "tools", "tool_choice",
)  # fmt: skip


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    """The body of POST /detokenize."""

    tokens: list[TokenId]
    model: str | None = None
