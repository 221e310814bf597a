"""Which tokens of a real vocabulary the formula says."""

from collections.abc import Callable

from tokenizers import Tokenizer as Vocabulary

ORDINARY_TOKENS_PER_ODD_ONE = 15


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _is_letter(text: str) -> bool:
    return len(text) == 1 and text.isascii() and text.isalpha()


def alphabet(vocabulary: Vocabulary, text: str, end_token_id: int) -> list[int]:
    """The tokens of a kind of text, each as often as it should come.

    `plain` is printable ASCII; `letters` is one letter a token; `mixed` is plain with one token in
    sixteen of all others: parts of characters, line ends, control tokens.
    """
    texts = {
        token_id: vocabulary.decode([token_id], skip_special_tokens=True)
        for token_id in sorted(vocabulary.get_vocab().values())
        if token_id != end_token_id
    }
    is_ordinary: Callable[[str], bool] = _is_letter if text == "letters" else _is_plain
    ordinary = [token_id for token_id, shown in texts.items() if shown and is_ordinary(shown)]
    if text != "mixed":
        return ordinary
    odd = [token_id for token_id in texts if token_id not in set(ordinary)]
    return ordinary * -(-len(odd) * ORDINARY_TOKENS_PER_ODD_ONE // len(ordinary)) + odd
