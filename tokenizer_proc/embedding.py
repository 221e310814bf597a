"""What a tokenizer makes of an `Embed`: the ids of each input. Pure."""

from shared.errors import BadRequest, ErrorCode
from shared.messages import Embed, Pool, PromptAccepted
from shared.parts import ModelFacts, Prompt
from tokenizer_proc.context import longest_prompt, too_long
from tokenizer_proc.prompt import PromptEncoder

MAX_NUMBERS = 8 * 1024 * 1024  # of all vectors of one request: 32 MiB on the wire


def accept_inputs(
    message: Embed, encoder: PromptEncoder, model: ModelFacts
) -> tuple[PromptAccepted, Pool]:
    """What the frontend and the worker hear of texts whose vectors are wanted, or BadRequest."""
    dimensions = _dimensions(message, model)
    inputs = tuple(_token_ids(prompt, encoder, model) for prompt in message.inputs)
    accepted = PromptAccepted(message.request_id, sum(map(len, inputs)), prompt_text=None)
    pool = Pool(message.request_id, message.route, inputs, dimensions, message.cache_salt)
    return accepted, pool


def _dimensions(message: Embed, model: ModelFacts) -> int:
    size = model.embeddings.size
    if not size:
        raise BadRequest(model.embeddings.refusal, "model", ErrorCode.UNSUPPORTED_PARAMETER)
    dimensions = size if message.dimensions is None else message.dimensions
    if dimensions > size:
        sentence = f"'dimensions' is {dimensions}; this model's embeddings have {size}."
        raise BadRequest(sentence, "dimensions")
    if len(message.inputs) * dimensions > MAX_NUMBERS:
        sentence = f"{len(message.inputs)} embeddings of {dimensions} numbers are too many for one"
        raise BadRequest(f"{sentence} request: send fewer inputs at a time.", "input")
    return dimensions


def _token_ids(prompt: Prompt, encoder: PromptEncoder, model: ModelFacts) -> tuple[int, ...]:
    longest = longest_prompt(model)
    token_ids = encoder.encode(prompt, longest)
    if prompt.truncate_to is not None:
        token_ids = token_ids[-(longest if prompt.truncate_to == -1 else prompt.truncate_to) :]
    if not token_ids:
        raise BadRequest(f"An empty '{prompt.param}' has no embedding.", prompt.param)
    if len(token_ids) > longest:
        raise too_long(longest, str(len(token_ids)), prompt.param)
    if max(token_ids) >= model.vocab_size:
        sentence = f"'{prompt.param}' holds token {max(token_ids)}"
        raise BadRequest(f"{sentence}; this model has {model.vocab_size}.", prompt.param)
    return tuple(token_ids)
