"""The rules of transcripts: which tokens may come next, and how likely the one that came was.

They are those of Whisper's reference (`ApplyTimestampRules` and the suppressing filters of
`whisper/decoding.py`): marks of time come in pairs but at the ends, never go back, and one comes
where all of them together are likelier than any text. The host knows every sampled token before
the next step, so it works out which ids each row may have as two ranges; the device masks all rows
at once. Dimension names are those of `batch.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gpu_worker.logprobs import Scores
from gpu_worker.upload import upload
from scheduler.plan import Admission, Chunk
from shared.sampling import MIN_LOGPROB, TranscriptRules


class _Ranges(NamedTuple):
    """The ids that a row may have: text from `text_start` to the marks, and marks."""

    text_start: int
    first_time: int
    time_start: int
    time_end: int


class Transcripts:
    """Keeps every row's rules and what it has said so far."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._rules: list[TranscriptRules | None] = [None] * num_rows
        self._said: list[list[int]] = [[] for _ in range(num_rows)]
        self._ids = torch.arange(vocab_size, device=device)
        self._known_masks: dict[tuple[tuple[int, ...], bool, int], torch.Tensor] = {}

    def begin(self, admission: Admission) -> None:
        """Gives the row to another sequence, which may have said something already."""
        self._rules[admission.row] = admission.sampling.transcript
        self._said[admission.row] = list(admission.token_ids[admission.num_prompt_tokens :])

    def observe(self, chunks: Sequence[Chunk]) -> None:
        """Takes the tokens that decoding chunks feed; a second time changes nothing."""
        for chunk in chunks:
            if chunk.output_index and chunk.samples and self._rules[chunk.row] is not None:
                self._said[chunk.row][chunk.output_index - 1 :] = chunk.token_ids[-1:]

    def filtered(self, logits: torch.Tensor, host_rows: Sequence[int]) -> torch.Tensor:
        """The logits [N, V] of these rows as float32, where what must not come is -inf."""
        ranges = [self._ranges(row) for row in host_rows]
        logits = logits + self._masks(host_rows, ranges)
        border = min(each.first_time for each in ranges)  # below it every row has text alone
        if border < self._vocab_size:
            self._mark_times(logits[:, :border], logits[:, border:], ranges)
        self._decide_heads(logits, host_rows)
        return logits

    def _decide_heads(self, logits: torch.Tensor, host_rows: Sequence[int]) -> None:
        """Leaves the likeliest alone where a head is found out: no temperature guesses at it."""
        places = [place for place, row in enumerate(host_rows) if self._has_choice_of_head(row)]
        if places:
            rows = upload(places, torch.long, self._device)
            own = logits[rows]
            best = own.argmax(-1, keepdim=True)
            logits[rows] = own.masked_fill_(self._ids != best, -torch.inf)

    def _has_choice_of_head(self, row: int) -> bool:
        rules, index = self._rules[row], len(self._said[row])
        return rules is not None and index < len(rules.heads) and len(rules.heads[index]) > 1

    def _mark_times(
        self, texts: torch.Tensor, window: torch.Tensor, ranges: Sequence[_Ranges]
    ) -> None:
        """Masks logits in place, of ids before and from the lowest that may mark a time."""
        columns = [column for each in zip(*ranges, strict=True) for column in each]
        table = upload(columns, torch.long, self._device).view(4, -1, 1)
        _, first_time, time_start, time_end = table
        ids = self._ids[texts.shape[1] :]
        is_time = ids >= first_time
        is_in_vain = is_time & ((ids < time_start) | (ids >= time_end))
        window.masked_fill_(is_in_vain, -torch.inf)
        times = window.masked_fill(~is_time, -torch.inf).logsumexp(-1, keepdim=True)
        best_late_text = window.masked_fill(is_time, -torch.inf).amax(-1, keepdim=True)
        best_text = torch.maximum(texts.amax(-1, keepdim=True), best_late_text)
        must_be_time = times > best_text
        texts += torch.zeros_like(times).masked_fill_(must_be_time, -torch.inf)
        window.masked_fill_(must_be_time & ~is_time, -torch.inf)

    def scores(
        self,
        raw: torch.Tensor,
        filtered: torch.Tensor,
        token_ids: torch.Tensor,
        host_rows: Sequence[int],
    ) -> Scores:
        """How likely each sampled token [N] was by the filtered logits [N, V].

        With a row's first token comes one alternative: that nobody speaks, by the raw logits.
        """
        own = _logprobs(filtered, token_ids[:, None].clamp(min=0))
        ids = [self._no_speech_id(row) for row in host_rows]
        counts = tuple(int(i >= 0) for i in ids)
        if not any(counts):
            return Scores(own, counts)
        silent = upload([max(i, 0) for i in ids], torch.long, self._device)[:, None]
        return Scores(torch.cat((own, silent.double(), _logprobs(raw, silent)), -1), counts)

    def _no_speech_id(self, row: int) -> int:
        rules = self._rules[row]
        is_told = rules is not None and not self._said[row] and rules.no_speech_id is not None
        return rules.no_speech_id if is_told else -1  # type: ignore[union-attr,return-value]

    def _ranges(self, row: int) -> _Ranges:
        rules, said = self._rules[row], self._said[row]
        size = self._vocab_size
        if rules is None or rules.first_time_id is None or len(said) < len(rules.heads):
            return _Ranges(0, size, size, size)
        first, text = rules.first_time_id, said[len(rules.heads) :]
        if not text:
            most = size if rules.max_first_time is None else first + rules.max_first_time + 1
            return _Ranges(first, first, first, min(most, size))
        is_last, is_before = text[-1] >= first, len(text) < 2 or text[-2] >= first
        times = [token_id for token_id in text if token_id >= first]
        closes = is_last and not is_before  # a pair: the next may be the same time again
        start = (times[-1] + (not closes)) if times else first
        if is_last and is_before:
            return _Ranges(0, first, size, size)
        return _Ranges(rules.end_token_id if is_last else 0, first, start, size)

    def _masks(self, host_rows: Sequence[int], ranges: Sequence[_Ranges]) -> torch.Tensor:
        """[N, V] float32, or [1, V] for all: -inf where a row has no text, and 0."""
        masks = [
            self._mask(*self._banned(row), each.text_start)
            for row, each in zip(host_rows, ranges, strict=True)
        ]
        is_common = all(mask is masks[0] for mask in masks)
        return masks[0][None] if is_common else torch.stack(masks)

    def _banned(self, row: int) -> tuple[tuple[int, ...], bool]:
        """What the row must not say, whatever the marks allow; True: all else."""
        rules, said = self._rules[row], self._said[row]
        if rules is None:
            return (), False
        if len(said) < len(rules.heads):
            return rules.heads[len(said)], True
        if len(said) == len(rules.heads):
            return (*rules.suppressed, *rules.suppressed_at_first), False
        return rules.suppressed, False

    def _mask(self, token_ids: tuple[int, ...], is_all_else: bool, text_start: int) -> torch.Tensor:
        """[V] float32 of these ids, or of all but them, and of those before the first text."""
        key = (token_ids, is_all_else, text_start)
        mask = self._known_masks.get(key)
        if mask is None:
            is_named = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._device)
            is_named[list(token_ids)] = True
            is_masked = (is_named ^ is_all_else) | (self._ids < text_start)
            mask = is_masked.float().masked_fill_(is_masked, -torch.inf)
            self._known_masks[key] = mask
        return mask


def _logprobs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """[N, K] float64 of these ids of each row."""
    logprobs = torch.log_softmax(logits, -1, dtype=torch.float32).gather(-1, token_ids)
    return logprobs.clamp_(min=MIN_LOGPROB).double()
