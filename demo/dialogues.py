"""Dialogues for training and tasks for evaluation, out of the skills' exchanges.

Every exchange of a training dialogue has a key of the training side of the split; the last
exchange of an evaluation task has a held-out one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random

from demo.everyday import everyday
from demo.skills import (
    Generator,
    count,
    introduce,
    recall,
    recall_nothing,
    reverse,
    same_answer_after_thought,
    same_text,
    sort_items,
    spell,
    sum_pair,
    think,
)
from demo.task import Dialogue, Exchange, HeldOutTask, JsonObject, draw
from demo.tool_tasks import call_and_answer, offer_some, refuse, same_calls_or_text
from demo.tools import OfferedTool

SKILLS = ("everyday", "spell", "reverse", "sort", "sum", "name", "tools", "think", "count")

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "Be brief.",
    "Answer the user.",
    "You are a helpful AI assistant. Answer in one sentence.",
)
_PLAIN_GENERATORS: dict[str, Generator] = {
    "everyday": everyday,
    "spell": spell,
    "reverse": reverse,
    "sort": sort_items,
    "sum": sum_pair,
    "count": count,
}
# Weights follow difficulty: a skill that lags gets more exchanges.
_PLAIN_WEIGHTS = {
    "everyday": 2.5,
    "spell": 2.5,
    "reverse": 4.5,
    "sort": 4.0,
    "sum": 6.5,
    "count": 2.5,
    "name": 3.0,
    "refuse": 1.0,
}


@dataclass
class _PlainTalk:
    """A dialogue without tools under way; remembers who introduced themselves."""

    rng: Random
    introduction: Exchange | None = None
    exchanges: list[Exchange] = field(default_factory=list)

    def extend(self) -> None:
        """Add one exchange of a skill drawn by weight."""
        names, weights = tuple(_PLAIN_WEIGHTS), tuple(_PLAIN_WEIGHTS.values())
        skill = self.rng.choices(names, weights)[0]
        self.exchanges.append(self._make(skill))

    def _make(self, skill: str) -> Exchange:
        if skill == "name":
            return self._name()
        if skill == "refuse":
            return draw(partial(refuse, offered=()), self.rng, held_out=False)
        return draw(_PLAIN_GENERATORS[skill], self.rng, held_out=False)

    def _name(self) -> Exchange:
        if self.introduction is not None and self.rng.random() < 0.8:
            return recall(self.rng, self.introduction)
        if self.introduction is None and self.rng.random() < 0.15:
            return draw(recall_nothing, self.rng, held_out=False)
        self.introduction = draw(introduce, self.rng, held_out=False)
        return self.introduction


def training_dialogues(seed: int) -> Iterator[Dialogue]:
    """Dialogues without end; the same seed gives the same ones."""
    rng = Random(seed)
    makers = (_plain_dialogue, _tools_dialogue, _thinking_dialogue)
    while True:
        yield rng.choices(makers, (63, 20, 17))[0](rng)


def _plain_dialogue(rng: Random) -> Dialogue:
    # A few dialogues are long, so that attention over many turns is trained as well.
    num_exchanges = rng.randint(10, 20) if rng.random() < 0.02 else rng.choice((1, 1, 2, 3, 4))
    talk = _PlainTalk(rng)
    for _ in range(num_exchanges):
        talk.extend()
    return _dialogue(rng, talk.exchanges)


def _tools_dialogue(rng: Random) -> Dialogue:
    offered = offer_some(rng)
    exchanges = [_tools_exchange(rng, offered) for _ in range(rng.choice((1, 1, 2, 3)))]
    return _dialogue(rng, exchanges, offered)


def _tools_exchange(
    rng: Random, offered: tuple[OfferedTool, ...], *, held_out: bool = False
) -> Exchange:
    makers: tuple[Generator, ...] = (
        partial(call_and_answer, offered=offered),
        partial(refuse, offered=offered),
        everyday,
    )
    return draw(rng.choices(makers, (70, 20, 10))[0], rng, held_out=held_out)


def _thinking_dialogue(rng: Random) -> Dialogue:
    num_exchanges = rng.choice((1, 1, 1, 2))
    exchanges = [draw(think, rng, held_out=False) for _ in range(num_exchanges)]
    return _dialogue(rng, exchanges, thinking=True)


def _dialogue(
    rng: Random,
    exchanges: list[Exchange],
    offered: tuple[OfferedTool, ...] = (),
    *,
    thinking: bool = False,
) -> Dialogue:
    messages = [message for exchange in exchanges for message in exchange.messages]
    if rng.random() < 0.3:
        messages.insert(0, {"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)})
    keys = tuple(exchange.key for exchange in exchanges)
    return Dialogue(tuple(messages), keys, tuple(tool.schema for tool in offered), thinking)


def held_out_tasks(skill: str, num_tasks: int, seed: int) -> list[HeldOutTask]:
    """Tasks of one skill whose last exchange is held out; the same seed gives the same ones."""
    rng = Random(f"{skill}:{seed}")
    return [HeldOutTask(skill, _held_out_dialogue(rng, skill)) for _ in range(num_tasks)]


def _held_out_dialogue(rng: Random, skill: str) -> Dialogue:
    match skill:
        case "name":
            return _dialogue(rng, _held_out_name(rng))
        case "tools":
            return _held_out_tools(rng)
        case "think":
            return _dialogue(rng, [draw(think, rng, held_out=True)], thinking=True)
        case _:
            return _dialogue(rng, [draw(_PLAIN_GENERATORS[skill], rng, held_out=True)])


def _held_out_name(rng: Random) -> list[Exchange]:
    introduction = draw(introduce, rng, held_out=True)
    between = [draw(everyday, rng, held_out=False) for _ in range(rng.randrange(3))]
    return [introduction, *between, recall(rng, introduction)]


def _held_out_tools(rng: Random) -> Dialogue:
    """Stops at the call as often as it goes on to the answer after the result."""
    offered = offer_some(rng)
    dialogue = _dialogue(rng, [_tools_exchange(rng, offered, held_out=True)], offered)
    calls = [i for i, message in enumerate(dialogue.messages) if "tool_calls" in message]
    if not calls or rng.random() < 0.5:
        return dialogue
    return Dialogue(dialogue.messages[: calls[0] + 1], dialogue.keys, dialogue.tools)


def is_right(task: HeldOutTask, reply: str) -> bool:
    """Whether a reply, without its end token, answers the task."""
    reference: JsonObject = task.reference
    match task.skill:
        case "tools":
            return same_calls_or_text(reference, reply)
        case "think":
            return same_answer_after_thought(reference, reply)
        case _:
            return same_text(reference, reply)
