"""Trains the T5 model from nothing, tokenizer included: `python -m demo.train_t5`.

The same seed gives the same data in the same order. Takes no download, no GPU and one thread.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from demo.t5_skills import training_pairs
from demo.t5_tokenizer import T5_FOLDER, train_t5_tokenizer
from demo.training import Optimizers, TrainingPlan

# A pass holds inputs of like length, so that little of it is padding.
_LONGEST_TO_SHORTEST = 2.0
_NOT_LEARNT = -100  # what transformers' loss passes over

Encoded = tuple[list[int], list[int]]  # an input and its answer, both with their end tokens


def build_model(tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    """A small T5, gated and tied, with random weights and the tokenizer's vocabulary."""
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": 96,
        "d_kv": 24,
        "d_ff": 192,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": True,
        "dropout_rate": 0.0,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    return T5ForConditionalGeneration(T5Config(**settings))


class Trainer:
    """The model with its optimizers."""

    def __init__(self, model: T5ForConditionalGeneration, plan: TrainingPlan) -> None:
        self._model = model
        parameters = dict(model.named_parameters())
        matrices = {
            name: parameter
            for name, parameter in parameters.items()
            if ".block." in name and parameter.ndim == 2 and "bias" not in name
        }
        others = [parameters[name] for name in parameters if name not in matrices]
        self._optimizers = Optimizers([*parameters.values()], [*matrices.values()], others, plan)

    def step(self, index: int, examples: list[Encoded]) -> float:
        """Learn from the examples as from one; returns their mean loss by answer token."""
        num_tokens = sum(len(answer) for _, answer in examples)
        self._model.zero_grad()
        total = 0.0
        for group in _groups(examples):
            share = sum(len(answer) for _, answer in group) / num_tokens
            loss = self._loss(group) * share
            loss.backward()
            total += loss.item()
        self._optimizers.step(index)
        return total

    def _loss(self, group: list[Encoded]) -> torch.Tensor:
        inputs = pad_sequence([torch.tensor(asked) for asked, _ in group], batch_first=True)
        labels = pad_sequence(
            [torch.tensor(answer) for _, answer in group],
            batch_first=True,
            padding_value=_NOT_LEARNT,
        )
        # The padding token, 0, is in no input.
        loss: torch.Tensor = self._model(
            input_ids=inputs, attention_mask=(inputs != 0).long(), labels=labels
        ).loss
        return loss


def _groups(examples: list[Encoded]) -> Iterator[list[Encoded]]:
    group: list[Encoded] = []
    for example in sorted(examples, key=lambda example: len(example[0])):
        if group and len(example[0]) > _LONGEST_TO_SHORTEST * len(group[0][0]):
            yield group
            group = []
        group.append(example)
    yield group


def examples_per_step(
    tokenizer: PreTrainedTokenizerFast, plan: TrainingPlan
) -> Iterator[list[Encoded]]:
    """For each step its examples."""
    pairs = training_pairs(plan.seed)
    for _ in range(plan.num_steps):
        drawn = list(islice(pairs, plan.examples_per_step))
        asked = tokenizer([pair.prompt for pair in drawn])["input_ids"]
        answers = tokenizer([pair.answer for pair in drawn])["input_ids"]
        yield list(zip(asked, answers, strict=True))


def train(plan: TrainingPlan, output: Path) -> None:
    """Train and save the tokenizer, the weights (as bfloat16) and the configurations."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(plan.num_threads)
    tokenizer = train_t5_tokenizer(plan.seed)
    model = build_model(tokenizer)
    trainer = Trainer(model, plan)
    started = time.process_time()
    for index, examples in enumerate(examples_per_step(tokenizer, plan)):
        loss = trainer.step(index, examples)
        if index % 50 == 0 or index == plan.num_steps - 1:
            elapsed_seconds = time.process_time() - started
            print(f"step {index:5}  loss {loss:.4f}  {elapsed_seconds:6.0f} s", flush=True)
    _save(model, tokenizer, output)


def _save(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, output: Path
) -> None:
    model.generation_config = GenerationConfig(
        do_sample=False,
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=T5_FOLDER, help="where to save")
    parser.add_argument("--num-steps", type=int, default=3200, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=20, help="of the data and of the weights")
    arguments = parser.parse_args()
    plan = TrainingPlan(arguments.seed, arguments.num_steps, num_threads=1, examples_per_step=64)
    train(plan, arguments.output)


if __name__ == "__main__":
    main()
