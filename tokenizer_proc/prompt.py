"""Turns prompts of every kind into token ids, and token ids into text.

Must not know requests, sampling or the model. Ids equal those of transformers: of a conversation
`apply_chat_template`'s (see `chat.py`), of a text the tokenizer's own call.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import takewhile

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from shared.errors import BadRequest
from shared.parts import ChatPrompt, Prompt, TextPrompt
from tokenizer_proc.chat import ChatEncoder
from tokenizer_proc.context import Bound, bound_of
from tokenizer_proc.fill_in_the_middle import MiddleFiller

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class PromptEncoder:
    """Encodes prompts for one tokenizer. Truncation and padding are switched off in it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, frames_chats: bool = False) -> None:
        """With `frames_chats` the tokenizer's own tokens stand around chats as around texts."""
        self._frames_chats = frames_chats
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._chat = ChatEncoder(tokenizer)
        self._filler = MiddleFiller(tokenizer)
        self.vocab_size = max(self._backend.get_vocab().values(), default=-1) + 1

    def encode(self, prompt: Prompt, context: int | None = None) -> list[int]:
        """All ids of the prompt, not truncated, or BadRequest.

        Of a prompt far above the context, in tokens, only the beginning is encoded, to refuse it,
        unless it is to be truncated.
        """
        bound = bound_of(prompt.param, context, must_fit=prompt.truncate_to is None)
        if prompt.chat is not None:
            return self._encode_chat(prompt.chat, bound)
        if prompt.text is not None:
            return self._encode_text(prompt.text, bound)
        token_ids = list(prompt.token_ids or ())
        self.check_ids(token_ids, prompt.param)
        return token_ids

    def check_ids(self, token_ids: Iterable[int], param: str) -> None:
        """Raises BadRequest for an id that is not in the vocabulary."""
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                sentence = f"'{param}' names token {token_id}; this model has {self.vocab_size}."
                raise BadRequest(sentence, param)

    def end_token_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The tokens that end an answer to this prompt, beside the model's own."""
        has_suffix = prompt.text is not None and prompt.text.suffix is not None
        return self._filler.end_token_ids if has_suffix else ()

    def decode(self, token_ids: Sequence[int], *, skips_special_tokens: bool) -> str:
        """The text of these ids."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skips_special_tokens)

    def unframed(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The ids without what the tokenizer itself puts around a text, if that is there whole."""
        before, after = self._frame
        inner = token_ids[len(before) : len(token_ids) - len(after)]
        return inner if [*before, *inner, *after] == list(token_ids) else token_ids

    def num_framing(self, token_ids: Sequence[int]) -> int:
        """How many of the first ids are what the tokenizer itself puts before a text."""
        before, _ = self._frame
        return len(before) if list(token_ids[: len(before)]) == before else 0

    def strings(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Each token's own text; its name in the vocabulary, if it ends within a character."""
        names = {token_id: self._string(token_id) for token_id in set(token_ids)}
        return tuple(names[token_id] for token_id in token_ids)

    def _string(self, token_id: int) -> str:
        # Twice, because some decoders strip the space of a first token.
        once = self.decode([token_id], skips_special_tokens=False)
        twice = self.decode([token_id, token_id], skips_special_tokens=False)
        text = twice[len(once) :] if twice.startswith(once) else once
        is_whole = text and _REPLACEMENT not in text
        return text if is_whole else self._backend.id_to_token(token_id) or ""

    def _encode_chat(self, chat: ChatPrompt, bound: Bound) -> list[int]:
        ids = self._chat.encode(
            list(chat.messages),
            template_kwargs=chat.template_kwargs,
            add_generation_prompt=chat.add_generation_prompt,
            continue_final_message=chat.continue_final_message,
            bound=bound,
        )
        is_framed = chat.add_special_tokens or self._frames_chats
        return self._framed(ids) if is_framed else ids

    def _encode_text(self, prompt: TextPrompt, bound: Bound) -> list[int]:
        """Ids of a text as it is: control tokens in it count."""
        bound.check(prompt.text + (prompt.suffix or ""), self._backend)
        if prompt.suffix is None:
            special = prompt.add_special_tokens
            return self._backend.encode(prompt.text, add_special_tokens=special).ids
        ids = self._filler.encode(prompt.text, prompt.suffix)
        return self._framed(ids) if prompt.add_special_tokens else ids

    def _framed(self, ids: list[int]) -> list[int]:
        before, after = self._frame
        return [*before, *ids, *after]

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after each text, such as its first token."""
        encoding = self._backend.encode("a")
        is_special = encoding.special_tokens_mask
        num_before = len(list(takewhile(bool, is_special)))
        num_after = len(list(takewhile(bool, reversed(is_special[num_before:]))))
        return encoding.ids[:num_before], encoding.ids[len(encoding.ids) - num_after :]
