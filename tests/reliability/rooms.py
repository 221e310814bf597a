"""Starts one room of a server with planted faults: the real room, the plan between it and its work.

The worker's model is the formula. Started as `python -P -m tests.reliability.rooms CONFIG.json`.
"""

import logging
import os
import sys
import time
from functools import partial
from typing import Any

from shared import process
from shared.config import Identity
from shared.mailbox import Mailbox
from shared.messages import Generate, Message
from shared.parts import Prompt
from shared.process import ROOM_KINDS, RoomKind
from tests.reliability.faults import At, FaultPlan, load_faults, perform

SENT_SECONDS = 0.2  # in which what was sent before has left the process
PLANTED = ("tokenizer", "detokenizer", "worker")


def plan_of(identity: Identity) -> FaultPlan:
    """The plan for this life of a room."""
    return FaultPlan(load_faults(identity.run_directory), life=identity.epoch)


def run_tokenizer(config: Any, mailbox: Mailbox) -> None:
    """The tokenizer, whose encoder fails as planned."""
    from tokenizer_proc import tokenizer
    from tokenizer_proc.prompt import PromptEncoder

    plan = plan_of(config.identity)

    class FaultyEncoder(PromptEncoder):
        def encode(self, prompt: Prompt, context: int | None = None) -> list[int]:
            plan.strike(At.ENCODE, repr(prompt))
            return super().encode(prompt, context)

    def send(room: str, message: Message) -> bool:
        if isinstance(message, Generate):
            fault = plan.due(At.PASS_ON, repr(message.text.options.stop))
            if fault is not None:
                time.sleep(SENT_SECONDS)
                perform(fault)
        return Mailbox.send(mailbox, room, message)

    plan.strike(At.LOAD, config.identity.room)
    mailbox.send = send  # type: ignore[method-assign]  # planted
    tokenizer.PromptEncoder = FaultyEncoder  # type: ignore[attr-defined]  # planted
    tokenizer.run(config, mailbox)


def run_detokenizer(config: Any, mailbox: Mailbox) -> None:
    """The detokenizer, whose answers fail as planned."""
    from tokenizer_proc import detokenizer
    from tokenizer_proc.answer import Answer

    plan = plan_of(config.identity)

    class FaultyAnswer(Answer):
        def add(self, *arguments: Any) -> Any:
            plan.strike(At.TEXT, repr(self._start.options.stop), self.num_tokens)
            return super().add(*arguments)

    plan.strike(At.LOAD, config.identity.room)
    detokenizer.Answer = FaultyAnswer  # type: ignore[attr-defined]  # planted
    detokenizer.run(config, mailbox)


def run_worker(config: Any, mailbox: Mailbox) -> None:
    """The formula's worker, whose runner fails as planned."""
    from benchmarks.formula import worker
    from tests.reliability.runner import FaultyRunner, vocabulary_of

    plan = plan_of(config.identity)
    plan.strike(At.LOAD, config.identity.room)
    worker.run(config, mailbox, partial(FaultyRunner, plan=plan, vocabulary=vocabulary_of(config)))


class FaultyMailbox(Mailbox):
    """Joins the others as planned."""

    def join(self) -> None:
        """Says hello, unless it never does."""
        plan_of(self.identity).strike(At.HELLO, self.identity.room)
        super().join()


if __name__ == "__main__":
    for kind in PLANTED:
        entry = f"tests.reliability.rooms:run_{kind}"
        ROOM_KINDS[kind] = RoomKind(entry, ROOM_KINDS[kind].config_class)
    process.Mailbox = FaultyMailbox  # type: ignore[attr-defined]  # planted
    status = process.main(sys.argv[1])
    logging.shutdown()
    os._exit(status)  # as shared/process.py does
