"""Sound files to send, round and round, and the requests that carry them."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import soundfile

from benchmarks.load.answers import Arrival
from benchmarks.load.outcome import Outcome
from benchmarks.load.prompts import DatasetError
from benchmarks.load.transcripts import read_streamed, read_whole

TRANSCRIPTIONS = "/v1/audio/transcriptions"
OWN_FIELDS = ("file", "stream", "response_format")  # of the form; what is measured depends on them


@dataclass(frozen=True)
class Sound:
    """A file to send."""

    name: str
    content: bytes
    seconds: float | None  # None: this program cannot read it, and the server perhaps can


@dataclass(frozen=True)
class SoundTarget:
    """What is asked of the server that transcribes."""

    base_url: str
    model: str
    is_streamed: bool
    fields: dict[str, Any] = field(default_factory=dict)  # of every request's form

    @property
    def url(self) -> str:
        """Where it is asked."""
        return self.base_url + TRANSCRIPTIONS

    def request(self, sound: Sound) -> dict[str, Any]:
        """The form, as aiohttp takes it."""
        form = aiohttp.FormData()
        form.add_field("file", io.BytesIO(sound.content), filename=sound.name)
        form.add_field("model", self.model)
        if self.is_streamed:
            form.add_field("stream", "true")
        else:
            form.add_field("response_format", "verbose_json")
        for name, value in self.fields.items():
            for item in value if isinstance(value, list) else [value]:
                form.add_field(name, item if isinstance(item, str) else orjson.dumps(item).decode())
        return {"data": form}

    def read(self, sent: float, ended: float, sound: Sound, arrivals: list[Arrival]) -> Outcome:
        """What became of a request that was answered with status 200."""
        if self.is_streamed:
            return read_streamed(sent, sound.seconds, arrivals)
        body = b"".join(data for _, data in arrivals)
        return read_whole(sent, ended, sound.seconds, body)


def read_sounds(path: Path) -> Iterator[Sound]:
    """The file, or the files of a directory in the order of their names, round and round."""
    try:
        is_directory = path.is_dir()
        paths = (
            sorted(each for each in path.iterdir() if each.is_file()) if is_directory else [path]
        )
        sounds = [_read(each) for each in paths]
    except OSError as error:
        raise DatasetError(f"--audio {path}: {error}") from error
    if not sounds:
        raise DatasetError(f"--audio {path} holds no files")
    return cycle(sounds)


def _read(path: Path) -> Sound:
    content = path.read_bytes()
    try:
        seconds = float(soundfile.info(io.BytesIO(content)).duration)
    except soundfile.LibsndfileError:
        seconds = None
    return Sound(path.name, content, seconds)
