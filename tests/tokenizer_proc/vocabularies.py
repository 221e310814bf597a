"""Tokenizers for tests of the rooms: one token a byte, with ChatML's control tokens."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
END = "<|im_end|>"


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """Ids 0 to 255 are bytes (in the order of their printable names), then the control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", END)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_thinking_tokenizer(
    *marks: str, special: tuple[str, ...] = (), added: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """The same with a template that holds these marks, and with more tokens."""
    tokenizer = make_byte_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    backend.add_tokens([AddedToken(text, normalized=False) for text in added])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    tokenizer.chat_template = TEMPLATE + "".join(f"{{# {mark} #}}" for mark in marks)
    return tokenizer
