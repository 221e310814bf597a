"""A `Tokenize` becomes a prompt within the context, with as long an answer as that leaves."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadRequest
from shared.messages import Generate, PromptAccepted, Tokenize
from shared.parts import ChatPrompt, ModelFacts, Prompt, TextOptions, TextPrompt
from shared.sampling import MAX_PROMPT_LOGPROBS, MAX_STOP_TOKENS, SamplingParams
from tests.builders import GREEDY, ROUTE
from tests.tokenizer_proc.prompt_cases import ENCODERS, KINDS, LLAMA, byte_fallback, dressed, id_of
from tests.tokenizer_proc.vocabularies import make_byte_tokenizer
from tokenizer_proc.generation import accept
from tokenizer_proc.prompt import PromptEncoder

CONTEXT = 100
BYTES = PromptEncoder(make_byte_tokenizer())  # one token a byte, and no first token


def text(content: str, **fields: Any) -> Prompt:
    return Prompt(text=TextPrompt(content), param="prompt", **fields)


def chat(content: str, **fields: Any) -> Prompt:
    return Prompt(chat=ChatPrompt(({"role": "user", "content": content},), {}), **fields)


def ids(*token_ids: int) -> Prompt:
    return Prompt(token_ids=token_ids, param="prompt")


def tokenize(prompt: Prompt, **fields: Any) -> Tokenize:
    defaults: dict[str, Any] = {
        "max_tokens": 5, "max_tokens_param": "max_tokens", "max_prompt_scores": MAX_PROMPT_LOGPROBS,
        "is_strict": False, "echo": False, "text": TextOptions(),
        "sampling": GREEDY, "num_choices": 1, "cache_salt": "",
    }  # fmt: skip
    return Tokenize("a", ROUTE, 0, prompt, **{**defaults, **fields})


def facts(context: int, vocab_size: int = 100_000) -> ModelFacts:
    return ModelFacts(context, vocab_size, sampling_defaults={}, details={})


def generate(
    prompt: Prompt, encoder: PromptEncoder = BYTES, context: int = CONTEXT, **fields: Any
) -> Generate:
    return accept(tokenize(prompt, **fields), encoder, facts(context))[1]


def accepted(prompt: Prompt, encoder: PromptEncoder = BYTES, **fields: Any) -> PromptAccepted:
    return accept(tokenize(prompt, **fields), encoder, facts(CONTEXT))[0]


def refusal(prompt: Prompt, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        generate(prompt, **fields)
    return caught.value


# ── the context ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("asked", [None, 95, 10**6])
def test_the_answer_is_clamped_to_what_the_context_leaves(asked: int | None) -> None:
    assert generate(text("x" * 10), max_tokens=asked).max_tokens == CONTEXT - 10


def test_a_shorter_answer_is_as_long_as_was_asked_for() -> None:
    assert generate(text("x" * 10), max_tokens=90, is_strict=True).max_tokens == 90


def test_a_strict_answer_beyond_the_context_is_refused() -> None:
    error = refusal(text("x" * 10), max_tokens=91, is_strict=True)
    assert (error.code, error.param) == ("context_length_exceeded", "max_tokens")
    assert error.message.startswith("This model's maximum context length is 100 tokens. However, ")
    assert "'max_tokens' is 91 and your prompt resulted in 10 tokens" in error.message


def test_a_prompt_that_is_only_scored_may_fill_the_context() -> None:
    scored = generate(text("x" * CONTEXT), max_tokens=0, sampling=GREEDY)
    assert (len(scored.prompt_token_ids), scored.max_tokens) == (CONTEXT, 0)
    error = refusal(text("x" * (CONTEXT + 1)), max_tokens=0)
    assert (error.code, error.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (text("x" * CONTEXT), "prompt"),
        (ids(*[1] * CONTEXT), "prompt"),
        (chat("x" * 90), "messages"),
    ],
)
def test_a_prompt_that_leaves_nothing_is_refused_in_the_words_that_clients_look_for(
    prompt: Prompt, field: str
) -> None:
    error = refusal(prompt)
    num_tokens = len(BYTES.encode(prompt))
    assert (error.code, error.param) == ("context_length_exceeded", field)
    assert error.message == (
        f"This model's maximum context length is 100 tokens. However, your {field} resulted in "
        f"{num_tokens} tokens. Please reduce the length of the {field}."
    )


@pytest.mark.parametrize("prompt", [text(""), ids()])
def test_a_prompt_without_a_token_is_refused(prompt: Prompt) -> None:
    error = refusal(prompt)
    assert (error.code, error.param) == ("invalid_value", "prompt")


def test_an_empty_conversation_is_refused() -> None:
    encoder = PromptEncoder(dressed(make_byte_tokenizer().backend_tokenizer, "{{ '' }}"))
    error = refusal(chat("hello"), encoder=encoder)
    assert (error.code, error.param) == ("invalid_value", "messages")


def test_an_empty_text_is_a_prompt_where_the_tokenizer_begins_it() -> None:
    made = generate(text(""), encoder=ENCODERS["llama"])
    assert made.prompt_token_ids == (id_of("llama", "<s>"),)


# ── truncation ───────────────────────────────────────────────────────────────────────────────────


@given(num_tokens=st.integers(1, 300), num_kept=st.integers(1, 99))
def test_truncation_keeps_the_last_ids(num_tokens: int, num_kept: int) -> None:
    content = "".join(chr(97 + n % 26) for n in range(num_tokens))
    whole = BYTES.encode(text(content))
    made = generate(text(content, truncate_to=num_kept))
    assert made.prompt_token_ids == tuple(whole[-num_kept:])


@pytest.mark.parametrize(
    ("max_tokens", "num_kept"), [(None, CONTEXT - 1), (1, CONTEXT - 1), (30, 70), (0, CONTEXT)]
)
def test_minus_one_keeps_what_the_context_takes_beside_the_answer(
    max_tokens: int | None, num_kept: int
) -> None:
    made = generate(text("x" * 1000 + "y", truncate_to=-1), max_tokens=max_tokens)
    assert len(made.prompt_token_ids) == num_kept
    assert made.prompt_token_ids[-2:] == tuple(BYTES.encode(text("xy")))


def test_an_answer_that_leaves_no_room_for_a_truncated_prompt_is_refused() -> None:
    name = "max_completion_tokens"
    strict = {"max_tokens": CONTEXT, "is_strict": True, "max_tokens_param": name}
    assert refusal(text("x", truncate_to=-1), **strict).param == name


def test_an_answer_that_may_be_shorter_leaves_the_context_to_a_truncated_prompt() -> None:
    made = generate(text("x" * 300, truncate_to=-1), max_tokens=CONTEXT)
    assert (len(made.prompt_token_ids), made.max_tokens) == (CONTEXT - 1, 1)


def test_what_is_truncated_has_to_fit_all_the_same() -> None:
    error = refusal(text("x" * 300, truncate_to=200))
    assert error.code == "context_length_exceeded"
    assert "200 tokens" in error.message


def test_a_long_conversation_is_truncated_and_answered() -> None:
    whole = BYTES.encode(chat("x" * 50_000))
    made = generate(chat("x" * 50_000, truncate_to=-1), max_tokens=20)
    assert made.prompt_token_ids == tuple(whole[-80:])
    assert made.text.prompt_tail == tuple(whole[-8:])


# ── scores and echo ──────────────────────────────────────────────────────────────────────────────


def test_a_prompt_whose_logprobs_are_wanted_is_told_to_the_detokenizer() -> None:
    sampling = SamplingParams(seed=1, num_prompt_logprobs=0)
    made = generate(text("hello"), sampling=sampling)
    assert made.text.scored_token_ids == made.prompt_token_ids
    assert generate(text("hello")).text.scored_token_ids == ()


@pytest.mark.parametrize("num_logprobs", [0, 4])
def test_more_logprobs_of_a_prompt_than_allowed_are_refused(num_logprobs: int) -> None:
    most = MAX_PROMPT_LOGPROBS // (num_logprobs + 1)
    sampling = SamplingParams(seed=1, num_prompt_logprobs=num_logprobs)
    fields: dict[str, Any] = {"sampling": sampling, "context": 10**6}
    assert generate(ids(*[1] * most), **fields).text.scored_token_ids
    error = refusal(ids(*[1] * (most + 1)), **fields)
    assert (error.code, error.param) == ("invalid_value", "logprobs")
    for number in (most + 1, num_logprobs + 1, MAX_PROMPT_LOGPROBS):
        assert str(number) in error.message


def test_a_text_is_echoed_as_it_was_given() -> None:
    content = "  héllo</s><|im_end|> "
    for encoder in (BYTES, ENCODERS["llama"], ENCODERS["unigram"]):
        assert accepted(text(content), encoder, echo=True).prompt_text == content
    assert accepted(text(content)).prompt_text is None


def test_other_prompts_are_echoed_as_their_ids_read() -> None:
    assert accepted(text("hello", truncate_to=3), echo=True).prompt_text == "llo"
    assert accepted(text("hello", truncate_to=5), echo=True).prompt_text == "hello"
    hello = BYTES.encode(text("<|im_end|>hello"))
    for skips, said in ((True, "hello"), (False, "<|im_end|>hello")):
        options = TextOptions(skips_special_tokens=skips)
        assert accepted(ids(*hello), echo=True, text=options).prompt_text == said


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"logit_bias": ((5, 1.0), (258, 1.0))}, "logit_bias"),
        ({"logit_bias": ((9_999_999_999, 1.0),)}, "logit_bias"),
        ({"stop_token_ids": (0, 258)}, "stop_token_ids"),
    ],
)
def test_a_token_that_the_model_does_not_have_is_the_callers_mistake(
    settings: dict[str, Any], param: str
) -> None:
    error = refusal(text("hello"), sampling=SamplingParams(seed=1, **settings))
    assert (error.code, error.param) == ("invalid_value", param)
    assert "258" in error.message


def test_every_token_of_the_vocabulary_may_be_biased_and_stopped_at() -> None:
    sampling = SamplingParams(seed=1, logit_bias=((257, 1.0),), stop_token_ids=(257,))
    made = generate(text("hello"), sampling=sampling)
    assert made.sampling == sampling
    assert made.text.stop_token_ids == (257,)


@pytest.mark.parametrize(("asked", "most"), [(None, 95), (7, 7), (0, 0)])
def test_min_tokens_is_clamped_with_the_answer(asked: int | None, most: int) -> None:
    sampling = SamplingParams(seed=1, min_tokens=10**6)
    made = generate(text("hello"), sampling=sampling, max_tokens=asked)
    assert made.sampling.min_tokens == made.text.min_tokens == most


# ── fill in the middle ───────────────────────────────────────────────────────────────────────────


@pytest.fixture(name="filler")
def make_filler() -> PromptEncoder:
    """A vocabulary with Code Llama's tokens for filling in."""
    backend = byte_fallback()
    backend.add_special_tokens(["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"])
    return PromptEncoder(dressed(backend, LLAMA))


HOLE = Prompt(text=TextPrompt("def f", "return x"), param="prompt")


def test_a_middle_ends_at_its_own_token_which_is_not_the_callers(filler: PromptEncoder) -> None:
    end = len(KINDS["llama"]) + 3
    sampling = SamplingParams(seed=1, stop_token_ids=(7,))
    made = generate(HOLE, encoder=filler, sampling=sampling)
    assert made.sampling.stop_token_ids == (7, end)
    assert made.text.stop_token_ids == (7,)
    ignoring = SamplingParams(seed=1, ignore_eos=True)
    assert generate(HOLE, encoder=filler, sampling=ignoring).sampling == ignoring


def test_the_callers_tokens_to_stop_at_leave_room_for_it(filler: PromptEncoder) -> None:
    sampling = SamplingParams(seed=1, stop_token_ids=tuple(range(MAX_STOP_TOKENS)))
    assert generate(text("def f"), encoder=filler, sampling=sampling).sampling == sampling
    assert refusal(HOLE, encoder=filler, sampling=sampling).param == "stop_token_ids"


@pytest.mark.parametrize("truncate_to", [-1, 5])
def test_a_prompt_with_a_hole_is_not_truncated(filler: PromptEncoder, truncate_to: int) -> None:
    prompt = Prompt(text=HOLE.text, param="prompt", truncate_to=truncate_to)
    assert refusal(prompt, encoder=filler).param == "truncate_prompt_tokens"


def test_a_token_that_the_model_lacks_is_refused_by_the_field_that_holds_it() -> None:
    for prompt, param in ((ids(1, 200), "prompt"), (text("~"), "prompt"), (chat("~"), "messages")):
        with pytest.raises(BadRequest, match="this model has 50") as caught:
            accept(tokenize(prompt), BYTES, facts(CONTEXT, vocab_size=50))
        assert caught.value.param == param
    biased = replace(GREEDY, logit_bias=((200, 1.0),))
    with pytest.raises(BadRequest) as caught:
        accept(tokenize(ids(1), sampling=biased), BYTES, facts(CONTEXT, vocab_size=50))
    assert caught.value.param == "logit_bias"
