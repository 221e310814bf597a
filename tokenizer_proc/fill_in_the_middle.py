"""Fill in the middle: how models are asked for what stands between a prefix and a suffix.

The tokenizer tells the family of its model: each has tokens of its own for this. A model with these
tokens that was not trained to use them answers nonsense; that cannot be seen from here.
"""

from dataclasses import dataclass
from enum import Enum

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from shared.errors import BadRequest


class Hole(Enum):
    """Where the caller's texts go."""

    PREFIX = "prefix"
    SUFFIX = "suffix"


PREFIX, SUFFIX = Hole.PREFIX, Hole.SUFFIX


@dataclass(frozen=True)
class Format:
    """One family's prompt, and the tokens that end its answers beside the model's own."""

    parts: tuple[str | Hole, ...]
    ends: tuple[str, ...] = ()

    @property
    def tokens(self) -> set[str]:
        """Those that the tokenizer of the family must have."""
        return {part for part in self.parts if isinstance(part, str)}


FORMATS = (
    # CodeGemma, and Qwen 2.5 Coder (Hui et al., 2024); the ends are those of its example for this
    Format(
        ("<|fim_prefix|>", PREFIX, "<|fim_suffix|>", SUFFIX, "<|fim_middle|>"),
        ends=(
            "<|fim_prefix|>",
            "<|fim_suffix|>",
            "<|fim_middle|>",
            "<|file_separator|>",  # CodeGemma
            "<|fim_pad|>",
            "<|repo_name|>",
            "<|file_sep|>",
            "<|im_end|>",
            "<|endoftext|>",
        ),
    ),
    # StarCoder (Li et al., 2023)
    Format(("<fim_prefix>", PREFIX, "<fim_suffix>", SUFFIX, "<fim_middle>")),
    # Code Llama (Rozière et al., 2023); the space sign is part of each token
    Format(("▁<PRE>", PREFIX, "▁<SUF>", SUFFIX, "▁<MID>"), ends=("▁<EOT>",)),
    # DeepSeek Coder (Guo et al., 2024)
    Format(("<｜fim▁begin｜>", PREFIX, "<｜fim▁hole｜>", SUFFIX, "<｜fim▁end｜>")),
    # Codestral, as in mistral-common
    Format(("[SUFFIX]", SUFFIX, "[PREFIX]", PREFIX)),
)

_SPACE_SIGN = "▁"
_ANCHOR = "☺"  # Code Llama's and Mistral's own choice


class MiddleFiller:
    """Encodes prefix and suffix in the format of one tokenizer's family, if it has one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        known = [form for form in FORMATS if form.tokens <= added.keys()]
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._format = known[0] if known else Format(())
        self._ids = {name: added[name] for name in self._format.tokens}
        self.end_token_ids = tuple(added[name] for name in self._format.ends if name in added)

    def encode(self, prefix: str, suffix: str) -> list[int]:
        """Ids of the prompt, or BadRequest; control tokens in the texts count, as in any prompt."""
        if not self._format.parts:
            sentence = "This model's tokenizer has no tokens to fill in the middle with, which"
            raise BadRequest(f"{sentence} 'suffix' needs.", "suffix")
        texts = {PREFIX: self._encode(prefix), SUFFIX: self._encode_further(suffix)}
        ids: list[int] = []
        for part in self._format.parts:
            ids += texts[part] if isinstance(part, Hole) else [self._ids[part]]
        return ids

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _encode_further(self, text: str) -> list[int]:
        """Ids of text that does not begin a prompt: no space may be put before it."""
        anchor = self._backend.encode(_ANCHOR, add_special_tokens=False)
        if not anchor.tokens[:1] or not anchor.tokens[0].startswith(_SPACE_SIGN):
            return self._encode(text)
        return self._encode(_ANCHOR + text)[len(anchor.ids) :]
