"""The marks of most thinking models, as a tokenizer room finds them."""

from shared.parts import ThoughtMarks

THINK = ThoughtMarks(
    template={
        "start_anchor_pattern": r"\A",
        "fields": {
            "thinking": {"open_pattern": r"\A\s{0,32}<think>", "close": "</think>"},
            "content": {},
        },
    },
    prefix="",
    special_ids=(),
    come_first=True,
)
