"""Trains the chat model from nothing, tokenizer included: `python -m demo.train_chat`.

The same seed gives the same data in the same order. Takes no download and no GPU.
"""

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.chat_tokenizer import (
    CHAT_FOLDER,
    MAX_MODEL_LEN,
    DialogueEncoder,
    WeightedTokens,
    train_tokenizer,
)
from demo.dialogues import training_dialogues
from demo.training import Optimizers, TrainingPlan

# A pass holds dialogues of like length, and not so many that one thread waits for the other.
_MAX_TOKENS_PER_PASS = 1500
_LONGEST_TO_SHORTEST = 1.3


@dataclass(frozen=True)
class Batch:
    """Dialogues of one pass, padded on the right, where a causal model never looks."""

    token_ids: torch.Tensor  # [dialogue, position]
    weights: torch.Tensor  # [dialogue, position]


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A small Llama with random weights and the tokenizer's vocabulary."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=MAX_MODEL_LEN,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches_per_step(encoder: DialogueEncoder, plan: TrainingPlan) -> Iterator[list[Batch]]:
    """For each step the batches of its dialogues, so that every step sees every skill."""
    dialogues = training_dialogues(plan.seed)
    for _ in range(plan.num_steps):
        drawn = [encoder.encode(d) for d in islice(dialogues, plan.examples_per_step)]
        drawn.sort(key=lambda tokens: len(tokens.token_ids))
        yield [_batch(group) for group in _groups(drawn)]


def _groups(by_length: list[WeightedTokens]) -> Iterator[list[WeightedTokens]]:
    group: list[WeightedTokens] = []
    for tokens in by_length:
        if group and not _fits(tokens, group):
            yield group
            group = []
        group.append(tokens)
    yield group


def _fits(tokens: WeightedTokens, group: list[WeightedTokens]) -> bool:
    length, shortest = len(tokens.token_ids), len(group[0].token_ids)
    return (
        length <= shortest * _LONGEST_TO_SHORTEST
        and length * (len(group) + 1) <= _MAX_TOKENS_PER_PASS
    )


def _batch(group: list[WeightedTokens]) -> Batch:
    longest = len(group[-1].token_ids)
    token_ids = torch.zeros(len(group), longest, dtype=torch.long)
    weights = torch.zeros(len(group), longest)
    for row, tokens in enumerate(group):
        length = len(tokens.token_ids)
        token_ids[row, :length] = torch.tensor(tokens.token_ids)
        weights[row, :length] = torch.tensor(tokens.weights)
    return Batch(token_ids, weights)


class Trainer:
    """The model with its optimizers.

    Each thread works on whole batches, which wastes less than two threads on every product;
    gradients are added in the batches' order, so the sum does not depend on the threads.
    """

    def __init__(self, model: LlamaForCausalLM, plan: TrainingPlan) -> None:
        self._model = model
        self._parameters = list(model.parameters())
        self._threads = ThreadPoolExecutor(plan.num_threads, initializer=_work_alone)
        matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
        norms = [p for p in self._parameters if p.ndim == 1]
        others = [model.model.embed_tokens.weight, *norms]
        self._optimizers = Optimizers(self._parameters, matrices, others, plan)

    def step(self, index: int, batches: list[Batch]) -> float:
        """Learn from the batches as from one; returns their mean loss by weight."""
        total_weight = sum(float(batch.weights.sum()) for batch in batches)
        results = list(self._threads.map(self._loss_and_gradients, batches))
        gradients = zip(*(gradients for _, gradients in results), strict=True)
        for parameter, parts in zip(self._parameters, gradients, strict=True):
            parameter.grad = torch.stack(parts).sum(0) / total_weight
        self._optimizers.step(index)
        return sum(loss for loss, _ in results) / total_weight

    def _loss_and_gradients(self, batch: Batch) -> tuple[float, tuple[torch.Tensor, ...]]:
        loss = self._weighted_loss(batch)
        return loss.item(), torch.autograd.grad(loss, self._parameters)

    def _weighted_loss(self, batch: Batch) -> torch.Tensor:
        next_weights = batch.weights[:, 1:]
        learnt = next_weights > 0
        hidden = self._model.model(batch.token_ids, use_cache=False).last_hidden_state
        logits = self._model.lm_head(hidden[:, :-1][learnt])  # [learnt token, vocabulary]
        losses = cross_entropy(logits, batch.token_ids[:, 1:][learnt], reduction="none")
        return (losses * next_weights[learnt]).sum()


def _work_alone() -> None:
    """Keep this thread's tensor operations on this thread."""
    torch.set_num_threads(1)


def train(plan: TrainingPlan, output: Path) -> None:
    """Train and save the tokenizer, the weights (as bfloat16) and the configurations."""
    torch.manual_seed(plan.seed)
    _work_alone()
    tokenizer = train_tokenizer(plan.seed)
    model = build_model(tokenizer)
    trainer = Trainer(model, plan)
    started = time.monotonic()
    for index, batches in enumerate(batches_per_step(DialogueEncoder(tokenizer), plan)):
        loss = trainer.step(index, batches)
        if index % 50 == 0 or index == plan.num_steps - 1:
            elapsed_seconds = time.monotonic() - started
            print(f"step {index:5}  loss {loss:.4f}  {elapsed_seconds:6.0f} s", flush=True)
    _save(model, tokenizer, output)


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=CHAT_FOLDER, help="where to save")
    parser.add_argument("--num-steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=20, help="of the data and of the weights")
    parser.add_argument("--num-threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    plan = TrainingPlan(arguments.seed, arguments.num_steps, arguments.num_threads)
    train(plan, arguments.output)


if __name__ == "__main__":
    main()
