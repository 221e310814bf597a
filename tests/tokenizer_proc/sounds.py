"""Sound files made by hand."""

import io
from typing import Any

import av
import numpy as np
import soundfile

from tokenizer_proc.samples import Samples

RATE = 16_000


def tone(seconds: float, hertz: float = 440.0, rate: int = RATE, channels: int = 1) -> Samples:
    """A sine of half the full amplitude, [n] or [n, channels]."""
    times = np.arange(int(seconds * rate)) / rate
    wave = (0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)
    return wave if channels == 1 else np.stack([wave] * channels, axis=1)


def encoded(samples: Samples, kind: str, rate: int = RATE, subtype: str | None = None) -> bytes:
    """The samples as a file of one of libsndfile's kinds; some of these crash on long writes."""
    file = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(file, "w", rate, channels, subtype, format=kind) as output:
        for start in range(0, len(samples), rate):
            output.write(samples[start : start + rate])
    return file.getvalue()


def packed(samples: Samples, container: str, codec: str) -> bytes:
    """The samples in a container of films, such as phones and browsers make."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=48_000, frame_size=960)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return file.getvalue()
