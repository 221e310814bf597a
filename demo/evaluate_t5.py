"""Asks the T5 model held-out prompts of every skill: `python -m demo.evaluate_t5`.

Plain transformers, greedy. Prints a table; exits with 1 if a skill falls short.
"""

import argparse
import sys
from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

from demo.t5_skills import T5_SKILLS, held_out_pairs
from demo.t5_tokenizer import END, PADDING, T5_FOLDER
from demo.task import Pair

REQUIRED_T5_ACCURACY = 0.95
_MAX_NEW_TOKENS = 60


class T5Model:
    """The committed model, in float32, answering greedily."""

    def __init__(self, folder: Path = T5_FOLDER) -> None:
        self.tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder))
        self.model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)

    def replies(self, prompts: list[str]) -> list[str]:
        """The reply to each prompt, with its end token."""
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True)
        output = self.model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        written = cast("torch.Tensor", output)[:, 1:]  # [prompt, new token]
        return [cast("str", self.tokenizer.decode(row)).split(PADDING)[0] for row in written]

    def wrong(self, pairs: list[Pair]) -> list[tuple[Pair, str]]:
        """The pairs whose reply is another than the answer with the end token, and the replies."""
        replies = self.replies([pair.prompt for pair in pairs])
        return [
            (pair, reply)
            for pair, reply in zip(pairs, replies, strict=True)
            if reply != f"{pair.answer}{END}"
        ]


def evaluate(t5: T5Model, num_pairs: int, seed: int, *, show_errors: bool) -> bool:
    """Print one line per skill; whether all reach the required accuracy."""
    worst = 1.0
    for skill in T5_SKILLS:
        wrong = t5.wrong(held_out_pairs(skill, num_pairs, seed))
        num_right = num_pairs - len(wrong)
        print(f"{skill:10}{num_right:5} / {num_pairs}{num_right / num_pairs:8.1%}")
        worst = min(worst, num_right / num_pairs)
        for pair, reply in wrong if show_errors else ():
            print(f"    {pair.prompt!r} gave {reply!r}, not {pair.answer!r}")
    return worst >= REQUIRED_T5_ACCURACY


def main() -> int:
    """Read the arguments and evaluate; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=T5_FOLDER, help="the model to ask")
    parser.add_argument("--num-pairs", type=int, default=200, help="prompts per skill")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--show-errors", action="store_true", help="print the wrong replies")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to gain from more
    t5 = T5Model(arguments.folder)
    passed = evaluate(t5, arguments.num_pairs, arguments.seed, show_errors=arguments.show_errors)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
