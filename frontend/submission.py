"""What a handler wants of the rooms behind: validated, and without addresses."""

from dataclasses import dataclass, field

from shared.parts import Prompt, TextOptions, TranscriptOptions
from shared.sampling import SamplingParams


@dataclass(frozen=True)
class Submission:
    """One HTTP request for answers: to one prompt, or to several in the same way.

    The answers to prompt p are choices p * num_choices and on; the seed of each choice is the
    first one's plus its number.
    """

    id_prefix: str  # "chatcmpl" or "cmpl"
    prompts: tuple[Prompt, ...]
    max_tokens: int | None
    is_strict: bool
    echo: bool
    text: TextOptions
    sampling: SamplingParams  # of the first choice
    num_choices: int  # to each prompt
    cache_salt: str
    max_tokens_param: str = "max_tokens"  # the field that `max_tokens` came from, for errors

    @property
    def total_choices(self) -> int:
        """The answers to all prompts: what it takes of `--max-concurrent`."""
        return len(self.prompts) * self.num_choices


@dataclass(frozen=True)
class Embedding:
    """One HTTP request for the vectors of texts, which takes the place of one answer."""

    inputs: tuple[Prompt, ...]
    dimensions: int | None
    cache_salt: str
    id_prefix: str = "embd"
    num_choices: int = 1

    @property
    def total_choices(self) -> int:
        """See `Submission`."""
        return self.num_choices


@dataclass(frozen=True)
class Transcription:
    """One HTTP request to put a sound into words."""

    audio: bytes = field(repr=False)  # the file as it came
    options: TranscriptOptions
    sampling: SamplingParams
    id_prefix: str = "trsc"
    num_choices: int = 1

    @property
    def total_choices(self) -> int:
        """See `Submission`."""
        return self.num_choices


Wanted = Submission | Embedding | Transcription


@dataclass(frozen=True)
class Lookup:
    """One HTTP request that the tokenizer alone answers: ids of a prompt, or the text of ids."""

    prompt: Prompt | None  # None: the text of `token_ids` is wanted
    token_ids: tuple[int, ...] = ()
    wants_strings: bool = False
