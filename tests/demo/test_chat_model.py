"""The committed chat model: it loads, it is small, and it passes on what it never saw."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import cast

import pytest
import torch
from safetensors import safe_open

from demo.chat_tokenizer import CHAT_FOLDER, DialogueEncoder, render
from demo.dialogues import SKILLS, held_out_tasks, training_dialogues
from demo.evaluate_chat import REQUIRED_ACCURACY, ChatModel, accuracy
from demo.everyday import FACTS
from demo.task import Dialogue, assistant, user

NUM_TASKS = 200  # the figures of demo/README.md
FEW_TASKS = 40
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatModel]:
    """The model, on one thread: it is too small to gain from more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ChatModel()
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("num_tasks", [FEW_TASKS, pytest.param(NUM_TASKS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("skill", SKILLS)
def test_held_out_accuracy(chat: ChatModel, skill: str, num_tasks: int) -> None:
    graded = chat.grade(held_out_tasks(skill, num_tasks, seed=0))
    wrong = [(one.prompt, one.reply) for one in graded if not one.is_right]
    assert accuracy(graded) >= REQUIRED_ACCURACY, wrong


def test_it_has_one_to_three_million_parameters(chat: ChatModel) -> None:
    assert 1_000_000 <= chat.model.num_parameters() <= 3_000_000


def test_weights_are_stored_in_half_precision() -> None:
    with safe_open(CHAT_FOLDER / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.bfloat16}


def test_the_tokenizer_round_trips_every_answer(chat: ChatModel) -> None:
    for fact in FACTS:
        token_ids = chat.tokenizer(fact.answer)["input_ids"]
        assert chat.tokenizer.decode(token_ids) == fact.answer


def test_one_character_can_span_tokens(chat: ChatModel) -> None:
    assert len(chat.tokenizer("谢")["input_ids"]) > 1


def test_a_prompt_is_a_prefix_of_the_dialogue_in_tokens(chat: ChatModel) -> None:
    for dialogue in islice(training_dialogues(1), 300):
        prompt = chat.tokenizer(render(chat.tokenizer, dialogue, only_prompt=True))["input_ids"]
        token_ids = DialogueEncoder(chat.tokenizer).encode(dialogue).token_ids
        assert token_ids[: len(prompt)] == prompt


def test_only_what_the_assistant_writes_is_learnt(chat: ChatModel) -> None:
    dialogue = Dialogue((user("Hi!"), assistant("Hello."), user("Bye!"), assistant("Bye.")), ())
    tokens = DialogueEncoder(chat.tokenizer).encode(dialogue)
    pairs = zip(tokens.token_ids, tokens.weights, strict=True)
    learnt = chat.tokenizer.decode([token_id for token_id, weight in pairs if weight > 0])
    assert learnt == "Hello.<|im_end|>Bye.<|im_end|>"


def rendered(chat: ChatModel, messages: list[dict[str, object]], **options: object) -> str:
    apply = cast("Callable[..., str]", chat.tokenizer.apply_chat_template)
    return apply(messages, tokenize=False, **options)


def test_template_without_options_is_plain_chatml(chat: ChatModel) -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "Hi!"}]
    assert rendered(chat, messages, add_generation_prompt=True) == (
        "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    )


def test_template_joins_system_tools_and_thinking_in_one_block(chat: ChatModel) -> None:
    messages: list[dict[str, object]] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Hi!"},
    ]
    text = rendered(chat, messages, tools=[WEATHER], enable_thinking=True)
    system, turn = text.split("<|im_end|>\n", maxsplit=1)
    assert system.startswith("<|im_start|>system\nBe brief.\n\nYou can call these functions:")
    assert '"name": "get_weather"' in system
    assert system.endswith("Think first, between <think> and </think>, then answer.")
    assert turn == "<|im_start|>user\nHi!<|im_end|>\n"


@pytest.mark.parametrize("arguments", [{"city": "Paris"}, '{"city": "Paris"}'])
def test_template_writes_calls_as_the_model_does(chat: ChatModel, arguments: object) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages: list[dict[str, object]] = [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    assert rendered(chat, messages).endswith(
        "<|im_start|>assistant\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
        "<|im_end|>\n"
        "<|im_start|>tool\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
    )


def test_template_drops_earlier_thoughts(chat: ChatModel) -> None:
    messages: list[dict[str, object]] = [
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHello."},
        {"role": "user", "content": "Bye!"},
    ]
    assert "<|im_start|>assistant\nHello.<|im_end|>" in rendered(chat, messages)
