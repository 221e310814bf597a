"""What messages are made of, in the order of the pipeline; see `messages.py`."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EmbeddingFacts:
    """Which vectors a model makes of texts (part of `ModelFacts`)."""

    size: int  # numbers of a vector; 0: none are made
    refusal: str = ""  # then, why: a sentence for callers


@dataclass(frozen=True)
class ModelFacts:
    """What a worker learnt of its model (part of `RoomReady` and `Peer`)."""

    max_model_len: int  # tokens of prompt and answer; with an encoder, of the answer alone
    vocab_size: int  # ids that the model knows, which may be more or fewer than its tokenizer's
    sampling_defaults: dict[str, float]  # by field of `SamplingParams`, from generation_config.json
    details: dict[str, str]  # for people: type, precision, device, attention, cache
    max_encoder_len: int = 0  # tokens of the prompt, where an encoder reads it; 0: there is none
    embeddings: EmbeddingFacts = EmbeddingFacts(0, "This model makes no embeddings.")
    hears: bool = False  # it puts sound into words, and answers no text


@dataclass(frozen=True)
class Peer:
    """One living room, as the launcher knows it (part of `AddressBook`)."""

    room: str
    epoch: int
    address: str  # ipc:// endpoint of its inbox
    is_ready: bool
    model: ModelFacts | None  # of a ready worker
    stage: str = ""  # what its start does now, in words for people


@dataclass(frozen=True)
class Route:
    """The lives that an answer goes through (part of `Tokenize`, `TextStart`, `Embed`, `Pool`).

    When one of them is over, nobody waits for it.
    """

    frontend_id: int
    frontend_epoch: int
    detokenizer_epoch: int | None  # None: the answer is no text
    detokenizer_id: int = 0


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation, for the chat template (part of `Prompt`)."""

    messages: tuple[dict[str, Any], ...]
    template_kwargs: dict[str, Any]
    add_generation_prompt: bool = True
    continue_final_message: bool = False  # the answer goes on where the last message ends
    add_special_tokens: bool = False  # the tokenizer's own, beside those that the template writes


@dataclass(frozen=True)
class TextPrompt:
    """A text as it is; control tokens in it count (part of `Prompt`)."""

    text: str
    suffix: str | None = None  # fill in the middle: what comes after the answer
    add_special_tokens: bool = True


@dataclass(frozen=True)
class Prompt:
    """What is to be encoded: exactly one of the first three (part of `Tokenize`, `Encode`)."""

    chat: ChatPrompt | None = None
    text: TextPrompt | None = None
    token_ids: tuple[int, ...] | None = None
    truncate_to: int | None = None  # keep as many of the last tokens; -1: as the context takes
    param: str = "messages"  # the field of the request that holds it, for errors


@dataclass(frozen=True)
class TextOptions:
    """How the detokenizer makes an answer's text (part of `Tokenize` and `TextStart`)."""

    stop: tuple[str, ...] = ()
    includes_stop: bool = False  # the stop string that ended the answer is a part of it
    skips_special_tokens: bool = True
    only_scores_prompt: bool = False  # the answer has no token: `max_tokens` was 0
    splits_thoughts: bool = False  # thoughts come apart from the answer, both without their marks


@dataclass(frozen=True)
class ThoughtMarks:
    """How the model marks its thoughts, and where the prompt left it (part of `TextStart`)."""

    template: dict[str, Any]  # the regions of an answer, as transformers' `response_template`
    prefix: str  # what of the answer the prompt holds already, such as `<think>`
    special_ids: tuple[int, ...]  # special tokens in marks: read even where they are not shown
    come_first: bool  # thoughts come before the answer or not at all


@dataclass(frozen=True)
class TextStart:
    """What the detokenizer must know before a request's first token; opaque to the worker."""

    request_id: str
    route: Route
    prompt_tail: tuple[int, ...]  # last prompt tokens: the context of the first piece of text
    options: TextOptions
    min_tokens: int = 0  # no stop string is looked for in the text of as many
    stop_token_ids: tuple[int, ...] = ()  # the caller's own: one that ends an answer is its reason
    scored_token_ids: tuple[int, ...] = ()  # the whole prompt, where its logprobs are wanted
    num_framing_tokens: int = 0  # its first, which the tokenizer put before a text: not shown
    hides_special_tokens: bool = True  # of the prompt; those that stand in a text are shown
    thoughts: ThoughtMarks | None = None  # None: all text is the answer


@dataclass(frozen=True)
class TranscriptOptions:
    """How a sound is to be put into words (part of `Transcribe`)."""

    task: str = "transcribe"  # or "translate"
    language: str | None = None  # a code such as "de"; None: it is found out
    prompt: str = ""  # text that might have come before
    marks_times: bool = True  # the model says when each segment begins and ends
    times_words: bool = False  # and its attention says when each of their words does
    is_sequential: bool = False  # a window begins at the last mark that the one before it closed
    temperatures: tuple[float, ...] = (0.0,)  # of one try after the other, until one is likely


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was, and which were likelier (part of `TokensSampled`).

    Natural logarithms of the softmax of the model's own logits, before any setting of the caller;
    never below `MIN_LOGPROB`.
    """

    logprob: float
    top_ids: tuple[int, ...]  # the best tokens, the best first
    top_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class RequestStarted:
    """A request's first appearance in a step (part of `TokensSampled`)."""

    text: TextStart
    num_choices: int
    cached_tokens: int  # tokens of the prompt whose keys and values were there already
    prompt_logprobs: tuple[TokenLogprobs, ...]  # of all prompt tokens but the first; () unasked


@dataclass(frozen=True)
class RequestLost:
    """A request that never reached the worker, or a step of whose answer was lost.

    (Part of `TokensSampled`.)
    """

    request_id: str
    frontend_id: int


@dataclass(frozen=True)
class Heard:
    """How a window of sound was understood (part of `SequenceEnded` and `TextEnded`)."""

    temperature: float  # at which its words were sampled
    avg_logprob: float  # of its tokens, the end token included (Whisper's reference)
    compression_ratio: float  # of its text: high where it repeats itself
    no_speech_prob: float  # how likely it is that nobody speaks
    last_temperature: float  # of the last attempt, which may be another where none was good
    # At which of the encoder's positions each token was over, those that say what the answer is
    # left out; () where nobody asked, or nobody speaks.
    token_times: tuple[float, ...] = ()


@dataclass(frozen=True)
class SequenceEnded:
    """One sequence that ended in a step (part of `TokensSampled`)."""

    request_id: str
    choice: int
    finish_reason: str  # "stop", "length", "abort" or "error"
    hides_last_token: bool  # the last token is an end token: counted, not shown
    heard: Heard | None = None  # of a window of sound
    alignment_shape: tuple[int, int] = (0, 0)  # [tokens, positions], of its part of `alignments`


@dataclass(frozen=True)
class TopToken:
    """A token that was likely (part of `ScoredToken`)."""

    text: str
    octets: tuple[int, ...]  # its own bytes, also of half a character
    logprob: float


@dataclass(frozen=True)
class ScoredToken:
    """A token of an answer or prompt, its text and how likely it was (part of `TextProduced`).

    The texts of an answer's tokens joined are its text: a token that ends within a character has
    none, the one that completes it has all of it.
    """

    text: str
    octets: tuple[int, ...]
    logprob: float | None  # None: a prompt's first token
    top: tuple[TopToken, ...]
    token_id: int = -1


@dataclass(frozen=True)
class PromptScored:
    """The prompt's tokens, where their logprobs were asked for (part of `TextProduced`)."""

    request_id: str
    tokens: tuple[ScoredToken, ...]


@dataclass(frozen=True)
class TextEnded:
    """One answer that ended (part of `TextProduced`)."""

    request_id: str
    choice: int
    finish_reason: str  # "stop" or "length"
    stop_reason: str | int | None  # the caller's stop string or token that ended it
    cached_tokens: int  # of the request's prompt
    reasoning_tokens: int = 0  # of the answer's tokens, those of its thoughts and their marks
    heard: Heard | None = None  # of a window of sound
