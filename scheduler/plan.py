"""StepPlan and StepResult: the whole contract between the scheduler and whoever runs the model.

Both hold plain numbers only, so that a plan can be logged, compared and sent to another process.
Executing a plan twice is as good as executing it once: whoever isolates a failing sequence may run
any part of a plan again.
"""

from dataclasses import dataclass
from typing import NamedTuple

from shared.sampling import SamplingParams

NO_TOKEN = -1  # sampled where the logits were not numbers; the sequence fails


@dataclass(frozen=True)
class Admission:
    """A sequence takes a row of the runner's tables; the row's old contents are void.

    After a preemption `token_ids` ends with the answer so far, which counts as output still.
    """

    row: int
    sampling: SamplingParams
    token_ids: tuple[int, ...]  # the prompt, then what was generated before a preemption
    num_prompt_tokens: int
    end_token_ids: frozenset[int]  # impossible until `sampling.min_tokens` are sampled
    cached_blocks: tuple[int, ...]  # the table begins with these: full, shared and read-only


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence whose keys and values this step computes.

    Before it the row's table covers `start` tokens exactly, so its new blocks follow block number
    ceil(start / block size) - 1.
    """

    row: int  # of the sequence in the runner's tables
    start: int  # position of the first token in the sequence
    token_ids: tuple[int, ...]  # one token when decoding, more in a prefill chunk
    new_blocks: tuple[int, ...]  # appended to the row's block table before the step
    output_index: int  # number of the answer's token that is sampled, from 0: the noise counter
    samples: bool  # False: the prompt goes on in a later step


@dataclass(frozen=True)
class StepPlan:
    """What one forward pass computes: decode chunks first, then prefill chunks."""

    step: int
    admissions: tuple[Admission, ...]
    chunks: tuple[Chunk, ...]
    num_decodes: int  # the first chunks, of one token each

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

    def part(self, start: int, end: int) -> "StepPlan":
        """The plan of chunks `start` to `end` - 1 alone, with the admissions that they need."""
        chunks = self.chunks[start:end]
        rows = {chunk.row for chunk in chunks}
        admissions = tuple(admission for admission in self.admissions if admission.row in rows)
        num_decodes = min(max(self.num_decodes - start, 0), len(chunks))
        return StepPlan(self.step, admissions, chunks, num_decodes)

    def pieces(self, block_size: int) -> tuple["StepPlan", "StepPlan"]:
        """A plan of one long chunk as two plans, one for each half of its tokens."""
        (chunk,) = self.chunks
        middle = len(chunk.token_ids) // 2
        border = chunk.start + middle
        num_blocks = -(-border // block_size) - -(-chunk.start // block_size)
        first = chunk._replace(
            token_ids=chunk.token_ids[:middle],
            new_blocks=chunk.new_blocks[:num_blocks],
            samples=False,
        )
        second = chunk._replace(
            start=border,
            token_ids=chunk.token_ids[middle:],
            new_blocks=chunk.new_blocks[num_blocks:],
        )
        return (
            StepPlan(self.step, self.admissions, (first,), 0),
            StepPlan(self.step, (), (second,), 0),
        )


@dataclass(frozen=True)
class StepResult:
    """One sampled token for every chunk of the plan that samples, in the plan's order."""

    token_ids: tuple[int, ...]
    failed_rows: frozenset[int] = frozenset()  # their sequences fail; NO_TOKEN where they sample
