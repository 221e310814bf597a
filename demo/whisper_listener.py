"""What the Whisper hears, by transformers' own `generate()`: greedy, with its rules of time."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer

from demo.speech import RATE, Samples, Span
from demo.whisper_tokenizer import MARKS_PER_SECOND, NO_SPEECH, NO_TIMES, WHISPER_FOLDER
from demo.whisper_windows import WINDOW_SECONDS
from demo.whisper_words import WORDS

_AT_ONCE = 32  # windows of one pass


@dataclass(frozen=True)
class Segment:
    """A text with its times; its words have theirs if they were asked for."""

    text: str
    span: Span
    words: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Heard:
    """What one window says."""

    language: str
    no_speech: float  # the probability that nobody speaks
    segments: tuple[Segment, ...]  # one for the whole window where no times are marked

    @property
    def texts(self) -> list[str]:
        """The segments' texts."""
        return [segment.text for segment in self.segments if segment.text]


class Listener:
    """The model, asked about windows of sound."""

    def __init__(self, model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> None:
        self.model = model
        self._processor = processor
        self._tokenizer: WhisperTokenizer = processor.tokenizer
        vocabulary = self._tokenizer.get_vocab()
        self._start: int = model.generation_config.decoder_start_token_id
        self._no_speech = vocabulary[NO_SPEECH]
        self._no_times: int = vocabulary[NO_TIMES]
        self._languages = {vocabulary[f"<|{code}|>"]: code for code in WORDS}

    @classmethod
    def committed(cls, folder: Path = WHISPER_FOLDER) -> "Listener":
        """The committed model, in float32."""
        model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        return cls(model, WhisperProcessor.from_pretrained(folder))

    def hear(self, sounds: list[Samples], **wanted: Any) -> list[Heard]:
        """What is said in each; `wanted` goes to `_hear`."""
        heard = list[Heard]()
        for first in range(0, len(sounds), _AT_ONCE):
            heard += self._hear(sounds[first : first + _AT_ONCE], **wanted)
        return heard

    @torch.inference_mode()
    def _hear(
        self,
        sounds: list[Samples],
        *,
        task: str = "transcribe",
        previous: str = "",
        marks_times: bool = True,
        times_words: bool = False,
    ) -> list[Heard]:
        """The languages are detected; words have times if the marks of time are wanted, too."""
        extractor = self._processor.feature_extractor
        features = extractor(sounds, sampling_rate=RATE, return_tensors="pt").input_features
        languages, silences = self._beginnings(features)
        prompt = self._processor.get_prompt_ids(previous, return_tensors="pt") if previous else None
        output = self.model.generate(
            features,
            language=languages,
            task=task,
            prompt_ids=prompt,
            return_timestamps=marks_times,
            return_segments=True,
            return_token_timestamps=times_words,
        )
        segments = [tuple(map(self._segment, found)) for found in output["segments"]]
        return [*map(Heard, languages, silences, segments)]

    def _beginnings(self, features: torch.Tensor) -> tuple[list[str], list[float]]:
        """The likeliest language of each window, and how likely nobody speaks there."""
        starts = torch.full((len(features), 1), self._start)
        logits = self.model(input_features=features, decoder_input_ids=starts).logits[:, -1]
        known = list(self._languages)
        languages = [self._languages[known[best]] for best in logits[:, known].argmax(-1).tolist()]
        return languages, logits.softmax(-1)[:, self._no_speech].tolist()

    def _segment(self, found: dict[str, Any]) -> Segment:
        ids: list[int] = found["tokens"].tolist()
        # By the marks: transformers has a window's only segment begin with the window.
        marks = [(i - self._no_times - 1) / MARKS_PER_SECOND for i in ids if i > self._no_times]
        span = Span(marks[0], marks[-1]) if marks else Span(0.0, WINDOW_SECONDS)
        text = self._decoded([token_id for token_id in ids if token_id <= self._no_times])
        if "token_timestamps" not in found or not text:
            return Segment(text.strip(), span)
        return Segment(text.strip(), span, self._words(ids, found["token_timestamps"], span.start))

    def _words(self, ids: list[int], ends: torch.Tensor, start: float) -> tuple[Span, ...]:
        """The words' times; transformers gives each token the moment at which it ends."""
        text = [number for number, token_id in enumerate(ids) if token_id <= self._no_times]
        first = [number for number in text if self._decoded([ids[number]]).startswith(" ")]
        last = [number - 1 for number in first[1:]] + text[-1:]
        edges = [start, *(float(ends[number]) for number in last)]
        return tuple(Span(*edge) for edge in pairwise(edges))

    def _decoded(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text
