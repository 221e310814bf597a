"""The text of tokens, for what is decided by it before anybody reads it."""

import functools

from tokenizers import Tokenizer as Vocabulary

from gpu_worker.hearing import TextOf
from shared.vocabulary import vocabulary_path


def text_of(run_directory: str) -> TextOf:
    """Reads the vocabulary when it is first needed: by then the tokenizer has written it."""

    @functools.cache
    def vocabulary() -> Vocabulary:
        return Vocabulary.from_file(str(vocabulary_path(run_directory)))

    def decode(token_ids: list[int]) -> str:
        text: str = vocabulary().decode(token_ids, skip_special_tokens=True)
        return text

    return decode
