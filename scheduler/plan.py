"""StepPlan and StepResult: the whole contract between the scheduler and whoever runs the model.

Both hold plain numbers only, so that a plan can be logged, compared and sent to another process.
"""

from dataclasses import dataclass

from shared.sampling import SamplingParams

NO_TOKEN = -1  # sampled where the logits were not numbers; the sequence fails


@dataclass(frozen=True)
class Admission:
    """A sequence takes a row of the runner's tables; the row's old contents are void."""

    row: int
    sampling: SamplingParams


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence whose keys and values this step computes."""

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


@dataclass(frozen=True)
class StepResult:
    """One sampled token for every chunk of the plan that samples, in the plan's order."""

    token_ids: tuple[int, ...]
