"""What transformers itself makes of a sound: each window's language, silence and greedy tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationMixin,
    LogitsProcessorList,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperNoSpeechDetection,
    WhisperTimeStampLogitsProcessor,
)
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from tokenizer_proc.samples import Samples
from tokenizer_proc.windows import windows

NEAR_TIE = 1e-4  # of logits: below, the order of two tokens is chance


@dataclass(frozen=True)
class Window:
    """One part of a sound, as transformers understands it."""

    language: str
    no_speech_prob: float
    token_ids: list[int]  # behind the heads, without the end token
    gaps: list[float]  # between the best two logits of each step
    text_ids: list[int]


class Reference:
    """A checkpoint in float32."""

    def __init__(self, checkpoint: Path) -> None:
        self._model: Any = WhisperForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()
        self._extractor: Any = WhisperFeatureExtractor.from_pretrained(checkpoint)
        self._settings: Any = self._model.generation_config
        self.first_time_id: int = self._settings.no_timestamps_token_id + 1

    @torch.inference_mode()
    def windows(self, samples: Samples) -> list[Window]:
        """All windows of a sound, one by one."""
        rate, length = self._extractor.sampling_rate, self._extractor.n_samples
        parts = [samples[n : n + rate] for n in range(0, len(samples), rate)]
        return [self._window(found.samples) for found in windows(parts, rate, length)]

    def _window(self, samples: Samples) -> Window:
        rate = self._extractor.sampling_rate
        features = self._extractor(samples, sampling_rate=rate, return_tensors="pt").input_features
        num_frames = features.shape[-1]
        (language_id,) = WhisperGenerationMixin.detect_language(
            self._model, features, num_segment_frames=num_frames
        ).tolist()
        settings = self._settings
        (language,) = [n for n, token_id in settings.lang_to_id.items() if token_id == language_id]
        task_id = settings.task_to_id["transcribe"]
        heads = [settings.decoder_start_token_id, language_id, task_id]
        token_ids, gaps = self._generate(features, heads)
        text_ids = [i for i in token_ids if i < self.first_time_id]
        silence = self._no_speech_prob(features, heads)
        return Window(language[2:-2], silence, token_ids, gaps, text_ids)

    def _generate(self, features: torch.Tensor, heads: list[int]) -> tuple[list[int], list[float]]:
        settings = self._settings
        processors = LogitsProcessorList(
            [
                SuppressTokensAtBeginLogitsProcessor(settings.begin_suppress_tokens, len(heads)),
                SuppressTokensLogitsProcessor(settings.suppress_tokens),
                WhisperTimeStampLogitsProcessor(settings, begin_index=len(heads)),
            ]
        )
        generated: Any = GenerationMixin.generate(
            self._model,
            features,
            decoder_input_ids=torch.tensor([heads]),
            logits_processor=processors,
            max_new_tokens=self._model.config.max_target_positions // 2,
            max_length=None,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        token_ids = generated.sequences[0, len(heads) :].tolist()
        best = [scores[0].topk(2).values.tolist() for scores in generated.scores]
        said = [token_id for token_id in token_ids if token_id != settings.eos_token_id]
        return said, [first - second for first, second in best]

    def _no_speech_prob(self, features: torch.Tensor, heads: list[int]) -> float:
        detection = WhisperNoSpeechDetection(
            self._settings.no_timestamps_token_id - 1, begin_index=len(heads)
        )
        detection.set_model(self._model)
        detection.inputs = {"input_features": features, "decoder_input_ids": torch.tensor([heads])}
        detection(torch.tensor([heads]), torch.empty(0))
        return float(detection.no_speech_prob[0])


def differs(found: list[int], expected: list[Window]) -> str:
    """Where the text tokens of a sound are not the windows' own, but for a near tie; "" if not."""
    wanted = [token_id for window in expected for token_id in window.text_ids]
    if found == wanted:
        return ""
    gaps = [gap for window in expected for gap in window.gaps]
    return "" if min(gaps) < NEAR_TIE else f"{found} is not {wanted}"
