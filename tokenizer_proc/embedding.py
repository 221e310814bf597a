"""What a tokenizer makes of an `Embed`: the ids of each input, some of them at a time. Pure."""

from shared.errors import BadRequest, ErrorCode
from shared.messages import Embed, Pool, PromptAccepted
from shared.parts import ModelFacts, Prompt
from tokenizer_proc.context import longest_prompt, too_long
from tokenizer_proc.prompt import PromptEncoder

MAX_NUMBERS = 4 * 1024 * 1024  # of all vectors of one request: 16 MiB on the wire
MAX_TOKENS = 300_000  # of all inputs of one request (OpenAI)
SLICE_CHARACTERS = 16 * 1024  # that are encoded at a time, or one input


class InputEncoder:
    """The inputs of one request, of which each call encodes a few, so that others are served."""

    def __init__(self, message: Embed, encoder: PromptEncoder, model: ModelFacts) -> None:
        """Raises BadRequest for what this model has no vectors for."""
        self.message = message
        self._encoder = encoder
        self._model = model
        self._dimensions = _dimensions(message, model)
        self._inputs: list[tuple[int, ...]] = []
        self._num_tokens = 0
        self.is_over = False

    @property
    def can_go_on(self) -> bool:
        """See `LongWork`: it waits for nobody."""
        return True

    @property
    def descriptor(self) -> None:
        """See `LongWork`."""
        return None

    def close(self) -> None:
        """See `LongWork`: it holds nothing."""

    def go_on(self) -> tuple[PromptAccepted, Pool] | None:
        """Encodes the next inputs; the result once that was all. BadRequest for one too many."""
        num_characters = 0
        while len(self._inputs) < len(self.message.inputs) and num_characters < SLICE_CHARACTERS:
            prompt = self.message.inputs[len(self._inputs)]
            token_ids = _token_ids(prompt, self._encoder, self._model)
            self._inputs.append(token_ids)
            self._num_tokens += len(token_ids)
            num_characters += len(token_ids if prompt.text is None else prompt.text.text)
            if self._num_tokens > MAX_TOKENS:
                sentence = f"'input' has more than {MAX_TOKENS} tokens: send fewer texts at a time."
                raise BadRequest(sentence, "input")
        self.is_over = len(self._inputs) == len(self.message.inputs)
        return self._result() if self.is_over else None

    def _result(self) -> tuple[PromptAccepted, Pool]:
        name, message = self.message.request_id, self.message
        accepted = PromptAccepted(name, self._num_tokens, prompt_text=None)
        inputs = tuple(self._inputs)
        return accepted, Pool(name, message.route, inputs, self._dimensions, message.cache_salt)


def _dimensions(message: Embed, model: ModelFacts) -> int:
    size = model.embeddings.size
    if not size:
        raise BadRequest(model.embeddings.refusal, "model", ErrorCode.UNSUPPORTED_PARAMETER)
    dimensions = size if message.dimensions is None else message.dimensions
    if dimensions > size:
        sentence = f"'dimensions' is {dimensions}; this model's embeddings have {size}."
        raise BadRequest(sentence, "dimensions")
    if len(message.inputs) * size > MAX_NUMBERS:
        sentence = f"{len(message.inputs)} embeddings of {size} numbers are too many for one"
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
