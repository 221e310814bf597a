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
        self._bans: dict[tuple[int, ...] | None, torch.Tensor] = {}  # [V] bool, by what is banned

    def begin(self, admission: Admission) -> None:
        """Gives the row to another sequence, which may have said something already."""
        self._rules[admission.row] = admission.sampling.transcript
        self._said[admission.row] = list(admission.token_ids[admission.num_prompt_tokens :])

    def observe(self, chunks: Sequence[Chunk]) -> None:
        """Takes the tokens that decoding chunks feed; a second time changes nothing."""
        for chunk in chunks:
            if chunk.output_index and self._rules[chunk.row] is not None:
                self._said[chunk.row][chunk.output_index - 1 :] = chunk.token_ids[-1:]

    def filtered(self, logits: torch.Tensor, host_rows: Sequence[int]) -> torch.Tensor:
        """The logits [N, V] of these rows as float32, where what must not come is -inf."""
        logits = logits.float()
        ranges = [self._ranges(row) for row in host_rows]
        columns = [column for each in zip(*ranges, strict=True) for column in each]
        table = upload(columns, torch.long, self._device).view(4, -1, 1)
        text_start, first_time, time_start, time_end = table
        is_time = self._ids >= first_time
        is_allowed = (self._ids >= text_start) & ~is_time
        is_allowed |= (self._ids >= time_start) & (self._ids < time_end)
        is_banned = torch.stack([self._banned(row) for row in host_rows])
        logits = logits.masked_fill(is_banned | ~is_allowed, -torch.inf)
        times = logits.masked_fill(~is_time, -torch.inf).logsumexp(-1)
        best_text = logits.masked_fill(is_time, -torch.inf).amax(-1)
        must_be_time = (times > best_text)[:, None]
        return logits.masked_fill(must_be_time & ~is_time, -torch.inf)

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
        logprobs = torch.log_softmax(filtered, -1)
        own = logprobs.gather(-1, token_ids[:, None].clamp(min=0))
        ids = [self._no_speech_id(row) for row in host_rows]
        silent = upload([max(i, 0) for i in ids], torch.long, self._device)[:, None]
        silence = raw.float().log_softmax(-1).gather(-1, silent)
        told = torch.cat((own, silence), -1).clamp(min=MIN_LOGPROB).double()
        values = torch.cat((told[:, :1], silent.double(), told[:, 1:]), -1)
        return Scores(values, tuple(int(i >= 0) for i in ids))

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

    def _banned(self, row: int) -> torch.Tensor:
        """[V] bool: what the row must not say, whatever the marks allow."""
        rules, said = self._rules[row], self._said[row]
        if rules is None:
            return self._ban(())
        if len(said) < len(rules.heads):
            return ~self._ban(rules.heads[len(said)])
        if len(said) == len(rules.heads):
            return self._ban((*rules.suppressed, *rules.suppressed_at_first))
        return self._ban(rules.suppressed)

    def _ban(self, token_ids: tuple[int, ...]) -> torch.Tensor:
        mask = self._bans.get(token_ids)
        if mask is None:
            mask = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._device)
            mask[list(token_ids)] = True
            self._bans[token_ids] = mask
        return mask
