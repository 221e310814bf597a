"""What the models learn from: exchanges, dialogues, pairs and the split by hash.

Knows nothing of torch, of tokens or of any one skill.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeAlias, TypeVar

JsonObject: TypeAlias = Mapping[str, object]

# One key in ten is held out: its hash begins with a byte below this one.
HELD_OUT_BELOW_BYTE = 26


@dataclass(frozen=True)
class Exchange:
    """One user request with everything up to its answer; the last message is the answer.

    `key` names what is asked, without its wording: all wordings fall on one side of the split.
    """

    skill: str
    key: str
    messages: tuple[JsonObject, ...]


@dataclass(frozen=True)
class Pair:
    """What T5 reads and what it shall answer; `key` is as an exchange's."""

    skill: str
    key: str
    prompt: str
    answer: str


class Keyed(Protocol):
    """Whatever falls on one side of the split."""

    @property
    def key(self) -> str:
        """What is asked, without its wording."""


Drawn = TypeVar("Drawn", bound=Keyed)


@dataclass(frozen=True)
class Dialogue:
    """What one chat template call renders; the last message is an assistant's."""

    messages: tuple[JsonObject, ...]
    keys: tuple[str, ...]
    tools: tuple[JsonObject, ...] = ()
    thinking: bool = False


@dataclass(frozen=True)
class HeldOutTask:
    """A dialogue whose last message is the reference for what the model must answer."""

    skill: str
    dialogue: Dialogue

    @property
    def reference(self) -> JsonObject:
        """The assistant message to reproduce."""
        return self.dialogue.messages[-1]


def user(text: str) -> JsonObject:
    """A user message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> JsonObject:
    """An assistant message without tool calls."""
    return {"role": "assistant", "content": text}


def question(skill: str, key: str, prompt: str, answer: str) -> Exchange:
    """The exchange of one prompt and one answer."""
    return Exchange(skill, key, (user(prompt), assistant(answer)))


def is_held_out(key: str) -> bool:
    """Whether training must never see this key."""
    return hashlib.sha256(key.encode()).digest()[0] < HELD_OUT_BELOW_BYTE


def draw(make: Callable[[Random], Drawn], rng: Random, *, held_out: bool) -> Drawn:
    """Call `make` until what it makes falls on the wanted side of the split."""
    drawn = make(rng)
    while is_held_out(drawn.key) != held_out:
        drawn = make(rng)
    return drawn
