"""The faults of the server that most tests share: each is set off by a word that a request says."""

import random
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.models import DEMO_DIRECTORY
from tests.reliability.client import CHAT, COMPLETION
from tests.reliability.faults import At, Do, Fault
from tests.reliability.good import CANARY

STALL_SECONDS = 5  # of the server that is impatient
SLOW_SECONDS = 0.3


class Harm(NamedTuple):
    """A request that fails alone: the word that it says, and what its caller is told."""

    word: str
    status: int  # of an answer in one piece
    code: str
    is_told_in_stream: bool  # False: the prompt was never accepted, so a stream has a real status


HARMS = (
    Harm("boomtemplate", 400, "invalid_value", False),
    Harm("boomencode", 500, "internal_error", False),
    Harm("panicencode", 500, "internal_error", False),
    Harm("boomprefill", 500, "internal_error", True),
    Harm("boomdecode", 500, "internal_error", True),
    Harm("boomsample", 500, "internal_error", True),
    Harm("oomprefill", 500, "internal_error", True),
    Harm("oomdecode", 500, "internal_error", True),
    Harm("nanprefill", 500, "internal_error", True),
    Harm("nandecode", 500, "internal_error", True),
    Harm("boomtext", 500, "internal_error", True),
)

FAULTS = (
    Fault(At.ENCODE, Do.RAISE, "boomencode"),
    Fault(At.ENCODE, Do.PANIC, "panicencode"),
    Fault(At.ENCODE, Do.SEGV, "killencode"),
    Fault(At.ENCODE, Do.HANG, "hangencode"),
    Fault(At.PASS_ON, Do.EXIT, "losttext"),
    Fault(At.STEP, Do.RAISE, "boomprefill", step=0),
    Fault(At.STEP, Do.RAISE, "boomdecode", step=3),
    Fault(At.STEP, Do.RAISE, "boomonce", times=1),
    Fault(At.SAMPLE, Do.RAISE, "boomsample", step=2),
    Fault(At.STEP, Do.OOM, "oomprefill", step=0),
    Fault(At.STEP, Do.OOM, "oomdecode", step=3),
    Fault(At.STEP, Do.OOM, "oomonce", times=1),
    Fault(At.SAMPLE, Do.NAN, "nanprefill", step=0),
    Fault(At.SAMPLE, Do.NAN, "nandecode", step=3),
    Fault(At.STEP, Do.SLOW, "slowstep", seconds=SLOW_SECONDS),
    Fault(At.STEP, Do.STICKY, "lostgpu", step=3),
    Fault(At.STEP, Do.SEGV, "killprefill", step=0),
    Fault(At.STEP, Do.SEGV, "killdecode", step=3),
    Fault(At.STEP, Do.HANG, "hangstep", step=3),
    Fault(At.STEP, Do.EXIT, "quitstep", step=3),
    Fault(At.TEXT, Do.RAISE, "boomtext", step=3),
    Fault(At.TEXT, Do.SEGV, "killtext", step=3),
)

_PLANTED_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if 'boomtemplate' in message.content | string -%}{{- 1 // 0 -}}{%- endif -%}"
    "{%- endfor -%}"
)


def save_template(directory: Path) -> Path:
    """The demo model's chat template, which fails at a word."""
    template = (DEMO_DIRECTORY / "chat_template.jinja").read_text(encoding="utf-8")
    path = directory / "planted.jinja"
    path.write_text(_PLANTED_TEMPLATE + template, encoding="utf-8")
    return path


def saying(word: str, chance: random.Random, **fields: Any) -> tuple[str, dict[str, Any]]:
    """A request that sets off the fault of this word."""
    text = f"{CANARY} {chance.randrange(10**9)} {word}"
    body = {"temperature": 0, "max_tokens": 12, **fields}
    if word.endswith("text"):
        body["stop"] = [word]
    if chance.random() < 0.5 and word != "boomtemplate":
        return COMPLETION, {"prompt": text, **body}
    return CHAT, {"messages": [{"role": "user", "content": text}], **body}
