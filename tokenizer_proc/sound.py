"""Sound files of any common kind as one channel at one rate, piece by piece and under limits.

What a file is, is found by its content; its name means nothing. libsndfile reads WAV, FLAC, Ogg,
Opus, MP3 and a few others; PyAV, where it is installed, else the ffmpeg program, reads MP4 (m4a)
and Matroska (webm). Nothing that a file names is opened. Decoders crash and hang over hostile
files, so all of this runs in a process of its own for each of them (`decoder.py`).
"""

import importlib
import io
import os
import pkgutil
import select
import shutil
import subprocess
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from typing import IO, Any

import numpy as np
import soundfile
import soxr

from shared.child import die_with
from shared.errors import BadRequest
from tokenizer_proc.samples import Samples

av: Any = None
with suppress(ImportError):  # an extra: its wheels are GPL
    import av

MAX_CHANNELS = 32
RATES = (1_000, 400_000)  # Hz, of the file
PIECE_SECONDS = 1.0
_KINDS = frozenset({"AIFF", "AU", "CAF", "FLAC", "MP3", "OGG", "RF64", "W64", "WAV", "WAVEX"})
_BOXES = b"ftyp"  # ISO/IEC 14496-12: the type of a file's first box
_EBML = b"\x1a\x45\xdf\xa3"  # RFC 8794: how Matroska and WebM begin
_SILENT_SECONDS = 20.0  # that ffmpeg may take for its next piece
_UNKNOWN_SECONDS = 1e9  # a file from a stream says that it is longer than a life


def read_sound(data: bytes, rate: int, max_seconds: float, param: str) -> Iterator[Samples]:
    """Pieces of about a second, [n] each, at this rate; BadRequest for what is no sound.

    The first piece is read before this returns, so that most of what is wrong is found at once. A
    file is read no further than `max_seconds`, and is refused there.
    """
    pieces = _limited(
        _resampled(_opened(data, rate, max_seconds, param), rate, param), rate, max_seconds, param
    )
    first = next(pieces, None)
    if first is None:
        raise BadRequest(f"'{param}' holds no sound.", param)
    return chain((first,), pieces)


def import_all() -> None:
    """Imports what PyAV would import when a file needs it, where nothing can be opened any more."""
    for module in pkgutil.walk_packages(av.__path__, "av.") if av is not None else ():
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def needs_program(data: bytes) -> bool:
    """True for what another program must read."""
    return av is None and _container(data) is not None


def _opened(
    data: bytes, rate: int, max_seconds: float, param: str
) -> Generator[tuple[int, Samples]]:
    """Pieces of one channel, each with its rate."""
    container = _container(data)
    if container is None:
        return _by_libsndfile(data, max_seconds, param)
    if av is not None:
        return _by_pyav(data, container, rate, max_seconds, param)
    program = shutil.which("ffmpeg")
    if program is None:
        raise BadRequest(
            f"'{param}' is {container.upper()}, which this server cannot read: send WAV, FLAC, "
            "MP3, Ogg or Opus, or install PyAV (pip install av) or ffmpeg on the server.",
            param,
        )
    return _by_ffmpeg(data, container, rate, program, param)


def _container(data: bytes) -> str | None:
    """The kind of file that libsndfile does not know, as ffmpeg calls it."""
    if data[4:8] == _BOXES:
        return "mp4"
    return "matroska" if data.startswith(_EBML) else None


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """A file that is read once: files from streams do not know how long they are."""

    def seekable(self) -> bool:
        """Never: each read would seek, which some of them do not survive."""
        return False


def _by_libsndfile(data: bytes, max_seconds: float, param: str) -> Generator[tuple[int, Samples]]:
    try:
        file = _ForwardFile(io.BytesIO(_with_length(data)))
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise BadRequest(f"'{param}' is no sound file that can be read.", param) from error
    with file:
        is_sane = file.format in _KINDS and RATES[0] <= file.samplerate <= RATES[1]
        if not is_sane or not 1 <= file.channels <= MAX_CHANNELS:
            sentence = f"'{param}' is {file.format} of {file.channels} channels at"
            raise BadRequest(f"{sentence} {file.samplerate} Hz, which cannot be read.", param)
        _refuse_length(file.frames / file.samplerate, max_seconds, param)
        at_once = int(PIECE_SECONDS * file.samplerate)
        try:
            while len(frames := file.read(at_once, dtype="float32", always_2d=True)):
                yield file.samplerate, frames.mean(axis=1, dtype=np.float32)
        except soundfile.LibsndfileError as error:
            raise BadRequest(f"'{param}' is a broken sound file.", param) from error


def _by_pyav(
    data: bytes, container: str, rate: int, max_seconds: float, param: str
) -> Generator[tuple[int, Samples]]:
    try:
        opened: Any = av.open(io.BytesIO(data), format=container, metadata_errors="ignore")
        with opened as file:
            if not file.streams.audio:
                raise BadRequest(f"'{param}' holds no sound.", param)
            _refuse_length((file.duration or 0) / av.time_base, max_seconds, param)
            size = int(PIECE_SECONDS * rate)
            resampler = av.AudioResampler("flt", "mono", rate, frame_size=size)
            frames = chain(file.decode(audio=0), (None,))  # None: the resampler's rest
            for frame in frames:
                for piece in resampler.resample(frame):
                    yield rate, piece.to_ndarray()[0].astype(np.float32)
    except (av.FFmpegError, ValueError) as error:
        raise BadRequest(f"'{param}' is no sound file that can be read.", param) from error


def _by_ffmpeg(
    data: bytes, container: str, rate: int, program: str, param: str
) -> Generator[tuple[int, Samples]]:
    """Some files can be read only from a place where one can go back, so it gets one in memory."""
    with open(os.memfd_create("sound"), "wb") as file:  # noqa: PTH123 — a descriptor, no path
        file.write(data)
        file.flush()
        arguments = (
            program, "-nostdin", "-loglevel", "quiet", "-protocol_whitelist", "file,pipe",
            "-f", container, "-i", f"/proc/self/fd/{file.fileno()}", "-map", "0:a:0",
            "-ac", "1", "-ar", str(rate), "-f", "f32le", "pipe:1",
        )  # fmt: skip
        with _started(arguments, file.fileno()) as process:
            assert process.stdout is not None
            try:
                while piece := _read(process.stdout, 4 * int(PIECE_SECONDS * rate), param):
                    yield rate, np.frombuffer(piece[: len(piece) // 4 * 4], dtype="<f4")
                status = process.wait(_SILENT_SECONDS)
            finally:
                process.kill()
            if status != 0:
                raise BadRequest(f"'{param}' is no sound file that can be read.", param)


def _started(arguments: Sequence[str], descriptor: int) -> subprocess.Popen[bytes]:
    """A program found on the PATH, with our own arguments; it dies with this process."""
    return subprocess.Popen(  # noqa: S603
        arguments,
        stdout=subprocess.PIPE,
        bufsize=0,
        pass_fds=(descriptor,),
        preexec_fn=partial(die_with, os.getpid()),
    )


def _read(pipe: IO[bytes], num_bytes: int, param: str) -> bytes:
    """So many bytes, or fewer at the end; BadRequest where nothing comes for too long."""
    data = b""
    while len(data) < num_bytes:
        ready, _, _ = select.select([pipe], [], [], _SILENT_SECONDS)
        if not ready:
            raise BadRequest(f"'{param}' takes too long to read.", param)
        more = os.read(pipe.fileno(), num_bytes - len(data))
        if not more:
            break
        data += more
    return data


def _with_length(data: bytes) -> bytes:
    """A WAV whose recorder never wrote how long it is, with the length of all that is there."""
    place = data.find(b"data", 12, 4096) + 4
    if data[:4] == b"RIFF" and place > 4 and data[place : place + 4] == bytes(4):
        return data[:place] + b"\xff" * 4 + data[place + 4 :]
    return data


def _refuse_length(seconds: float, max_seconds: float, param: str) -> None:
    """Raises BadRequest for a file that says itself that it is too long."""
    if max_seconds < seconds < _UNKNOWN_SECONDS:
        raise _too_long(max_seconds, param)


def _too_long(max_seconds: float, param: str) -> BadRequest:
    sentence = f"'{param}' is longer than the {max_seconds:g} seconds"
    return BadRequest(f"{sentence} that this server takes (--max-audio-seconds).", param)


def _resampled(pieces: Generator[tuple[int, Samples]], rate: int, param: str) -> Generator[Samples]:
    stream = None
    with closing(pieces):
        for given_rate, piece in pieces:
            if not np.isfinite(piece).all():
                raise BadRequest(f"'{param}' holds samples that are no numbers.", param)
            if given_rate == rate:
                yield piece
                continue
            if stream is None:
                stream = soxr.ResampleStream(given_rate, rate, 1, dtype="float32")
            yield stream.resample_chunk(piece)
        if stream is not None:
            yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _limited(
    pieces: Generator[Samples], rate: int, max_seconds: float, param: str
) -> Generator[Samples]:
    num_left = int(max_seconds * rate)
    with closing(pieces):
        for piece in pieces:
            num_left -= len(piece)
            if num_left < 0:
                raise _too_long(max_seconds, param)
            if len(piece):
                yield piece
