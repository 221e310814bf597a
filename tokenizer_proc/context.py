"""How long a prompt may be: what the context takes, and what a tokenizer may be asked at once.

One tokenizer serves many callers in turn, so the cost of a prompt is bounded before it is paid.
"""

from dataclasses import dataclass

from tokenizers import Tokenizer

from shared.errors import BadRequest, ErrorCode
from shared.parts import ModelFacts

# More characters than a token has in any text but runs of one sign: above so many for each token
# of the context, a prompt is measured by its beginning first.
MANY_CHARACTERS = 16
_TOKENS_AT_A_CUT = 8  # cutting a text can change the tokens beside the cut

# A second or two of work, whatever the text: of UTF-8 to encode, and of ids to decode.
MAX_BYTES = 1_000_000
MAX_IDS = 1_000_000


@dataclass(frozen=True)
class Bound:
    """How long the prompt in the field `param` may be."""

    param: str
    most_tokens: int | None = None  # the context; None: it need not fit as it is
    most_bytes: int = MAX_BYTES  # of what is encoded at once

    def may_be_broken_by(self, num_characters: int) -> bool:
        """Whether a text of so many characters could be too long."""
        most = self.most_bytes // 4  # UTF-8 has up to four bytes for one
        if self.most_tokens is not None:
            most = min(most, MANY_CHARACTERS * self.most_tokens)
        return num_characters > most

    def check(self, text: str, backend: Tokenizer) -> None:
        """Raises BadRequest for what is far too long, at a cost that the bound bounds."""
        if self.most_tokens is not None:
            self._check_beginning(text, self.most_tokens, backend)
        self.check_bytes(text)

    def check_bytes(self, text: str) -> None:
        """Raises BadRequest for what takes too much time to encode."""
        num_bytes = len(text.encode())
        if num_bytes > self.most_bytes:
            sentence = f"'{self.param}' makes a text of {num_bytes} bytes; at most"
            raise BadRequest(f"{sentence} {self.most_bytes} are tokenized at once.", self.param)

    def _check_beginning(self, text: str, most_tokens: int, backend: Tokenizer) -> None:
        num_characters = MANY_CHARACTERS * most_tokens
        while num_characters < len(text):
            encoding = backend.encode(text[:num_characters], add_special_tokens=False)
            if len(encoding.ids) > most_tokens + _TOKENS_AT_A_CUT:
                raise too_long(most_tokens, f"more than {most_tokens}", self.param)
            num_characters *= 2


def longest_prompt(model: ModelFacts) -> int:
    """The most tokens of a prompt, where no answer shares the context with it."""
    return model.max_encoder_len or model.max_model_len


def bound_of(param: str, context: int | None, *, must_fit: bool) -> Bound:
    """The bound of a prompt for a model with this context; None: nothing is to be answered."""
    most_bytes = max(MAX_BYTES, MANY_CHARACTERS * (context or 0))
    return Bound(param, context if must_fit else None, most_bytes)


def too_long(most_tokens: int, num_tokens: str, param: str) -> BadRequest:
    """The refusal of a prompt that fills the context, in the words that clients look for."""
    return BadRequest(
        f"This model's maximum context length is {most_tokens} tokens. However, your {param} "
        f"resulted in {num_tokens} tokens. Please reduce the length of the {param}.",
        param,
        ErrorCode.CONTEXT_LENGTH,
    )
