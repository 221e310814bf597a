"""Files of every kind become one channel at one rate; what is no sound becomes a sentence."""

import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.errors import BadRequest
from tests.tokenizer_proc.sounds import RATE, encoded, packed, tone
from tokenizer_proc import sound
from tokenizer_proc.samples import Samples
from tokenizer_proc.sound import read_sound

SECONDS = 2.5
FILES = {
    "wav": lambda: encoded(tone(SECONDS), "WAV"),
    "wav of 8 bits": lambda: encoded(tone(SECONDS), "WAV", subtype="PCM_U8"),
    "wav of floats": lambda: encoded(tone(SECONDS), "WAV", subtype="FLOAT"),
    "wav, stereo at 44.1 kHz": lambda: encoded(
        tone(SECONDS, rate=44_100, channels=2), "WAV", rate=44_100
    ),
    "wav at 8 kHz": lambda: encoded(tone(SECONDS, rate=8_000), "WAV", rate=8_000),
    "flac": lambda: encoded(tone(SECONDS), "FLAC"),
    "ogg vorbis": lambda: encoded(tone(SECONDS), "OGG", subtype="VORBIS"),
    "opus": lambda: encoded(tone(SECONDS), "OGG", subtype="OPUS"),
    "mp3": lambda: encoded(tone(SECONDS), "MP3"),
    "m4a": lambda: packed(tone(SECONDS), "mp4", "aac"),
    "webm": lambda: packed(tone(SECONDS), "webm", "libopus"),
}


def whole(data: bytes, max_seconds: float = 60.0) -> Samples:
    """All of the sound."""
    return np.concatenate(list(read_sound(data, RATE, max_seconds, "file")))


def refusal(data: bytes, max_seconds: float = 60.0) -> str:
    """Why it is refused, wherever that is found."""
    with pytest.raises(BadRequest) as caught:
        whole(data, max_seconds)
    assert caught.value.param == "file"
    return caught.value.message


def pitch(samples: Samples) -> float:
    """The strongest frequency, in Hz."""
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * RATE / len(samples))


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_sounds_the_same(kind: str) -> None:
    found = whole(FILES[kind]())
    assert found.dtype == np.float32
    assert abs(len(found) / RATE - SECONDS) < 0.1
    assert abs(pitch(found) - 440) < 2
    middle = found[RATE // 2 : -RATE // 2]
    assert abs(np.abs(middle).max() - 0.5) < 0.1


def test_resampling_by_pieces_leaves_no_seams() -> None:
    found = whole(encoded(tone(5, rate=44_100), "WAV", rate=44_100, subtype="FLOAT"))
    assert np.abs(found - tone(5))[100:-100].max() < 1e-3


def test_channels_are_mixed() -> None:
    left, right = tone(1), np.zeros(RATE, np.float32)
    found = whole(encoded(np.stack([left, right], axis=1), "WAV", subtype="FLOAT"))
    assert np.abs(found - left / 2).max() < 1e-4


def header(size: int, rate: int, channels: int) -> bytes:
    """A WAV file that claims to be what it is not."""
    chunk = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 & 0xFFFFFFFF, 2, 16)
    data = b"\0" * 2000
    inner = b"WAVEfmt " + struct.pack("<I", 16) + chunk + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", min(size + 36, 2**32 - 1)) + inner


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"this is a text, whatever its name says " * 50,
        encoded(tone(0.0), "WAV"),
        encoded(tone(1.0), "WAV")[:40],
        header(2000, 0, 1),
        header(2000, 4_000_000_000, 1),
        header(2000, 16_000, 65_535),
        encoded(np.full(RATE, np.nan, np.float32), "WAV", subtype="FLOAT"),
        encoded(tone(1.0), "MP3")[:20],
        packed(tone(1.0), "mp4", "aac")[:200],
        b"\x1a\x45\xdf\xa3" + b"\0" * 100,
        b"\0\0\0\x18ftypmp42" + b"\0" * 100,
        b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
    ],
)
def test_what_is_no_sound_is_refused_in_one_sentence(data: bytes) -> None:
    assert "'file'" in refusal(data)


def test_a_header_that_claims_gigabytes_costs_nothing() -> None:
    found = whole(header(2**32 - 100, RATE, 1))
    assert len(found) == 1000


@pytest.mark.parametrize("kind", ["FLAC", "MP3", "OGG"])
def test_a_small_file_that_is_hours_long_is_refused(kind: str) -> None:
    silence = encoded(np.zeros(600 * RATE, np.float32), kind)
    assert len(silence) < 6_000_000
    assert "longer than the 20 seconds" in refusal(silence, max_seconds=20.0)


def test_a_file_of_unknown_length_is_read_to_the_limit_only() -> None:
    endless = streamed(encoded(np.zeros(600 * RATE, np.float32), "FLAC"))
    read: list[Samples] = []
    with pytest.raises(BadRequest, match="longer than the 20 seconds"):
        read.extend(read_sound(endless, RATE, 20.0, "file"))
    assert 19 * RATE <= sum(map(len, read)) <= 20 * RATE


def test_a_file_that_says_itself_that_it_is_too_long_is_refused_at_once() -> None:
    for data in (encoded(tone(30.0), "FLAC"), packed(tone(30.0), "mp4", "aac")):
        with pytest.raises(BadRequest, match="longer than the 20 seconds"):
            read_sound(data, RATE, 20.0, "file")


def streamed(data: bytes) -> bytes:
    """A FLAC whose header does not say how many samples there are."""
    return data[:21] + bytes([data[21] & 0xF0]) + bytes(4) + data[26:]


def test_files_from_streams_do_not_know_how_long_they_are() -> None:
    flac = encoded(tone(SECONDS), "FLAC")
    assert np.array_equal(whole(streamed(flac)), whole(flac))
    wav = encoded(tone(SECONDS), "WAV")
    place = wav.index(b"data") + 4
    assert np.array_equal(whole(wav[:place] + bytes(4) + wav[place + 4 :]), whole(wav))


def test_the_very_limit_is_taken() -> None:
    assert len(whole(encoded(tone(2.0), "WAV"), max_seconds=2.0)) == 2 * RATE
    assert "longer than the 2 seconds" in refusal(encoded(tone(2.1), "WAV"), max_seconds=2.0)


def test_without_a_reader_for_films_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "av", None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "MP4" in refusal(FILES["m4a"]())
    assert "pip install av" in refusal(FILES["webm"]())


def ffmpeg(path: Path, status: int) -> str:
    """A program that is called as ffmpeg and gives one second of a tone."""
    program = path / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "assert sys.argv[sys.argv.index('-f') + 1] == 'mp4', sys.argv\n"
        "assert open(sys.argv[sys.argv.index('-i') + 1], 'rb').read(8)[4:] == b'ftyp'\n"
        "rate = int(sys.argv[sys.argv.index('-ar') + 1])\n"
        "from array import array\n"
        f"if {status} == 0: sys.stdout.buffer.write(array('f', [0.25] * rate).tobytes())\n"
        f"sys.exit({status})\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_ffmpeg_reads_what_pyav_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "av", None)
    program = ffmpeg(tmp_path, 0)
    monkeypatch.setattr(shutil, "which", lambda _: program)
    found = whole(FILES["m4a"]())
    assert len(found) == RATE
    assert found[0] == 0.25


def test_a_file_that_ffmpeg_cannot_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound, "av", None)
    program = ffmpeg(tmp_path, 1)
    monkeypatch.setattr(shutil, "which", lambda _: program)
    assert "no sound" in refusal(FILES["m4a"]())


def test_a_file_that_nobody_reads_on_leaves_no_program_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound, "av", None)
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def note(*given: object, **named: object) -> subprocess.Popen[bytes]:
        started.append(popen(*given, **named))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", note)
    program = tmp_path / "ffmpeg"
    endless = "import sys\nwhile True: sys.stdout.buffer.write(b'0' * 4096)\n"
    program.write_text(f"#!{sys.executable}\n{endless}")
    program.chmod(0o700)
    monkeypatch.setattr(shutil, "which", lambda _: str(program))
    assert "longer than the 3 seconds" in refusal(FILES["m4a"](), max_seconds=3.0)
    assert [process.poll() is not None for process in started] == [True]
