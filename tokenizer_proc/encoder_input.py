"""Prompts that an encoder reads: what a conversation becomes, and what cannot be asked.

The answer of an encoder-decoder does not go on from the prompt: it is another text. So whatever
speaks of one text, the prompt with its answer, is refused.
"""

from transformers import AutoConfig

from shared.config import ModelConfig
from shared.errors import BadRequest, ErrorCode
from shared.messages import Tokenize

# One message is its content; of several the contents stand in lines, in their order.
JOINED_CONTENTS = "{{ messages | map(attribute='content') | join('\n') }}"


def has_encoder(model: ModelConfig) -> bool:
    """True for a checkpoint whose prompts an encoder reads; one that cannot be read has none."""
    try:
        config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    except Exception:  # noqa: BLE001 — what transformers raises over a foreign config is anything,
        return False  # and the worker, which reads it too, says what is wrong
    return bool(config.is_encoder_decoder)


def refuse_what_needs_a_decoder(message: Tokenize) -> None:
    """Raises BadRequest for a field that takes prompt and answer for one text."""
    chat, text = message.prompt.chat, message.prompt.text
    asked = {
        "echo": message.echo,
        message.max_tokens_param: message.max_tokens == 0,
        "prompt_logprobs": message.sampling.num_prompt_logprobs is not None,
        "suffix": text is not None and text.suffix is not None,
        "continue_final_message": chat is not None and chat.continue_final_message,
    }
    for param, is_asked in asked.items():
        if is_asked:
            raise BadRequest(
                f"'{param}' cannot be obeyed: this model is an encoder-decoder, whose answer does "
                "not go on from the prompt.",
                param,
                ErrorCode.UNSUPPORTED_PARAMETER,
            )
