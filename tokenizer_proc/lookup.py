"""What a tokenizer answers by itself: the ids of a prompt, and the text of ids. Pure."""

from shared.errors import BadRequest
from shared.messages import Decode, Decoded, Encode, Encoded
from tokenizer_proc.context import MAX_IDS
from tokenizer_proc.prompt import PromptEncoder


def encoded(message: Encode, encoder: PromptEncoder) -> Encoded:
    """The ids of a prompt, which may be longer than the context; BadRequest if far too long."""
    if message.prompt.truncate_to is not None:
        raise BadRequest("Only prompts to be answered are truncated.", "truncate_prompt_tokens")
    token_ids = encoder.encode(message.prompt)
    strings = encoder.strings(token_ids) if message.wants_strings else None
    return Encoded(message.request_id, tuple(token_ids), strings)


def decoded(message: Decode, encoder: PromptEncoder) -> Decoded:
    """The text of ids, special tokens and all, so that it is the text that gave these ids.

    One exception serves that: what the tokenizer itself puts around a text, such as a first
    token, is not shown, if all of it is there. A caller who wrote the same by hand and had the
    tokenizer add nothing (`add_special_tokens` false) does not get it back. What a tokenizer's
    normalizer drops, such as case, is lost.
    """
    if len(message.token_ids) > MAX_IDS:
        sentence = f"'tokens' has {len(message.token_ids)} ids; this server decodes at most"
        raise BadRequest(f"{sentence} {MAX_IDS} at once.", "tokens")
    encoder.check_ids(message.token_ids, "tokens")
    text = encoder.decode(encoder.unframed(message.token_ids), skips_special_tokens=False)
    return Decoded(message.request_id, text)
