"""Every message that crosses a process boundary, in the order of the pipeline.

Commands are imperative, events are past tense. A field of type `bytes` travels as a raw frame.
Rooms are named `frontend-0`, `tokenizer-0`, `detokenizer-0`, `worker-0` and `launcher-0`; an
`epoch` counts the lives of one room, so that nothing of a dead life is taken for the living.
"""

from dataclasses import dataclass
from typing import Any

from shared.errors import ErrorCode
from shared.sampling import SamplingParams

# ── control: launcher <-> rooms ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Peer:
    """One living room, as the launcher knows it (part of `AddressBook`)."""

    room: str
    epoch: int
    address: str  # ipc:// endpoint of its inbox
    is_ready: bool
    max_model_len: int  # tokens of prompt and answer; 0 for rooms other than a ready worker


@dataclass(frozen=True)
class RoomStarted:
    """room -> launcher: its inbox is bound; messages will be kept for it."""

    room: str
    epoch: int


@dataclass(frozen=True)
class RoomReady:
    """room -> launcher: it can do its work, with what it learnt while loading."""

    room: str
    epoch: int
    max_model_len: int


@dataclass(frozen=True)
class AddressBook:
    """launcher -> every room: who lives where; sent whole whenever it changes."""

    peers: tuple[Peer, ...]


@dataclass(frozen=True)
class Stop:
    """launcher -> room: end now; open requests fail with this code and sentence."""

    code: ErrorCode
    reason: str


# ── 1. frontend -> tokenizer ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class CreditGranted:
    """tokenizer -> frontend: room for `count` more `Tokenize`; nothing is sent without credit."""

    room: str
    epoch: int
    count: int


@dataclass(frozen=True)
class Tokenize:
    """frontend -> tokenizer: one validated chat request."""

    request_id: str
    frontend_id: int
    worker_id: int
    messages: tuple[dict[str, Any], ...]
    template_kwargs: dict[str, Any]
    max_tokens: int | None  # None: whatever the context leaves
    stop: tuple[str, ...]
    sampling: SamplingParams
    num_choices: int  # answers to the one prompt
    cache_salt: str  # only prompts with the same salt share cached keys and values


# ── 2. tokenizer -> frontend, worker ─────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PromptAccepted:
    """tokenizer -> frontend: the prompt fits; its `Generate` is on the way."""

    request_id: str
    prompt_tokens: int


@dataclass(frozen=True)
class TextStart:
    """What the detokenizer must know before a request's first token; opaque to the worker."""

    request_id: str
    frontend_id: int
    prompt_tail: tuple[int, ...]  # last prompt tokens: the context of the first piece of text
    stop: tuple[str, ...]
    min_tokens: int = 0  # no stop string is looked for in the text of as many


@dataclass(frozen=True)
class Generate:
    """tokenizer -> worker: token ids in, and how to go on from them."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int  # >= 1 and within the context
    sampling: SamplingParams  # of the first choice; each further one adds 1 to the seed
    num_choices: int
    cache_salt: str
    text: TextStart


@dataclass(frozen=True)
class Abort:
    """frontend, detokenizer -> worker, and frontend -> tokenizer: nobody wants the rest."""

    request_id: str
    choice: int | None = None  # one answer alone; None: all of them


# ── 3. worker -> detokenizer ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class RequestStarted:
    """A request's first appearance in a step (part of `TokensSampled`)."""

    text: TextStart
    num_choices: int
    cached_tokens: int  # tokens of the prompt whose keys and values were there already


@dataclass(frozen=True)
class SequenceEnded:
    """One sequence that ended in a step (part of `TokensSampled`)."""

    request_id: str
    choice: int
    finish_reason: str  # "stop", "length", "abort" or "error"
    hides_last_token: bool  # the last token is an end token: counted, not shown


@dataclass(frozen=True)
class TokensSampled:
    """worker -> detokenizer: one per step; the columns below are parallel, one row a sequence."""

    worker_id: int
    epoch: int
    step: int
    started: tuple[RequestStarted, ...]  # requests whose first token is in this step
    request_ids: tuple[str, ...]
    choices: tuple[int, ...]  # which answer of its request
    seqs: tuple[int, ...]  # 0-based number of this token in its answer; gaps fail the request
    token_ids: tuple[int, ...]
    ended: tuple[SequenceEnded, ...]


@dataclass(frozen=True)
class StepsAcknowledged:
    """detokenizer -> worker: every step up to this one is turned into text."""

    epoch: int  # of the worker whose steps are counted
    step: int


# ── 4. detokenizer -> frontend ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TextEnded:
    """One answer that ended (part of `TextProduced`)."""

    request_id: str
    choice: int
    finish_reason: str  # "stop" or "length"
    cached_tokens: int  # of the request's prompt


@dataclass(frozen=True)
class TextProduced:
    """detokenizer -> frontend: one per step; the columns are parallel, one row an answer."""

    worker_id: int
    epoch: int  # of the worker that sampled the tokens
    request_ids: tuple[str, ...]
    choices: tuple[int, ...]
    seqs: tuple[int, ...]  # 0-based number of this event of its answer
    texts: tuple[str, ...]  # may be empty while text is held back
    completion_tokens: tuple[int, ...]  # tokens so far
    ended: tuple[TextEnded, ...]


@dataclass(frozen=True)
class RequestFailed:
    """any room -> frontend: the request ends here, and what its caller is told."""

    request_id: str
    code: ErrorCode
    message: str
    param: str | None


@dataclass(frozen=True)
class WorkerReported:
    """worker -> frontend: its load; at most four times a second, and at least once when idle."""

    worker_id: int
    epoch: int
    step: int  # steps finished so far: a stalled worker shows the same number
    num_running: int
    num_waiting: int
    num_blocks: int
    num_used_blocks: int
    num_preemptions: int  # so far
    num_queried_tokens: int  # prompt tokens looked up in the prefix cache so far
    num_cached_tokens: int  # of those, found there
    num_prompt_tokens: int  # prompt tokens computed so far
    num_generated_tokens: int  # tokens sampled so far
    num_mixed_steps: int  # steps so far that held both prefill and decode


Message = (
    RoomStarted | RoomReady | AddressBook | Stop
    | CreditGranted | Tokenize
    | PromptAccepted | Generate | Abort
    | TokensSampled | StepsAcknowledged
    | TextProduced | RequestFailed | WorkerReported
)  # fmt: skip
