"""Hostile sound files, and how much memory a server takes over them."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil

from tests.e2e.server import RunningServer
from tests.tokenizer_proc.sounds import RATE, encoded

HOURS = 3
SAMPLE_SECONDS = 0.01  # from one look at the memory to the next
_FRAME = 960  # samples of an Opus packet at 48 kHz: 20 ms


def silent_opus() -> bytes:
    """Hours of silence: one packet, again and again."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as output:
        stream: Any = output.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, _FRAME), np.float32), "flt", "mono")
        frame.sample_rate = 48_000
        packets = [*stream.encode(frame), *stream.encode(None)]
        silence = bytes(packets[0])
        for number in range(HOURS * 3600 * 48_000 // _FRAME):
            packet = av.Packet(silence)
            packet.stream = stream
            packet.pts = packet.dts = number * _FRAME
            packet.duration = _FRAME
            output.mux(packet)
    return file.getvalue()


def silent_mp3() -> bytes:
    """Hours of silence: a minute of it, again and again, without the frame that says how long."""
    minute = encoded(np.zeros(60 * RATE, np.float32), "MP3")
    return minute[minute.index(minute[:2], 4) :] * (60 * HOURS)


def silent_flac() -> bytes:
    """Hours of silence that do not say how many they are: all of it has to be decoded."""
    data = encoded(np.zeros(HOURS * 3600 * RATE, np.float32), "FLAC")
    return data[:21] + bytes([data[21] & 0xF0]) + bytes(4) + data[26:]


class Memory:
    """Megabytes that a server's processes have together, what several share counted once."""

    def __init__(self, server: RunningServer) -> None:
        self._launcher = psutil.Process(server.process.pid)
        self.before = self.now()
        self.peak = self.before

    @property
    def grown(self) -> float:
        """How much more there was at the worst moment."""
        return self.peak - self.before

    def now(self) -> float:
        """The proportional set sizes, which the kernel reckons; see proc_pid_smaps(5)."""
        return sum(map(_proportional, self._family())) / 1024

    def look(self) -> None:
        """Notes a new peak."""
        self.peak = max(self.peak, self.now())

    def _family(self) -> list[psutil.Process]:
        return [self._launcher, *self._launcher.children(recursive=True)]


def _proportional(process: psutil.Process) -> int:
    """kB; 0 for a process that has just ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


@contextmanager
def watched(server: RunningServer) -> Iterator[Memory]:
    """Looks at the memory all the while."""
    memory, is_over = Memory(server), threading.Event()

    def look() -> None:
        while not is_over.wait(SAMPLE_SECONDS):
            memory.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield memory
    finally:
        is_over.set()
        thread.join()
        memory.look()
