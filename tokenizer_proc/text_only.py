"""A tokenizer for which all text is text: no input can become one of the removed tokens."""

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer

from tokenizer_proc.control_tokens import random_word


class TextOnlyTokenizer:
    """A copy of a tokenizer whose vocabulary has other, unguessable names for some tokens.

    So no text can ever become one of them, whether as an added token, by a Unigram piece or by a
    merge; all other text encodes as before.
    """

    def __init__(self, tokenizer: Tokenizer, removed: Iterable[str]) -> None:
        names = {content: random_word() for content in removed}
        state = json.loads(tokenizer.to_str())
        state["post_processor"] = None
        kept = [token for token in state["added_tokens"] if token["content"] not in names]
        state["added_tokens"] = kept
        _rename_in_model(state["model"], names)
        self._tokenizer = Tokenizer.from_str(json.dumps(state))
        # Without the removed tokens the copy numbers the other added tokens anew.
        self._original_ids = {
            self._tokenizer.token_to_id(token["content"]): token["id"] for token in kept
        }
        self._anchors = {is_normalized: random_word() for is_normalized in (False, True)}
        for is_normalized, anchor in self._anchors.items():
            self._tokenizer.add_tokens([AddedToken(anchor, normalized=is_normalized)])

    def encode(self, text: str) -> list[int]:
        """Ids of text at the start of a prompt."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._original_ids.get(token_id, token_id) for token_id in ids]

    def encode_after(self, text: str, is_normalized: bool) -> list[int]:
        """Ids of text after an added token, where some tokenizers do not begin with a space."""
        return self.encode(self._anchors[is_normalized] + text)[1:]


def _rename_in_model(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename tokens in a model of a `tokenizer.json`; their ids stay."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(token, token): token_id for token, token_id in vocab.items()}
    else:  # Unigram: scored pieces, whose position is their id
        model["vocab"] = [[names.get(token, token), score] for token, score in vocab]
    if "merges" in model:
        merges = model["merges"]
        model["merges"] = [
            pair for pair in merges if names.keys().isdisjoint([*pair, "".join(pair)])
        ]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
