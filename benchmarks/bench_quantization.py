"""What small weights cost: perplexity and greedy agreement, and how far logits are from float32's.

The built-in models read held-out questions and right answers, the Whisper its own sounds and what
it hears in them in float32. Perplexity is of the answers' tokens; agreement is the share of these
at which the likeliest next token is float32's. Models of random weights show how far their logits
are from float32's; near ties, of which they have many, exaggerate what a trained model loses.

    python -m benchmarks.bench_quantization --precisions bfloat16 int8 int4 --tasks 40
"""

import argparse
import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from benchmarks.make_model import SHAPES
from demo.chat_tokenizer import DialogueEncoder
from demo.dialogues import SKILLS, held_out_tasks
from demo.evaluate_chat import ChatModel
from demo.evaluate_t5 import T5Model
from demo.speech import RATE
from demo.t5_skills import T5_SKILLS, held_out_pairs
from demo.t5_tokenizer import END
from demo.whisper_sounds import SAMPLES, read
from demo.whisper_tokenizer import WHISPER_FOLDER
from demo.whisper_windows import WINDOW_SECONDS
from gpu_worker.linears.choice import settle_linears
from shared.config import WorkerConfig
from tokenizer_proc.windows import windows

PRECISIONS = ("bfloat16", "int8", "int4")
_SEED = 1  # of held-out tasks; training has others
_RANDOM_TOKENS = 256


@dataclass(frozen=True)
class Sample:
    """One forward pass, and which of its tokens are the answer."""

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor  # [T] the tokens after each that is read
    is_answer: torch.Tensor  # [T] bool, of the targets


@dataclass(frozen=True)
class Loss:
    """What a precision costs a trained model."""

    model: str
    precision: str
    num_tokens: int
    perplexity: float
    change: float  # of the perplexity, to float32's
    agreement: float  # share of tokens

    def __str__(self) -> str:
        """As the table shows it."""
        return (
            f"{self.model:14}{self.precision:10}{self.num_tokens:8}{self.perplexity:12.5f}"
            f"{self.change:+10.3%}{self.agreement:11.2%}"
        )


@dataclass(frozen=True)
class Error:
    """What a precision does to the logits of random weights."""

    model: str
    precision: str
    relative: float  # norm of the difference over the norm
    largest: float  # difference, in standard deviations of the logits
    agreement: float

    def __str__(self) -> str:
        """As the table shows it."""
        return (
            f"{self.model:14}{self.precision:10}{self.relative:12.3%}{self.largest:12.3f}"
            f"{self.agreement:11.2%}"
        )


def chat_samples(num_tasks: int) -> tuple[Any, list[Sample]]:
    """The chat model, with dialogues of every skill."""
    chat = ChatModel()
    encoder = DialogueEncoder(chat.tokenizer)
    samples = []
    for skill in SKILLS:
        for task in held_out_tasks(skill, num_tasks, _SEED):
            tokens = encoder.encode(task.dialogue)
            ids = torch.tensor(tokens.token_ids)
            is_answer = torch.tensor(tokens.weights) > 0
            samples.append(Sample({"input_ids": ids[None, :-1]}, ids[1:], is_answer[1:]))
    return chat.model, samples


def t5_samples(num_tasks: int) -> tuple[Any, list[Sample]]:
    """The T5, with questions of every skill."""
    t5 = T5Model()
    samples = []
    for skill in T5_SKILLS:
        for pair in held_out_pairs(skill, num_tasks, _SEED):
            question = t5.tokenizer(pair.prompt, return_tensors="pt").input_ids
            answer = t5.tokenizer(f"{pair.answer}{END}", add_special_tokens=False).input_ids
            start = t5.model.config.decoder_start_token_id
            samples.append(_answered({"input_ids": question}, [start, *answer], 1))
    return t5.model, samples


def whisper_samples(_: int) -> tuple[Any, list[Sample]]:
    """The Whisper, with the sounds that come with it and what it hears in them."""
    auto: Any = WhisperForConditionalGeneration  # transformers leaves these untyped
    model = auto.from_pretrained(WHISPER_FOLDER, dtype=torch.float32)
    processor: Any = WhisperProcessor.from_pretrained(WHISPER_FOLDER)
    samples = []
    for name, sound in SAMPLES.items():
        told = {"language": sound.language, "task": "transcribe"}
        heads = processor.tokenizer.get_decoder_prompt_ids(**told, no_timestamps=False)
        start = [model.generation_config.decoder_start_token_id, *(i for _, i in heads)]
        for window in windows([read(name)], RATE, WINDOW_SECONDS * RATE):
            inputs = processor(window.samples, sampling_rate=RATE, return_tensors="pt")
            heard = model.generate(**inputs, **told, return_timestamps=True)[0].tolist()
            answer = [*start, *heard, model.config.eos_token_id]
            samples.append(_answered(dict(inputs), answer, len(start)))
    return model, samples


def _answered(inputs: dict[str, torch.Tensor], ids: Sequence[int], num_given: int) -> Sample:
    """What an encoder-decoder reads and answers; the first tokens are given."""
    targets = torch.tensor(ids[1:])
    is_answer = torch.arange(1, len(ids)) >= num_given
    decoder_ids = torch.tensor([ids[:-1]])
    return Sample({**inputs, "decoder_input_ids": decoder_ids}, targets, is_answer)


MODELS: dict[str, Callable[[int], tuple[Any, list[Sample]]]] = {
    "demo": chat_samples,
    "demo-t5": t5_samples,
    "demo-whisper": whisper_samples,
}


def in_precision(model: Any, precision: str) -> Any:
    """A copy of a float32 model as the worker would serve it."""
    served = copy.deepcopy(model).eval()
    if precision == "bfloat16":
        served = served.to(torch.bfloat16)
    settle_linears(served, settings_of(precision))
    return served


def settings_of(precision: str) -> WorkerConfig:
    """The flags that give these weights."""
    if precision == "int4":
        return WorkerConfig(hqq=True)
    return WorkerConfig(quantization="int8" if precision == "int8" else "")


@torch.inference_mode()
def answer_logits(model: Any, samples: list[Sample]) -> torch.Tensor:
    """[tokens of all answers, V] float32."""
    found = []
    for sample in samples:
        inputs = {name: _fitting(value, model.dtype) for name, value in sample.inputs.items()}
        found.append(model(**inputs).logits[0].float()[sample.is_answer])
    return torch.cat(found)


def _fitting(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def losses(name: str, num_tasks: int, precisions: Sequence[str]) -> Iterator[Loss]:
    """One built-in model in every precision, float32 first."""
    model, samples = MODELS[name](num_tasks)
    targets = torch.cat([sample.targets[sample.is_answer] for sample in samples])
    dense = answer_logits(model, samples)
    expected = _perplexity(dense, targets)
    for precision in ("float32", *precisions):
        logits = answer_logits(in_precision(model, precision), samples)
        perplexity = _perplexity(logits, targets)
        agreement = _agreement(logits, dense)
        change = perplexity / expected - 1
        yield Loss(name, precision, len(targets), perplexity, change, agreement)


def _perplexity(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return math.exp(torch.nn.functional.cross_entropy(logits.double(), targets).item())


def _agreement(logits: torch.Tensor, dense: torch.Tensor) -> float:
    return (logits.argmax(-1) == dense.argmax(-1)).double().mean().item()


@torch.inference_mode()
def errors(shape: str, precisions: Sequence[str]) -> Iterator[Error]:
    """A Llama of random weights in every precision."""
    torch.manual_seed(0)
    config: dict[str, Any] = SHAPES[shape]
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    token_ids = torch.randint(config["vocab_size"], (1, _RANDOM_TOKENS))
    dense = model(token_ids).logits[0]
    for precision in precisions:
        logits = in_precision(model, precision)(token_ids).logits[0].float()
        difference = logits - dense
        relative = (difference.norm() / dense.norm()).item()
        largest = (difference.abs().max() / dense.std()).item()
        yield Error(f"random {shape}", precision, relative, largest, _agreement(logits, dense))


def main(argv: Sequence[str] | None = None) -> None:
    """Prints two tables, then one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--shapes", nargs="*", default=["toy", "135m"], choices=SHAPES)
    parser.add_argument("--tasks", type=int, default=40, help="of each skill; default: 40")
    asked = parser.parse_args(argv)
    rows: list[Loss | Error] = []
    print(
        f"{'model':14}{'weights':10}{'tokens':>8}{'perplexity':>12}{'change':>10}{'agreement':>11}"
    )
    for name in asked.models:
        rows += _printed(losses(name, asked.tasks, asked.precisions))
    print(f"\n{'model':14}{'weights':10}{'error':>12}{'largest, σ':>12}{'agreement':>11}")
    for shape in asked.shapes:
        rows += _printed(errors(shape, asked.precisions))
    print(json.dumps([asdict(row) for row in rows]))


def _printed(rows: Iterator[Any]) -> Iterator[Any]:
    for row in rows:
        print(row, flush=True)
        yield row


if __name__ == "__main__":
    main()
