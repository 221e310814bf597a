"""Trains the Whisper from nothing, tokenizer included: `python -m demo.train_whisper`.

The same seed gives the same questions in the same order. Takes espeak, no download, no GPU and one
thread. Two helpers show it where to listen, and are no part of what is saved: the encoder shall
name the words in order (CTC), and two heads of the decoder shall look at the word that is next.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.nn.functional import cross_entropy, ctc_loss
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from demo.speech import RATE
from demo.training import Optimizers, TrainingPlan
from demo.whisper_alignment import choose_alignment_heads
from demo.whisper_answers import NOT_LEARNT, Answer, Answers, Question, any_question
from demo.whisper_checkpoint import save_whisper
from demo.whisper_listener import Listener
from demo.whisper_tokenizer import (
    END,
    MARKS_PER_SECOND,
    MAX_TOKENS,
    NUM_MARKS,
    START,
    WHISPER_FOLDER,
    train_whisper_tokenizer,
)
from demo.whisper_windows import WINDOW_SECONDS, Said, Studio, spoken
from demo.whisper_words import NUM_WORDS, WORDS, any_utterance, previous_text

_NUM_UTTERANCES = 2500  # of each language; windows combine them
_MOST_IN_WINDOW = 3
_STEPS_BETWEEN_PREVIOUS = 3  # one step in so many comes with previous texts, which are long
_CTC_WEIGHT, _PLACES_WEIGHT = 0.3, 0.2
_NUM_GUIDED_HEADS = 2  # of the last layer
_NUM_ALIGNED = 32  # windows that the alignment heads are chosen by
_SMALLEST = 1e-6  # attention, before its logarithm


def build_model(tokenizer: WhisperTokenizer) -> WhisperForConditionalGeneration:
    """A small Whisper with random weights and the tokenizer's vocabulary."""
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "num_mel_bins": 80,
        "d_model": 128,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 512,
        "decoder_ffn_dim": 512,
        "max_source_positions": NUM_MARKS,
        "max_target_positions": MAX_TOKENS,
        "pad_token_id": tokenizer.convert_tokens_to_ids(END),
        "bos_token_id": tokenizer.convert_tokens_to_ids(END),
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),
        "decoder_start_token_id": tokenizer.convert_tokens_to_ids(START),
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
        "attn_implementation": "eager",  # tells where its heads look
    }
    return WhisperForConditionalGeneration(WhisperConfig(**settings))


class Trainer:
    """The model with its helpers and its optimizers."""

    def __init__(
        self, model: WhisperForConditionalGeneration, answers: Answers, plan: TrainingPlan
    ) -> None:
        self._model = model
        self._answers = answers
        self._extractor = feature_extractor()
        num_names = 1 + NUM_WORDS * len(WORDS)  # of words, and nothing
        self._naming = torch.nn.Linear(model.config.d_model, num_names)
        parameters = dict(model.named_parameters())
        matrices = {
            name: parameter
            for name, parameter in parameters.items()
            if ".layers." in name and parameter.ndim == 2
        }
        others = [parameters[name] for name in parameters if name not in matrices]
        others += self._naming.parameters()
        every = [*parameters.values(), *self._naming.parameters()]
        self._optimizers = Optimizers(every, [*matrices.values()], others, plan)

    def step(self, index: int, questions: list[Question]) -> float:
        """Learn from the questions; returns the mean loss by answer token."""
        self._model.zero_grad()
        self._naming.zero_grad()
        features = self._features(questions)
        # bfloat16 where it is quick and does no harm: in products of matrices.
        with torch.autocast("cpu", torch.bfloat16):
            heard = self._model.model.encoder(features).last_hidden_state
            loss, places_loss = self._answer_losses(heard, questions)
        helpers = _CTC_WEIGHT * self._naming_loss(heard, questions) + _PLACES_WEIGHT * places_loss
        (loss + helpers).backward()
        self._optimizers.step(index)
        return loss.item()

    def _features(self, questions: list[Question]) -> torch.Tensor:
        """The windows [question, mel bin, frame] as the encoder takes them."""
        sounds = [question.window.samples for question in questions]
        features: torch.Tensor = self._extractor(
            sounds, sampling_rate=RATE, return_tensors="pt"
        ).input_features
        return features

    def _answer_losses(
        self, heard: torch.Tensor, questions: list[Question]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How unlikely the answers are, and how far beside their words two heads look."""
        answers = [self._answers.written(question) for question in questions]
        output = self._model.model.decoder(
            input_ids=_padded([answer.token_ids for answer in answers], 0),
            encoder_hidden_states=heard,
            output_attentions=True,
            use_cache=False,
        )
        logits = self._model.proj_out(output.last_hidden_state)  # [question, token, vocabulary]
        labels = _padded([answer.labels for answer in answers], NOT_LEARNT)
        loss = cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        looks = output.cross_attentions[-1][:, :_NUM_GUIDED_HEADS].float().mean(1)
        return loss, _places_loss(looks, answers)

    def _naming_loss(self, heard: torch.Tensor, questions: list[Question]) -> torch.Tensor:
        """How unlikely the encoder makes the words that are said, in their order."""
        names = self._naming(heard.float()).log_softmax(-1).transpose(0, 1)
        said = [_names(question) for question in questions]
        targets = torch.tensor([name for each in said for name in each])
        num_positions = torch.full((len(said),), names.shape[0])
        num_names = torch.tensor([len(each) for each in said])
        return ctc_loss(names, targets, num_positions, num_names, zero_infinity=True)


def feature_extractor() -> WhisperFeatureExtractor:
    """Whisper's own, for short windows."""
    return WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_SECONDS)


def _padded(rows: list[list[int]], padding: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], True, padding)


def _names(question: Question) -> list[int]:
    """What is said, by numbers from 1; each word of each language has its own."""
    first = 1 + NUM_WORDS * list(WORDS).index(question.language)
    return [
        first + word
        for said in question.window.said
        for word, span in zip(said.utterance.words, said.words, strict=True)
        if span.end <= WINDOW_SECONDS
    ]


def _places_loss(looks: torch.Tensor, answers: list[Answer]) -> torch.Tensor:
    """How little of the attention [question, token, position] is where each token is heard."""
    spans = pad_sequence([torch.tensor(answer.places) for answer in answers], batch_first=True)
    start, end = (spans * MARKS_PER_SECOND)[..., None].unbind(2)  # [question, token, 1]
    position = torch.arange(looks.shape[-1])
    is_there = (position + 1 > start) & (position < end)
    has_place = is_there.any(-1)
    found = (looks * is_there).sum(-1)[has_place]
    return -(found + _SMALLEST).log().mean()


def questions_per_step(plan: TrainingPlan) -> Iterator[list[Question]]:
    """For each step its questions."""
    rng = Random(plan.seed)
    studio = Studio(rng)
    said = {
        language: [
            spoken(any_utterance(rng, language, held_out=False)) for _ in range(_NUM_UTTERANCES)
        ]
        for language in WORDS
    }
    for index in range(plan.num_steps):
        has_previous = index % _STEPS_BETWEEN_PREVIOUS == 0
        yield [_question(rng, studio, said, has_previous) for _ in range(plan.examples_per_step)]


def _question(
    rng: Random, studio: Studio, said: dict[str, list[Said]], has_previous: bool
) -> Question:
    language = rng.choice(list(WORDS))
    window = studio.any_window(rng.sample(said[language], _MOST_IN_WINDOW))
    return any_question(rng, window, language, previous_text(rng) if has_previous else "")


def train(plan: TrainingPlan, output: Path) -> None:
    """Train and save the tokenizer, the weights (as bfloat16) and the configurations."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(plan.num_threads)
    tokenizer = train_whisper_tokenizer()
    model = build_model(tokenizer)
    trainer = Trainer(model, Answers(tokenizer), plan)
    started = time.process_time()
    for index, questions in enumerate(questions_per_step(plan)):
        loss = trainer.step(index, questions)
        if index % 50 == 0 or index == plan.num_steps - 1:
            elapsed_seconds = time.process_time() - started
            print(f"step {index:5}  loss {loss:.4f}  {elapsed_seconds:6.0f} s", flush=True)
    save_whisper(model, tokenizer, feature_extractor(), output)
    _align(output, plan.seed)


def _align(folder: Path, seed: int) -> None:
    """Choose the heads that tell the words' times, by speech of the training's side."""
    rng = Random(seed)
    studio = Studio(rng)
    windows = [
        studio.window([spoken(any_utterance(rng, language, held_out=False)) for _ in range(2)], 2)
        for language in WORDS
        for _ in range(_NUM_ALIGNED // 2)
    ]
    listener = Listener.committed(folder)
    choose_alignment_heads(listener, windows)
    listener.model.generation_config.save_pretrained(folder)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=WHISPER_FOLDER, help="where to save")
    parser.add_argument("--num-steps", type=int, default=2600, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=20, help="of the data and of the weights")
    arguments = parser.parse_args()
    plan = TrainingPlan(arguments.seed, arguments.num_steps, num_threads=1)
    train(plan, arguments.output)


if __name__ == "__main__":
    main()
