"""What a tokenizer makes of a `Transcribe`: windows of sound, one at a time.

A long file is read as its windows are wanted, so that no room holds more than a few of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shared.messages import Listen, SoundRead, Transcribe, WindowRead, WindowTaken
from shared.parts import TextOptions, TextStart, TranscriptOptions
from shared.sampling import NUM_SEEDS
from shared.windows import FRAMES_PER_POSITION, heard_part, window_name
from tokenizer_proc.decoder_wire import Order
from tokenizer_proc.decoding import DecodedSound, Decoder
from tokenizer_proc.samples import Samples
from tokenizer_proc.transcripts import TranscriptFormat
from tokenizer_proc.windows import QuietWindows, SequentialWindows, Window

MAX_KEPT_TEMPERATURE = 0.5  # above, what was said does not help the next window (the reference)
PARAM = "file"


class LogMel:
    """A checkpoint's own feature extractor, for one window at a time."""

    def __init__(self, extractor: Any) -> None:
        self._extractor = extractor
        self.rate: int = extractor.sampling_rate  # Hz
        self.length: int = extractor.n_samples  # of a window
        self.hop: int = extractor.hop_length  # samples from one frame to the next

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
    decoder: Decoder


class Transcribing:
    """One sound, and how many of its windows may be sent now."""

    def __init__(self, message: Transcribe, listener: Listener) -> None:
        """Raises BadRequest for options that the model cannot obey."""
        self.message = replace(message, audio=b"")  # the decoder has it
        self.is_over = False
        self._listener = listener
        self._rules = listener.format.rules(message.options)
        self._before = listener.format.text_ids(message.options.prompt)
        order = Order(listener.log_mel.rate, listener.max_seconds, PARAM)
        self._pieces = listener.decoder.decode(message.audio, order, message.request_id)
        self._windows = _windows(self._pieces, listener, message.options)
        self._number = 0
        self._num_wanted = self._windows.at_once

    @property
    def can_go_on(self) -> bool:
        """See `LongWork`: no more windows are under way than the rooms behind may hold.

        One more sample than a window has tells that it is not the last.
        """
        if self._windows.is_over:
            return True
        return self._num_wanted > 0 and self._pieces.is_ready(self._listener.log_mel.length + 1)

    @property
    def descriptor(self) -> int | None:
        """See `LongWork`."""
        return self._pieces.fileno() if self._num_wanted > 0 else None

    @property
    def latest_windows(self) -> list[str]:
        """The names of those that may be under way."""
        numbers = range(max(0, self._number - self._windows.at_once), self._number)
        return [window_name(self.message.request_id, number) for number in numbers]

    def close(self) -> None:
        """See `LongWork`."""
        self._pieces.close()

    def go_on(self) -> tuple[WindowRead, Listen] | tuple[SoundRead, None]:
        """What the frontend and the worker hear of the next window; BadRequest where it breaks."""
        window = None if self._windows.is_over else self._windows.next()
        if window is None:
            self.is_over = True
            return SoundRead(self.message.request_id), None
        number = self._number
        self._number += 1
        self._num_wanted -= 1
        return self._read(window, number), self._listen(window, number)

    def take(self, taken: WindowTaken) -> None:
        """One of its windows is in words; in sequence they say where the next begins, and how."""
        self._num_wanted += 1
        if not self.message.options.is_sequential:
            return
        num_heads = len(self._rules.heads)
        heads, words = taken.token_ids[:num_heads], taken.token_ids[num_heads:]
        first_time_id = self._listener.format.first_time_id
        num_tokens, mark = heard_part(words, first_time_id)
        self._windows.hear(None if mark is None else self._samples_before(mark))
        said = spoken(words[:num_tokens], first_time_id)
        if said:  # the language is found out once, where somebody speaks
            self._rules = replace(self._rules, heads=tuple((token_id,) for token_id in heads))
        self._before += said
        if said and taken.temperature > MAX_KEPT_TEMPERATURE:
            self._before = []

    def _samples_before(self, mark_id: int) -> int:
        """Those of a window up to a mark of time."""
        num_marks = mark_id - self._listener.format.first_time_id
        return num_marks * self._listener.log_mel.length // self._listener.format.num_heard

    def _read(self, window: Window, number: int) -> WindowRead:
        rate = self._listener.log_mel.rate
        return WindowRead(
            self.message.request_id,
            number,
            window.start / rate,
            len(window.samples) / rate,
            self._listener.format.first_time_id,
            self._listener.format.mark_seconds(self._listener.log_mel.length / rate),
        )

    def _listen(self, window: Window, number: int) -> Listen:
        format_, message = self._listener.format, self.message
        name = window_name(message.request_id, number)
        prompt = format_.prompt_ids(self._before)
        seed = (message.sampling.seed + number) % NUM_SEEDS
        room = format_.max_positions - len(prompt)
        return Listen(
            request_id=name,
            prompt_token_ids=prompt,
            max_tokens=min(len(self._rules.heads) + format_.max_text_tokens, room),
            sampling=replace(message.sampling, seed=seed, transcript=self._rules),
            temperatures=message.options.temperatures,
            num_aligned=self._num_aligned(window),
            text=TextStart(
                request_id=name,
                route=message.route,
                prompt_tail=(),
                options=TextOptions(skips_special_tokens=False),
            ),
            features=self._listener.log_mel(window.samples),
        )

    def _num_aligned(self, window: Window) -> int:
        """The encoder's positions of the sound without what fills the window up, where asked."""
        if not self.message.options.times_words:
            return 0
        num_frames = len(window.samples) // self._listener.log_mel.hop
        return max(1, num_frames // FRAMES_PER_POSITION)


def _windows(
    pieces: DecodedSound, listener: Listener, options: TranscriptOptions
) -> QuietWindows | SequentialWindows:
    kind = SequentialWindows if options.is_sequential else QuietWindows
    return kind(pieces, listener.log_mel.rate, listener.log_mel.length)


def spoken(token_ids: Sequence[int], first_time_id: int) -> list[int]:
    """These tokens without the marks of segments in which nothing is said (the reference)."""
    kept, segment = list[int](), list[int]()
    for token_id in token_ids:
        segment.append(token_id)
        if token_id >= first_time_id and len(segment) > 1:  # its end
            kept += segment if min(segment) < first_time_id else ()
            segment = []
    return kept + (segment if min(segment, default=first_time_id) < first_time_id else [])
