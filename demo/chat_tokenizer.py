"""The chat model's tokenizer: byte-level BPE, trained from the dialogues, and its template."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.dialogues import training_dialogues
from demo.task import Dialogue

CHAT_FOLDER = Path(__file__).parent / "chat"
# Written by hand; it lives with the model, where the tokenizer also saves it.
TEMPLATE_FILE = CHAT_FOLDER / "chat_template.jinja"

VOCABULARY_SIZE = 640
MAX_MODEL_LEN = 2048
PADDING, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PADDING, TURN_START, TURN_END)
MARKUP_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

# A run of letters, one digit, one line break, or a run of anything else. A word has the same
# tokens wherever it stands, which makes copying it easy; a lone line break keeps the tokens of
# a prompt the same whatever answer follows it.
_PIECE = Regex(r"[\p{L}\p{M}]+|\p{N}|\n|[^\p{L}\p{M}\p{N}\n]+")
_NUM_SAMPLE_DIALOGUES = 4000


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the vocabulary on the training dialogues; the same seed gives the same one."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(_PIECE, behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(_sample_texts(seed), _trainer())
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in MARKUP_TOKENS])
    return _with_template(tokenizer)


def _trainer() -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(MARKUP_TOKENS),
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _sample_texts(seed: int) -> Iterator[str]:
    """The texts of some dialogues as the template writes them, without its own tokens."""
    blank = _with_template(Tokenizer(models.BPE()))
    for dialogue in islice(training_dialogues(seed), _NUM_SAMPLE_DIALOGUES):
        text = render(blank, dialogue)
        for token in (*SPECIAL_TOKENS, *MARKUP_TOKENS):
            text = text.replace(token, "\n")
        yield text


def _with_template(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PADDING,
        additional_special_tokens=[TURN_START],
        chat_template=TEMPLATE_FILE.read_text(encoding="utf-8"),
        model_max_length=MAX_MODEL_LEN,
        clean_up_tokenization_spaces=False,
    )


def render(
    tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue, *, only_prompt: bool = False
) -> str:
    """The dialogue as text; `only_prompt` leaves out its last message and asks for it."""
    messages = dialogue.messages[:-1] if only_prompt else dialogue.messages
    text = tokenizer.apply_chat_template(
        cast("list[dict[str, str]]", messages),
        tools=[dict(tool) for tool in dialogue.tools] or None,
        add_generation_prompt=only_prompt,
        tokenize=False,
        enable_thinking=dialogue.thinking,
    )
    return cast("str", text)


@dataclass(frozen=True)
class WeightedTokens:
    """The tokens of a dialogue with how much the model must learn to write each of them."""

    token_ids: list[int]
    weights: list[float]


class DialogueEncoder:
    """Turns dialogues into tokens; only what the assistant writes, end tokens too, has weight.

    A message of n tokens weighs √n in all, so that long ones do not drown the short. Its end token
    weighs 1: knowing when to stop is one token, however long the answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._opening = self._encode(f"{TURN_START}assistant\n")
        self._end_token_id = cast("int", tokenizer.eos_token_id)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    def encode(self, dialogue: Dialogue) -> WeightedTokens:
        """The dialogue's tokens; of a thinking one only the last message is learnt.

        The template leaves out the thoughts of earlier messages, and a model that learnt those
        messages would learn not to think.
        """
        token_ids = self._encode(render(self._tokenizer, dialogue))
        spans = self._assistant_spans(token_ids)
        weights = [0.0] * len(token_ids)
        for span in spans[-1:] if dialogue.thinking else spans:
            weights[span.start : span.stop] = [len(span) ** -0.5] * len(span)
            weights[span.stop - 1] = 1.0
        return WeightedTokens(token_ids, weights)

    def _assistant_spans(self, token_ids: list[int]) -> list[range]:
        num_opening = len(self._opening)
        starts = [
            start + num_opening
            for start in range(len(token_ids) - num_opening)
            if token_ids[start : start + num_opening] == self._opening
        ]
        return [range(start, token_ids.index(self._end_token_id, start) + 1) for start in starts]
