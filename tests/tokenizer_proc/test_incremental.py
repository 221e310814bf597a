"""`IncrementalDetokenizer` says what `Tokenizer.decode` says, for three kinds of tokenizer."""

import json
import random
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import ByteFallback, DecodeStream, Fuse, Replace, Strip

from tests.examples import examples
from tokenizer_proc.incremental import IncrementalDetokenizer

LINES = [
    "Hello world, how are you today? I am fine.",
    "def f(x):\n    return x + 1\n",
    "café naïve — 你好，世界。今天天气很好",
    "مرحبا بالعالم كيف حالك",
    "emoji 😀😀 👩‍👩‍👧 🎉 and text",
    "日本語のテキスト、안녕하세요 세계",
]
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def train_byte_level() -> Tokenizer:
    """GPT-2's kind: every token is bytes, and merges may cross the borders of characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def train_byte_fallback() -> Tokenizer:
    """Llama 2's kind: words with a space sign, and byte tokens for what the vocabulary lacks."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [Replace("▁", " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", *BYTE_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator([line for line in LINES if "日" not in line], trainer)
    state = json.loads(tokenizer.to_str())
    added = state["added_tokens"]
    state["added_tokens"] = [token for token in added if token["content"] not in BYTE_TOKENS]
    return Tokenizer.from_str(json.dumps(state))


def train_unigram() -> Tokenizer:
    """T5's kind."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 4, trainer)
    return tokenizer


BYTE_LEVEL = train_byte_level()
BYTE_FALLBACK = train_byte_fallback()
UNIGRAM = train_unigram()
KINDS = {"byte-level": BYTE_LEVEL, "byte-fallback": BYTE_FALLBACK, "unigram": UNIGRAM}


def random_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    # Four ids beyond the vocabulary: a padded embedding lets a model sample those too.
    return st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), max_size=40)


def byte_ids(*values: int) -> list[int]:
    vocab = BYTE_FALLBACK.get_vocab()
    return [vocab[BYTE_TOKENS[value]] for value in values]


def stream(tokenizer: Tokenizer, ids: list[int], tail: list[int], skip: bool = True) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, tail, skip)
    return [detokenizer.add(token_id) for token_id in ids] + [detokenizer.flush()]


def continuation(tokenizer: Tokenizer, ids: list[int], tail: list[int], skip: bool = True) -> str:
    whole = tokenizer.decode(tail + ids, skip_special_tokens=skip)
    return whole[len(tokenizer.decode(tail, skip_special_tokens=skip)) :]


def assert_law(tokenizer: Tokenizer, ids: list[int], tail: list[int], skip: bool = True) -> None:
    """All that `decode` gives comes out, but for what is broken at its end."""
    output = "".join(stream(tokenizer, ids, tail, skip))
    expected = continuation(tokenizer, ids, tail, skip)
    assert expected.startswith(output)
    assert set(expected[len(output) :]) <= {REPLACEMENT}


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, UNIGRAM], ids=["byte-level", "unigram"])
@given(data=st.data())
@examples(300)
def test_random_ids_give_what_decode_gives(
    tokenizer: Tokenizer, skip: bool, data: st.DataObject
) -> None:
    ids, tail = data.draw(random_ids(tokenizer)), data.draw(random_ids(tokenizer))
    assert_law(tokenizer, ids, tail[:6], skip)


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)
@given(text=st.text(st.sampled_from("".join(LINES))), cut=st.integers(0, 8))
@examples(300)
def test_real_text_is_streamed_exactly(tokenizer: Tokenizer, text: str, cut: int) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    while tokenizer.decode(ids[:cut]).endswith(REPLACEMENT):
        cut -= 1
    assert "".join(stream(tokenizer, ids[cut:], ids[:cut])) == continuation(
        tokenizer, ids[cut:], ids[:cut]
    )


@given(chars=st.text(st.sampled_from("é你😀a")), ids=random_ids(BYTE_FALLBACK))
@examples(300)
def test_whole_byte_runs_are_streamed_exactly(chars: str, ids: list[int]) -> None:
    """Random ids without single bytes, around characters spelt in bytes."""
    first_byte, last_byte = byte_ids(0, 255)
    spelt = byte_ids(*chars.encode())
    words = [token_id for token_id in ids if not first_byte <= token_id <= last_byte]
    assert_law(BYTE_FALLBACK, words + spelt + words + spelt, [])


@given(ids=random_ids(BYTE_FALLBACK), tail=random_ids(BYTE_FALLBACK))
@examples(300)
def test_broken_byte_runs_lose_nothing_and_hold_nothing_back(
    ids: list[int], tail: list[int]
) -> None:
    """`decode` spoils a whole run for one bad byte; the stream must say at least what it says."""
    output = iter("".join(stream(BYTE_FALLBACK, ids, tail[:6])))
    expected = continuation(BYTE_FALLBACK, ids, tail[:6]).replace(REPLACEMENT, "")
    assert all(char in output for char in expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0xF0, 0x9F, 0x98, 0x80), "😀"),
        ((0xFF, 0xF0, 0x9F, 0x98, 0x80), "\ufffd😀"),
        ((0xE2, 0x82, 0xF0, 0x9F, 0x98, 0x80), "\ufffd\ufffd😀"),
        ((0xFF, 0xC3, 0xA9, 0xE2, 0x82, 0xAC), "\ufffdé€"),
        ((0xFF,) * 20, "\ufffd" * 17),
        ((0xF0, 0x9F, 0x98), ""),
    ],
)
def test_bad_bytes_come_out_and_spoil_nothing_after_them(
    values: tuple[int, ...], expected: str
) -> None:
    ids = byte_ids(*values)
    assert "".join(stream(BYTE_FALLBACK, ids, [])) == expected


def test_an_invalid_prefix_loses_no_text() -> None:
    """A broken character after a good one makes `DecodeStream` raise, huggingface/tokenizers."""
    word = BYTE_FALLBACK.encode("Hello", add_special_tokens=False).ids
    ids = word + byte_ids(0xF0, 0x9F, 0x98, 0x80, 0xE2) + word
    bare = DecodeStream(skip_special_tokens=True)
    with pytest.raises(Exception, match="Invalid prefix encountered"):
        [bare.step(BYTE_FALLBACK, token_id) for token_id in ids]
    assert "".join(stream(BYTE_FALLBACK, ids, [])) == "Hello😀\ufffd Hello"


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)
def test_the_first_word_keeps_its_space(tokenizer: Tokenizer) -> None:
    spaced = " Hello" if tokenizer is BYTE_LEVEL else "Hello"  # the others add the space sign
    prompt, ids = tokenizer.encode("Hello").ids, tokenizer.encode(spaced).ids
    assert "".join(stream(tokenizer, ids, prompt)) == " Hello"


@pytest.mark.parametrize("end", [(0xE2, 0x82), (0xFF,) * 9])
def test_a_broken_end_of_the_prompt_does_not_leak_the_prompt(end: tuple[int, ...]) -> None:
    prompt = BYTE_FALLBACK.encode("secret").ids + byte_ids(*end)
    ids = byte_ids(*b"open")
    assert "".join(stream(BYTE_FALLBACK, ids, prompt)) == "open"


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)
def test_special_tokens_are_silent_and_break_no_character(tokenizer: Tokenizer) -> None:
    special = min(tokenizer.get_added_tokens_decoder())
    ids = tokenizer.encode("fine 世 text").ids
    spread = [token_id for real in ids for token_id in (real, *[special] * 9)]
    assert stream(tokenizer, spread, ids)[::10] == stream(tokenizer, ids, ids)


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)
def test_cost_per_token_does_not_grow(tokenizer: Tokenizer) -> None:
    """The worst case: ids that never end a character, and then silent ones."""
    choice = random.Random(0)
    bad = byte_ids(0xFF) if tokenizer is BYTE_FALLBACK else [0]
    ids = [*choice.choices(range(tokenizer.get_vocab_size()), k=4000), *bad * 4000]
    assert timeit.timeit(lambda: stream(tokenizer, ids, []), number=1) < 2
