"""What a tokenizer makes of a `Transcribe`: windows of sound, one at a time.

A long file is read as its windows are wanted, so that no room holds more than a few of them.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shared.messages import Listen, Transcribe, WindowRead
from shared.parts import TextOptions, TextStart
from shared.sampling import NUM_SEEDS
from shared.windows import window_name
from tokenizer_proc.sound import Samples, read_sound
from tokenizer_proc.transcripts import TranscriptFormat
from tokenizer_proc.windows import Window, windows

WINDOWS_AT_ONCE = 4  # of one sound, under way in the rooms behind
PARAM = "file"


class LogMel:
    """A checkpoint's own feature extractor, for one window at a time."""

    def __init__(self, extractor: Any) -> None:
        self._extractor = extractor
        self.rate: int = extractor.sampling_rate  # Hz
        self.length: int = extractor.n_samples  # of a window

    def __call__(self, samples: Samples) -> bytes:
        """A window's log-mel spectrogram: float32, little-endian, [bins, frames]."""
        found = self._extractor(samples, sampling_rate=self.rate, return_tensors="np")
        return np.ascontiguousarray(found["input_features"][0], dtype="<f4").tobytes()


@dataclass(frozen=True)
class Listener:
    """What is the same for all sounds."""

    format: TranscriptFormat
    log_mel: LogMel
    max_seconds: float


class Transcribing:
    """One sound, and how many of its windows may be sent now."""

    def __init__(self, message: Transcribe, listener: Listener) -> None:
        """Raises BadRequest for what is no sound, or for options that the model cannot obey."""
        self.message = message
        self._listener = listener
        self._rules = listener.format.rules(message.options)
        self._prompt = listener.format.prompt_ids(message.options.prompt)
        rate, length = listener.log_mel.rate, listener.log_mel.length
        pieces = read_sound(message.audio, rate, listener.max_seconds, PARAM)
        self._windows = windows(pieces, rate, length)
        self._number = 0
        self.num_wanted = WINDOWS_AT_ONCE
        self.is_over = False

    @property
    def can_go_on(self) -> bool:
        """See `LongWork`: no more windows are under way than the rooms behind may hold."""
        return self.num_wanted > 0

    def go_on(self) -> tuple[WindowRead, Listen]:
        """What the frontend and the worker hear of the next window; BadRequest where it breaks."""
        window = next(self._windows)
        number = self._number
        self._number += 1
        self.num_wanted -= 1
        self.is_over = window.is_last
        return self._read(window, number), self._listen(window, number)

    def _read(self, window: Window, number: int) -> WindowRead:
        rate = self._listener.log_mel.rate
        seconds = len(window.samples) / rate
        name = self.message.request_id
        return WindowRead(
            name,
            number,
            window.start / rate,
            seconds,
            self._listener.format.first_time_id,
            self._listener.format.mark_seconds(self._listener.log_mel.length / rate),
            window.is_last,
        )

    def _listen(self, window: Window, number: int) -> Listen:
        format_, message = self._listener.format, self.message
        name = window_name(message.request_id, number)
        seed = (message.sampling.seed + number) % NUM_SEEDS
        room = format_.max_positions - len(self._prompt)
        return Listen(
            request_id=name,
            prompt_token_ids=self._prompt,
            max_tokens=min(len(self._rules.heads) + format_.max_text_tokens, room),
            sampling=replace(message.sampling, seed=seed, transcript=self._rules),
            text=TextStart(
                request_id=name,
                route=message.route,
                prompt_tail=(),
                options=TextOptions(skips_special_tokens=False),
            ),
            features=self._listener.log_mel(window.samples),
        )
