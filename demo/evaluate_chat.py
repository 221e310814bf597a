"""Asks the chat model held-out questions of every skill: `python -m demo.evaluate_chat`.

Plain transformers, greedy. Prints a table; exits with 1 if a skill falls short.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from demo.chat_tokenizer import CHAT_FOLDER, PADDING, TURN_END, render
from demo.dialogues import SKILLS, held_out_tasks, is_right
from demo.task import HeldOutTask

REQUIRED_ACCURACY = 0.9
# "1, 2, …, 100" takes 290 tokens, the longest answer there is.
_MAX_NEW_TOKENS = 320
_TASKS_PER_BATCH = 40


@dataclass(frozen=True)
class Graded:
    """A task with what the model replied to it."""

    task: HeldOutTask
    prompt: str
    reply: str
    is_right: bool


class ChatModel:
    """The committed model, in float32, answering greedily."""

    def __init__(self, folder: Path = CHAT_FOLDER) -> None:
        self.tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder))
        self.tokenizer.padding_side = "left"
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def replies(self, prompts: list[str]) -> list[str]:
        """The reply to each prompt, with its special tokens."""
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True)
        num_prompt_tokens = inputs["input_ids"].shape[1]
        output = self.model.generate(  # type: ignore[misc]  # its self is typed as a protocol
            **inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False
        )
        written = cast("torch.Tensor", output)[:, num_prompt_tokens:]  # [prompt, new token]
        return [self._until_padding(row) for row in written]

    def _until_padding(self, written: torch.Tensor) -> str:
        text = cast("str", self.tokenizer.decode(written))
        return text.split(PADDING)[0]

    def grade(self, tasks: list[HeldOutTask]) -> list[Graded]:
        """Ask every task; tasks of like length go together."""
        prompts = [
            (render(self.tokenizer, task.dialogue, only_prompt=True), task) for task in tasks
        ]
        prompts.sort(key=lambda pair: len(pair[0]))
        graded: list[Graded] = []
        for start in range(0, len(prompts), _TASKS_PER_BATCH):
            batch = prompts[start : start + _TASKS_PER_BATCH]
            replies = self.replies([prompt for prompt, _ in batch])
            graded += [
                self._graded(*pair, reply) for pair, reply in zip(batch, replies, strict=True)
            ]
        return graded

    def _graded(self, prompt: str, task: HeldOutTask, reply: str) -> Graded:
        """A reply that does not end with the end token is wrong, whatever it says."""
        right = reply.endswith(TURN_END) and is_right(task, reply.removesuffix(TURN_END))
        return Graded(task, prompt, reply, right)


def accuracy(graded: list[Graded]) -> float:
    """The share of right replies."""
    return sum(one.is_right for one in graded) / len(graded)


def evaluate(chat: ChatModel, num_tasks: int, seed: int, *, show_errors: bool) -> bool:
    """Print one line per skill; whether all reach the required accuracy."""
    worst = 1.0
    for skill in SKILLS:
        graded = chat.grade(held_out_tasks(skill, num_tasks, seed))
        print(f"{skill:10}{sum(g.is_right for g in graded):5} / {num_tasks}{accuracy(graded):8.1%}")
        worst = min(worst, accuracy(graded))
        if show_errors:
            _print_errors(graded)
    return worst >= REQUIRED_ACCURACY


def _print_errors(graded: list[Graded]) -> None:
    for one in graded:
        if not one.is_right:
            print(f"    {one.prompt!r} gave {one.reply!r}, not {one.task.reference!r}")


def main() -> int:
    """Read the arguments and evaluate; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=CHAT_FOLDER, help="the model to ask")
    parser.add_argument("--num-tasks", type=int, default=200, help="questions per skill")
    parser.add_argument("--seed", type=int, default=0, help="of the questions")
    parser.add_argument("--show-errors", action="store_true", help="print the wrong replies")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to gain from more
    chat = ChatModel(arguments.folder)
    passed = evaluate(chat, arguments.num_tasks, arguments.seed, show_errors=arguments.show_errors)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
