"""Every message that crosses a process boundary, in the order of the pipeline.

Commands are imperative, events are past tense. A field of type `bytes` travels as a raw frame.
Rooms are named `frontend-0`, `tokenizer-0`, `detokenizer-0`, `worker-0` and `launcher-0`; an
`epoch` counts the lives of one room, so that nothing of a dead life is taken for the living.
"""

from dataclasses import dataclass

from shared import parts
from shared.errors import ErrorCode
from shared.sampling import SamplingParams

# ── control: launcher <-> rooms ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class RoomStarted:
    """room -> launcher: its inbox is bound; messages will be kept for it."""

    room: str
    epoch: int


@dataclass(frozen=True)
class StageReached:
    """room -> launcher: what its start does now, in words for people."""

    room: str
    epoch: int
    stage: str


@dataclass(frozen=True)
class RoomReady:
    """room -> launcher: it can do its work, with what it learnt while loading."""

    room: str
    epoch: int
    model: parts.ModelFacts | None  # from a worker


@dataclass(frozen=True)
class RoomGetsOn:
    """room -> launcher: about once a second, if it has got on with its work or has none."""

    room: str
    epoch: int


@dataclass(frozen=True)
class AddressBook:
    """launcher -> every room: who lives where; sent whole whenever it changes."""

    peers: tuple[parts.Peer, ...]
    is_warm: bool  # an answer has come through just these rooms, so callers may be let in
    is_draining: bool = False  # frontends let nobody in, and say when the last has been answered


@dataclass(frozen=True)
class PipelineWarm:
    """frontend -> launcher: an answer has come through these lives of the rooms."""

    epochs: dict[str, int]  # by room


@dataclass(frozen=True)
class Drained:
    """frontend -> launcher: in a drain, nobody waits for an answer any more."""

    room: str
    epoch: int


@dataclass(frozen=True)
class Stop:
    """launcher -> room: end now; open requests fail with this code and sentence."""

    code: ErrorCode
    reason: str


@dataclass(frozen=True)
class SwitchProfiling:
    """launcher -> worker: record steps from now on, or, if you do, end that and report."""


# ── frontend <-> frontend ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PlacesFreed:
    """frontend -> frontend: it is the turn of your queue's first, for whom there may be places."""


@dataclass(frozen=True)
class RequestsSuspected:
    """frontend -> frontend: these were under way in a process that died; see `quarantine.py`."""

    room: str
    epoch: int
    digests: tuple[str, ...]  # in hexadecimal


# ── 1. frontend -> tokenizer ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class CreditGranted:
    """tokenizer -> frontend: room for `count` more `Tokenize`; nothing is sent without credit."""

    room: str
    epoch: int
    count: int


@dataclass(frozen=True)
class Tokenize:
    """frontend -> tokenizer: one validated request for answers to one prompt."""

    request_id: str
    route: parts.Route
    worker_id: int
    prompt: parts.Prompt
    max_tokens: int | None  # None: whatever the context leaves; 0: only the prompt is scored
    max_tokens_param: str  # the field that it came from, for errors
    is_strict: bool  # `max_tokens` beyond the context is an error, else it is clamped
    echo: bool  # the caller wants the prompt's text back
    text: parts.TextOptions
    sampling: SamplingParams
    max_prompt_scores: int  # numbers: the prompt's tokens times the logprobs of each
    num_choices: int  # answers to the one prompt
    cache_salt: str  # only prompts with the same salt share cached keys and values


@dataclass(frozen=True)
class Embed:
    """frontend -> tokenizer: a vector of each of these texts is wanted, all in one answer."""

    request_id: str
    route: parts.Route
    worker_id: int
    inputs: tuple[parts.Prompt, ...]
    dimensions: int | None  # the first numbers of each vector; None: all
    cache_salt: str  # see `Tokenize`


@dataclass(frozen=True)
class Transcribe:
    """frontend -> tokenizer: a sound file is to be put into words."""

    request_id: str
    route: parts.Route
    worker_id: int
    options: parts.TranscriptOptions
    sampling: SamplingParams
    audio: bytes  # the file


@dataclass(frozen=True)
class WindowTaken:
    """frontend -> tokenizer: one of the sound's windows is in words: one more may be sent."""

    request_id: str
    token_ids: tuple[int, ...]  # of its answer, marks of time included; () where nobody speaks
    temperature: float  # of the last attempt at it


@dataclass(frozen=True)
class Encode:
    """frontend -> tokenizer: only the ids of a prompt are wanted."""

    request_id: str
    frontend_id: int
    prompt: parts.Prompt
    wants_strings: bool  # each token as text, too


@dataclass(frozen=True)
class Decode:
    """frontend -> tokenizer: the text of these ids is wanted."""

    request_id: str
    frontend_id: int
    token_ids: tuple[int, ...]


# ── 2. tokenizer -> frontend, worker ─────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PromptAccepted:
    """tokenizer -> frontend: the prompt fits; its `Generate` or `Pool` is on the way."""

    request_id: str
    prompt_tokens: int  # of all inputs together
    prompt_text: str | None  # where `echo` was asked for


@dataclass(frozen=True)
class WindowRead:
    """tokenizer -> frontend: a part of the sound is on its way to the worker.

    There, its request's name is `window_name` of the sound's and its number.
    """

    request_id: str
    number: int  # from 0
    start_seconds: float  # in the sound
    seconds: float  # how long it is, without what fills it up
    first_time_id: int  # the model's tokens from here on mark times in the window
    mark_seconds: float  # from one of them to the next


@dataclass(frozen=True)
class SoundRead:
    """tokenizer -> frontend: no further window of the sound will come."""

    request_id: str


@dataclass(frozen=True)
class Encoded:
    """tokenizer -> frontend: the answer to `Encode`, and the request's end."""

    request_id: str
    token_ids: tuple[int, ...]
    strings: tuple[str, ...] | None  # where they were wanted


@dataclass(frozen=True)
class Decoded:
    """tokenizer -> frontend: the answer to `Decode`, and the request's end."""

    request_id: str
    text: str


@dataclass(frozen=True)
class Generate:
    """tokenizer -> worker: token ids in, and how to go on from them."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int  # within the context; 0: the prompt is scored, a token sampled and not shown
    sampling: SamplingParams  # of the first choice; each further one adds 1 to the seed
    num_choices: int
    cache_salt: str
    text: parts.TextStart


@dataclass(frozen=True)
class Pool:
    """tokenizer -> worker: token ids in, a vector of each input out."""

    request_id: str
    route: parts.Route
    inputs: tuple[tuple[int, ...], ...]
    dimensions: int
    cache_salt: str


@dataclass(frozen=True)
class Listen:
    """tokenizer -> worker: a window of sound in, and with what its words begin."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    temperatures: tuple[float, ...]  # the first, and those of further attempts where one fails
    num_aligned: int  # encoder's positions of the sound itself; 0: no times of words are wanted
    text: parts.TextStart
    features: bytes  # a log-mel spectrogram: float32, little-endian, [bins, frames]


@dataclass(frozen=True)
class Abort:
    """any room -> worker, and frontend -> tokenizer: nobody wants the rest."""

    request_id: str
    choice: int | None = None  # one answer alone; None: all of them


@dataclass(frozen=True)
class ConfirmHeld:
    """frontend -> worker: their tokenizer has died; what never came to the worker is lost."""

    frontend_id: int
    detokenizer_id: int | None  # through which the loss is told; None: the worker tells it
    request_ids: tuple[str, ...]


# ── 3. worker -> detokenizer, frontend ──────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TokensSampled:
    """worker -> detokenizer: what a step has for it; the columns are parallel, one row a token.

    Most sequences have one in a step. One whose answer may be begun anew has all of them with its
    end.
    """

    worker_id: int
    epoch: int
    step: int  # counted for each detokenizer by itself
    started: tuple[parts.RequestStarted, ...]  # requests whose first token is in this step
    request_ids: tuple[str, ...]
    choices: tuple[int, ...]  # which answer of its request
    seqs: tuple[int, ...]  # 0-based number of this token in its answer; gaps fail the request
    token_ids: tuple[int, ...]
    logprobs: tuple[parts.TokenLogprobs | None, ...]  # () when no row wants them
    ended: tuple[parts.SequenceEnded, ...]
    lost: tuple[parts.RequestLost, ...] = ()
    alignments: bytes = b""  # of the ended, in their order: float32, little-endian


@dataclass(frozen=True)
class Pooled:
    """worker -> frontend: the answer to `Embed`, and the request's end."""

    request_id: str
    worker_id: int
    epoch: int
    vectors: bytes  # of all inputs, in their order: float32, little-endian, each of length 1


@dataclass(frozen=True)
class StepsAcknowledged:
    """detokenizer -> worker: every step up to this one is turned into text."""

    detokenizer_id: int
    epoch: int  # of the worker whose steps are counted
    step: int


# ── 4. detokenizer -> frontend ───────────────────────────────────────────────────────────────────


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
    scored: tuple[
        tuple[parts.ScoredToken, ...], ...
    ]  # the tokens of each text; () when no row has any
    prompts: tuple[parts.PromptScored, ...]  # of requests whose first text is here
    ended: tuple[parts.TextEnded, ...]
    thoughts: tuple[str, ...] = ()  # beside each text, and before it; () when no row has any


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
    num_prompt_tokens: int  # computed so far, of prompts and of what preemption took back
    num_generated_tokens: int  # tokens that became part of answers so far
    num_mixed_steps: int  # steps so far that held both prefill and decode
    part_seconds: dict[str, float]  # of all steps so far, by what the worker did: `plan`, …


Message = (
    RoomStarted | StageReached | RoomReady | RoomGetsOn | AddressBook | Stop | SwitchProfiling
    | PipelineWarm | Drained | PlacesFreed | RequestsSuspected | CreditGranted | Tokenize
    | Embed | Transcribe | WindowTaken | Encode | Decode | PromptAccepted | WindowRead | SoundRead
    | Encoded | Decoded | Generate | Pool | Listen | Abort | ConfirmHeld | TokensSampled | Pooled
    | StepsAcknowledged | TextProduced | RequestFailed | WorkerReported
)  # fmt: skip
