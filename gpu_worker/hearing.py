"""A window of sound as a sequence: its answer may be begun anew, hotter, before anybody sees it.

Whisper's reference (`decode_with_fallback` of `whisper/transcribe.py`) decodes a window again, at a
higher temperature, while the words repeat themselves or are unlikely, unless nobody speaks. Here
the sequence keeps its slot and what the encoder gave, and tells nothing until an answer is good or
the last has failed. Then the best of them counts (as in faster-whisper). An answer that goes round
in a loop is cut where that is seen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from scheduler.plan import NO_INPUT, Chunk, EncoderInput, TokenScore
from scheduler.sequence import Sequence, State, Told
from shared.parts import Heard
from shared.sampling import NUM_SEEDS, SamplingParams, TranscriptRules
from shared.windows import MAX_COMPRESSION_RATIO, MIN_AVG_LOGPROB, compression_ratio, is_silent

LOOP_TOKENS = 96  # of text, the last ones, in which a loop is looked for
MIN_LOOP_TOKENS = 48
LOOP_RATIO = 2 * MAX_COMPRESSION_RATIO  # of their text: no speech comes near it
_LOOP_SAMENESS = 3  # how often each token comes in a loop, at least
_LOOK_EVERY = 8  # tokens
_SEED_STEP = 2**32  # from one attempt to the next

TextOf = Callable[[list[int]], str]  # the text of an answer's tokens, without control tokens


@dataclass(frozen=True)
class Attempt:
    """One answer to a window, and how good it is."""

    token_ids: tuple[int, ...]
    scores: tuple[TokenScore | None, ...]
    end: State
    heard: Heard
    is_loop: bool

    @property
    def repeats_itself(self) -> bool:
        """True when its text is too uniform to have been said."""
        return self.is_loop or self.heard.compression_ratio > MAX_COMPRESSION_RATIO

    @property
    def is_good(self) -> bool:
        """True when no further attempt is worth it."""
        if is_silent(self.heard):
            return True
        return not self.repeats_itself and self.heard.avg_logprob >= MIN_AVG_LOGPROB


class WindowSequence(Sequence):
    """The sequence that puts a window into words; see `Sequence`."""

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: tuple[int, ...],
        max_tokens: int,
        sampling: SamplingParams,
        encoder_input: EncoderInput,
        *,
        rules: TranscriptRules,
        temperatures: tuple[float, ...],
        num_aligned: int,
        text_of: TextOf,
    ) -> None:
        """See `Listen`; nothing is aligned where `num_aligned` is 0."""
        super().__init__(
            request_id,
            prompt_token_ids,
            max_tokens,
            frozenset({rules.end_token_id}),
            replace(sampling, temperature=temperatures[0], transcript=rules),
            encoder_input=encoder_input,
        )
        self.heard: Heard | None = None  # once it has ended
        self.alignment = b""  # float32, little-endian, [tokens, positions]
        self.alignment_shape = (0, 0)
        self._rules = rules
        self._temperatures = temperatures
        self.num_aligned = num_aligned  # encoder's positions; 0: none is wanted
        self._text_of = text_of
        self._scores: list[TokenScore | None] = []
        self._attempts: list[Attempt] = []
        self._chosen: Attempt | None = None  # while its tokens are being aligned

    @property
    def is_aligning(self) -> bool:
        """See `Sequence`."""
        return self._chosen is not None

    @property
    def is_decoding(self) -> bool:
        """As in `Sequence`; while tokens are aligned none is sampled."""
        return not self.is_aligning and super().is_decoding

    def num_to_prefill(self, budget: int) -> int:
        """As in `Sequence`; what is aligned is fed at once, but for its last token."""
        return len(self.token_ids) - 1 if self.is_aligning else super().num_to_prefill(budget)

    def asking(self, chunk: Chunk) -> Chunk:
        """As in `Sequence`; for the attention of the tokens that are aligned."""
        if not self.is_aligning:
            return super().asking(chunk)
        return chunk._replace(first_aligned=self._num_before, num_aligned=self.num_aligned)

    def append(self, token_id: int, score: TokenScore | None = None) -> tuple[Told, ...]:
        """Records a sampled token; nothing is told before an answer has been chosen."""
        self.encoder_input = NO_INPUT  # it has been read
        self.token_ids.append(token_id)
        self._scores.append(score)
        end = self.end_after(token_id)
        is_loop = end is None and self._goes_round()
        if end is None and not is_loop:
            return ()
        self._attempts.append(self._attempt(end or State.LENGTH, is_loop=is_loop))
        if not self._attempts[-1].is_good and len(self._attempts) < len(self._temperatures):
            self._begin_anew()
            return ()
        return self._choose(self._best())

    def align(self, matrix: bytes) -> tuple[State, tuple[Told, ...]]:
        """Takes the attention of the chosen answer's tokens, and ends."""
        assert self._chosen is not None
        self.alignment = matrix
        self.alignment_shape = (self._num_to_align, self.num_aligned)
        return self._chosen.end, _told(self._chosen)

    @property
    def _num_before(self) -> int:
        """Tokens before the words and marks of the answer."""
        return self.num_prompt_tokens + len(self._rules.heads)

    @property
    def _num_to_align(self) -> int:
        return len(self.token_ids) - 1 - self._num_before

    def _begin_anew(self) -> None:
        """Forgets the answer but for what it is: the language is found out once."""
        number = len(self._attempts)
        heads = self.token_ids[self.num_prompt_tokens : self._num_before]
        self._rules = replace(self._rules, heads=tuple((token_id,) for token_id in heads))
        self.sampling = replace(
            self.sampling,
            temperature=self._temperatures[number],
            seed=(self.sampling.seed + _SEED_STEP) % NUM_SEEDS,
            transcript=self._rules,
        )
        self._take_back(())
        self.begins_anew = True

    def _take_back(self, token_ids: tuple[int, ...]) -> None:
        """Makes these the answer, of which nothing is computed."""
        self.token_ids[self.num_prompt_tokens :] = token_ids
        self._scores = []
        self.num_computed = 0

    def _choose(self, attempt: Attempt) -> tuple[Told, ...]:
        """Ends with this attempt, or has it aligned first where the times of words are wanted."""
        self.heard = replace(attempt.heard, last_temperature=self.sampling.temperature)
        self._take_back(attempt.token_ids)
        if self.num_aligned and self._num_to_align > 0 and not is_silent(attempt.heard):
            self._chosen = attempt
            return ()
        self.change(attempt.end)
        return _told(attempt)

    def _best(self) -> Attempt:
        """The last attempt if it is good; else the likeliest of those that repeat nothing, if any.

        Where all repeat themselves it is the likeliest of all.
        """
        if self._attempts[-1].is_good:
            return self._attempts[-1]
        varied = [attempt for attempt in self._attempts if not attempt.repeats_itself]
        return max(varied or self._attempts, key=lambda attempt: attempt.heard.avg_logprob)

    def _attempt(self, end: State, *, is_loop: bool) -> Attempt:
        text = self._text_of(self._text_ids()).strip()
        heard = Heard(
            temperature=self.sampling.temperature,
            last_temperature=self.sampling.temperature,
            avg_logprob=self._avg_logprob(),
            compression_ratio=compression_ratio(text),
            no_speech_prob=self._no_speech_prob(),
        )
        token_ids = tuple(self.token_ids[self.num_prompt_tokens :])
        return Attempt(token_ids, tuple(self._scores), end, heard, is_loop)

    def _avg_logprob(self) -> float:
        """The mean of its words, marks and end; one more counts where the end is missing."""
        words = self._scores[len(self._rules.heads) :]
        has_end = self.token_ids[-1] == self._rules.end_token_id
        num_counted = len(words) + (not has_end)
        return sum(s.logprob for s in words if s is not None) / max(1, num_counted)

    def _no_speech_prob(self) -> float:
        """Told beside the first token; 0 where it is not."""
        first = self._scores[0]
        return math.exp(first.top_logprobs[0]) if first is not None and first.top_logprobs else 0.0

    def _text_ids(self) -> list[int]:
        first_time_id = self._rules.first_time_id
        ids = self.token_ids[self._num_before :]
        return ids if first_time_id is None else [i for i in ids if i < first_time_id]

    def _goes_round(self) -> bool:
        """True when the last tokens of the text are a loop."""
        if self.num_output_tokens % _LOOK_EVERY or self.num_output_tokens < MIN_LOOP_TOKENS:
            return False
        ids = self._text_ids()[-LOOP_TOKENS:]
        if len(ids) < MIN_LOOP_TOKENS or _LOOP_SAMENESS * len(set(ids)) > len(ids):
            return False  # the second is quickly seen, at every step of everybody
        return compression_ratio(self._text_of(ids)) > LOOP_RATIO


def _told(attempt: Attempt) -> tuple[Told, ...]:
    """Each token with how likely it was; that nobody speaks is told in another place."""
    columns = zip(attempt.token_ids, attempt.scores, strict=True)
    return tuple(
        (number, token_id, score and TokenScore(score.logprob, (), ()))
        for number, (token_id, score) in enumerate(columns)
    )
