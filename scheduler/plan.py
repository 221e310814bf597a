"""StepPlan and StepResult: the whole contract between the scheduler and whoever runs the model.

Both hold plain numbers only, so that a plan can be logged, compared and sent to another process.
Executing a plan twice is as good as executing it once: whoever isolates a failing sequence may run
any part of a plan again.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

from shared.sampling import SamplingParams

NO_TOKEN = -1  # sampled where the logits were not numbers; the sequence fails
PENDING = -2  # fed where the step before, which is under way, samples the token


@dataclass(frozen=True)
class EncoderInput:
    """What an encoder reads before a sequence decodes: a text, or a window of sound."""

    num_positions: int  # that the encoder makes of it; 0: there is no encoder
    token_ids: tuple[int, ...] = ()
    features: bytes = b""  # a log-mel spectrogram: float32, little-endian, [bins, frames]

    @classmethod
    def text(cls, token_ids: tuple[int, ...]) -> "EncoderInput":
        """A text, of which each token has one position."""
        return cls(len(token_ids), token_ids)


NO_INPUT = EncoderInput(0)


@dataclass(frozen=True)
class Admission:
    """A sequence takes a row of the runner's tables; the row's old contents are void.

    After a preemption `token_ids` ends with the answer so far, which counts as output still. One
    that begins its answer anew keeps its row and what the encoder gave: it has no encoder input.
    """

    row: int
    sampling: SamplingParams
    token_ids: tuple[int, ...]  # the prompt, then what was generated before a preemption
    num_prompt_tokens: int
    end_token_ids: frozenset[int]  # impossible until `sampling.min_tokens` are sampled
    cached_blocks: tuple[int, ...]  # the table begins with these: full, shared and read-only
    encoder_input: EncoderInput = NO_INPUT
    is_pooled: bool = False  # a vector of the prompt is wanted, and no answer


@dataclass(frozen=True)
class Move:
    """A sequence takes another row, with all that its old one holds, before the step's other work.

    The old row is given to nobody within the step, so that the move can be made again.
    """

    source: int
    admission: Admission  # to the new row, with the tokens that the model was fed


class TokenScore(NamedTuple):
    """How likely a token was by the model's own logits, and which tokens were likeliest.

    Natural logarithms of their softmax, before any setting of the caller; finite, and never below
    `MIN_LOGPROB`.
    """

    logprob: float
    top_ids: tuple[int, ...]  # the best first, of equals the lowest id
    top_logprobs: tuple[float, ...]


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence whose keys and values this step computes.

    Before it the row's table covers `start` tokens exactly, so its new blocks follow block number
    ceil(start / block size) - 1. Where the prompt is to be scored, the logits at `first_scored` and
    the positions after it say how likely the `targets` were, one each.
    """

    row: int  # of the sequence in the runner's tables
    start: int  # position of the first token in the sequence
    token_ids: tuple[int, ...]  # one when decoding, maybe PENDING; more in a prefill chunk
    new_blocks: tuple[int, ...]  # appended to the row's block table before the step
    output_index: int  # number of the answer's token that is sampled, from 0: the noise counter
    samples: bool  # False: the prompt goes on in a later step
    first_scored: int = 0  # position in the sequence, within the chunk
    targets: tuple[int, ...] = ()  # prompt tokens to score: those after `first_scored`
    pools: bool = False  # the prompt is complete: its vector is wanted, and no token
    first_aligned: int = 0  # the first of its tokens whose attention to the encoder's is told
    num_aligned: int = 0  # encoder's positions that it is told of; 0: none is

    def cut(self, num_tokens: int, block_size: int) -> tuple["Chunk", "Chunk"]:
        """The chunk of its first tokens, which samples nothing, and that of the others."""
        border = self.start + num_tokens
        num_blocks = -(-border // block_size) - -(-self.start // block_size)
        num_scored = min(max(border - self.first_scored, 0), len(self.targets))
        first = self._replace(
            token_ids=self.token_ids[:num_tokens],
            new_blocks=self.new_blocks[:num_blocks],
            samples=False,
            pools=False,
            targets=self.targets[:num_scored],
        )
        second = self._replace(
            start=border,
            token_ids=self.token_ids[num_tokens:],
            new_blocks=self.new_blocks[num_blocks:],
            first_scored=self.first_scored + num_scored,
            targets=self.targets[num_scored:],
        )
        return first, second


@dataclass(frozen=True)
class StepPlan:
    """What one forward pass computes: decode chunks first, then prefill chunks."""

    step: int
    admissions: tuple[Admission, ...]
    chunks: tuple[Chunk, ...]
    num_decodes: int  # the first chunks, of one token each
    moves: tuple[Move, ...] = ()  # where rows are slots

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to compute."""
        return not self.chunks

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks together: the rows of the forward pass."""
        return sum(len(chunk.token_ids) for chunk in self.chunks)

    @property
    def is_mixed(self) -> bool:
        """True when decoding and prefilling sequences share the step."""
        return 0 < self.num_decodes < len(self.chunks)

    @property
    def is_ahead(self) -> bool:
        """True when it feeds tokens that the step before is yet to sample."""
        return any(chunk.token_ids[0] == PENDING for chunk in self.chunks[: self.num_decodes])

    def fed(self, sampled: Mapping[int, int]) -> "StepPlan":
        """The plan with what the step before sampled, by row, in place of PENDING.

        A row of NO_TOKEN, whose sequence has failed, is fed the first token there is.
        """
        if not self.is_ahead:
            return self
        chunks = tuple(
            chunk._replace(token_ids=(max(sampled[chunk.row], 0),))
            if chunk.token_ids[0] == PENDING
            else chunk
            for chunk in self.chunks
        )
        return replace(self, chunks=chunks)

    def part(self, start: int, end: int) -> "StepPlan":
        """The plan of chunks `start` to `end` - 1 alone, with what their rows need before."""
        chunks = self.chunks[start:end]
        rows = {chunk.row for chunk in chunks}
        admissions = tuple(admission for admission in self.admissions if admission.row in rows)
        moves = tuple(move for move in self.moves if move.admission.row in rows)
        num_decodes = min(max(self.num_decodes - start, 0), len(chunks))
        return StepPlan(self.step, admissions, chunks, num_decodes, moves)

    def cut(self, num_tokens: int, block_size: int) -> tuple["StepPlan", "StepPlan"]:
        """The plan of the first tokens and that of the others, where a chunk may be cut in two.

        Both must have tokens. One after the other they are as good as the whole.
        """
        ends = list(accumulate(len(chunk.token_ids) for chunk in self.chunks))
        number = bisect_right(ends, num_tokens)  # of the first chunk with tokens after the cut
        num_left = ends[number] - num_tokens
        before, after = self.part(0, number), self.part(number + 1, len(self.chunks))
        chunk = self.chunks[number]
        if num_left == len(chunk.token_ids):
            return before, self.part(number, len(self.chunks))
        first, second = chunk.cut(len(chunk.token_ids) - num_left, block_size)
        start = self.part(0, number + 1)
        return (
            replace(start, chunks=(*before.chunks, first), num_decodes=before.num_decodes),
            replace(after, chunks=(second, *after.chunks), num_decodes=0),
        )

    def tiles(self, num_scored: int, block_size: int) -> Iterator["StepPlan"]:
        """Parts of the plan, one after the other, that score at most so many tokens each."""
        rest = self
        while (border := rest._token_of_score(num_scored)) is not None:
            tile, rest = rest.cut(border, block_size)
            yield tile
        yield rest

    def _token_of_score(self, number: int) -> int | None:
        """Which of the plan's tokens has the logits of this score, from 0; None: so few scores."""
        first_token = self.num_decodes
        for chunk in self.chunks[self.num_decodes :]:
            if number < len(chunk.targets):
                return first_token + chunk.first_scored - chunk.start + number
            number -= len(chunk.targets)
            first_token += len(chunk.token_ids)
        return None


@dataclass(frozen=True)
class StepResult:
    """What a plan came to: one sampled token for every chunk that samples, in the plan's order."""

    token_ids: tuple[int, ...]
    failed_rows: frozenset[int] = frozenset()  # their sequences fail; NO_TOKEN where they sample
    scores: tuple[TokenScore | None, ...] = ()  # of each token, where asked for; (): of none
    prompt_scores: tuple[TokenScore | None, ...] = ()  # of all targets; None: as NO_TOKEN
    # Of each chunk that pools: float32, little-endian, of length 1; None: as NO_TOKEN.
    vectors: tuple[bytes | None, ...] = ()
    # Of each chunk that aligns: float32, little-endian, [tokens, positions]; None: as NO_TOKEN.
    alignments: tuple[bytes | None, ...] = ()

    def by_row(self, plan: StepPlan) -> dict[int, int]:
        """The sampled tokens by the rows of the plan that this is the result of."""
        rows = (chunk.row for chunk in plan.chunks if chunk.samples)
        return dict(zip(rows, self.token_ids, strict=True))

    @classmethod
    def failure(cls, chunk: Chunk) -> "StepResult":
        """The result of a chunk that could not be computed."""
        no_scores = (None,) * len(chunk.targets)
        return cls(
            (NO_TOKEN,) * chunk.samples,
            frozenset({chunk.row}),
            prompt_scores=no_scores,
            vectors=(None,) * chunk.pools,
            alignments=(None,) * bool(chunk.num_aligned),
        )

    @classmethod
    def joined(cls, parts: Iterable["StepResult"]) -> "StepResult":
        """The result of a plan whose parts had these, in order."""
        token_ids: list[int] = []
        scores: list[TokenScore | None] = []
        prompt_scores: list[TokenScore | None] = []
        vectors: list[bytes | None] = []
        alignments: list[bytes | None] = []
        failed_rows = frozenset[int]()
        for part in parts:
            token_ids += part.token_ids
            scores += part.scores or (None,) * len(part.token_ids)
            prompt_scores += part.prompt_scores
            vectors += part.vectors
            alignments += part.alignments
            failed_rows |= part.failed_rows
        is_scored = any(score is not None for score in scores)
        return cls(
            tuple(token_ids),
            failed_rows,
            tuple(scores) if is_scored else (),
            tuple(prompt_scores),
            tuple(vectors),
            tuple(alignments),
        )
