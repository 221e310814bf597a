"""The shapes of what is answered, for `/openapi.json` alone: what is sent is built elsewhere.

The tests hold real answers against them, with no field more and none less. A field that is UNSET
here is one that some answers lack.
"""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

FinishReason = Literal["stop", "length"]
StopReason = str | int | None  # the caller's stop string or token that ended the answer


class ErrorDetail(Struct):
    """What went wrong."""

    message: str
    type: str
    param: str | None  # the path of the field
    code: str | None


class ErrorBody(Struct):
    """The body of every error, on every route."""

    error: ErrorDetail


class PromptTokensDetails(Struct):
    """Of the prompt's tokens, those that did not have to be computed."""

    cached_tokens: int


class CompletionTokensDetails(Struct):
    """Of the answers' tokens, those of thoughts."""

    reasoning_tokens: int


class Usage(Struct):
    """What the answers cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class Envelope(Struct, kw_only=True):
    """What every body and chunk has."""

    id: str
    created: int  # Unix seconds
    model: str
    system_fingerprint: str


# ── chat ─────────────────────────────────────────────────────────────────────────────────────────


class TopLogprob(Struct):
    """How likely one token is."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer, and its likeliest alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Every token that the model wrote."""

    content: list[TokenLogprob]
    refusal: None


class AnswerMessage(Struct, kw_only=True):
    """The model's message; its thoughts under the names that the server is told to use."""

    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET


class ChatChoice(Struct):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: StopReason


class ChatCompletion(Envelope, kw_only=True):
    """The answers to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class Delta(Struct, kw_only=True):
    """A further part of the model's message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET


class ChatChunkChoice(Struct, kw_only=True):
    """A part of one answer, or its end."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: StopReason | UnsetType = UNSET


class ChatCompletionChunk(Envelope, kw_only=True):
    """One event of a streamed chat; the last one, without choices, has the usage if asked for."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET


# ── completions ──────────────────────────────────────────────────────────────────────────────────


class CompletionLogprobs(Struct):
    """Parallel lists, an element for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]  # in characters of the choice's text


class CompletionChoice(Struct):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: StopReason


class Completion(Envelope, kw_only=True):
    """The continuations of one text, or of several."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(Struct, kw_only=True):
    """A part of one continuation, or its end."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: StopReason | UnsetType = UNSET


class CompletionChunk(Envelope, kw_only=True):
    """One event of a streamed completion; the last, without choices, has the usage if asked for."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: Usage | UnsetType | None = UNSET


# ── embeddings ───────────────────────────────────────────────────────────────────────────────────


class EmbeddingVector(Struct):
    """The vector of one input, of length 1; in base64 as float32, little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Struct):
    """What the vectors cost."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct):
    """The vectors of all inputs, in their order."""

    object: Literal["list"]
    data: list[EmbeddingVector]
    model: str
    usage: EmbeddingUsage


# ── sound ────────────────────────────────────────────────────────────────────────────────────────


class SegmentBody(Struct):
    """A part of a transcript; `start` and `end` in seconds."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class DurationUsage(Struct):
    """How much sound was put into words."""

    type: Literal["duration"]
    seconds: int


class SpokenLogprob(Struct):
    """How likely a token of the transcript was."""

    token: str
    logprob: float
    bytes: list[int]


class TranscriptBody(Struct, kw_only=True):
    """A transcript; all but `text` and `usage` with `verbose_json` alone, or where asked for."""

    text: str
    usage: DurationUsage
    task: Literal["transcribe", "translate"] | UnsetType = UNSET
    language: str | UnsetType = UNSET
    duration: float | UnsetType = UNSET
    segments: list[SegmentBody] | UnsetType = UNSET
    logprobs: list[SpokenLogprob] | UnsetType = UNSET


# ── the tokenizer, and models ────────────────────────────────────────────────────────────────────


class Tokens(Struct, kw_only=True):
    """The ids of a text or a conversation."""

    tokens: list[int]
    count: int
    max_model_len: int | None
    token_strs: list[str] | UnsetType = UNSET


class Text(Struct):
    """The text of ids, under each of its names."""

    prompt: str
    text: str
    content: str


class ModelCard(Struct):
    """A served model; its lengths are unknown until it is loaded."""

    id: str
    object: Literal["model"]
    created: int  # Unix seconds
    owned_by: str
    max_model_len: int | None  # tokens of prompt and answer; with an encoder, of the answer
    max_prompt_len: int | None


class ModelList(Struct):
    """Every served model."""

    object: Literal["list"]
    data: list[ModelCard]
