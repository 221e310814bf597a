"""Hostile sound files: each is its sender's error, costs little memory, and harms nobody else."""

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.e2e.server import RunningServer, running_server
from tests.e2e.whispers import save_whisper
from tests.reliability.conftest import Measured
from tests.reliability.rest import Vitals, vitals_of, zombies_of
from tests.reliability.sounds import silent_flac, silent_mp3, silent_opus, watched
from tests.tokenizer_proc.sounds import RATE, encoded, packed, tone
from tests.tokenizer_proc.test_sound import header
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
PATH = "/v1/audio/transcriptions"
UPLOAD_SECONDS = 10  # for a body to arrive
REST_SECONDS = 30.0
SMALL_MB, LARGE_MB = 50, 300  # that a hostile file may cost while it is looked at
GOOD = encoded(tone(3.0), "FLAC")
LONG = encoded(np.tile(tone(1.0), 500), "FLAC")
NAN = np.full(RATE, np.nan, np.float32)
heavy = [pytest.mark.slow, pytest.mark.reliability]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A Whisper of random weights, which has been at work."""
    checkpoint = save_whisper(tmp_path_factory.mktemp("whisper"))
    limits = ("--max-audio-seconds", "600", "--upload-timeout", str(UPLOAD_SECONDS))
    flags = ("--hf-model", str(checkpoint), "--torch-dtype", "float32", *limits)
    with running_server(*flags, afresh=True) as started:  # whose memory is its own
        for _ in range(3):
            assert send(started, GOOD).status_code == 200
        yield started


@pytest.fixture(autouse=True)
def at_rest(server: RunningServer) -> Iterator[None]:
    """Check Z: whatever happened, all is as it was, and a good sound is heard as before."""
    heard = send(server, GOOD).text
    wait_until(lambda: not decoding(server), REST_SECONDS)
    before = vitals_of(server)
    yield
    assert send(server, GOOD).text == heard
    wait_until(server.is_at_rest, REST_SECONDS)
    wait_until(lambda: not decoding(server), REST_SECONDS)
    assert zombies_of(server) == []
    wait_until(lambda: not_grown(before, vitals_of(server)), REST_SECONDS)


def not_grown(before: dict[str, Vitals], now: dict[str, Vitals]) -> bool:
    """True for the same processes with no more threads, and hardly more descriptors."""
    pairs = [(before[room], now[room]) for room in before]
    return before.keys() == now.keys() and all(
        old.pid == new.pid
        and new.num_threads <= old.num_threads
        and new.num_descriptors <= old.num_descriptors + 2
        for old, new in pairs
    )


def send(server: RunningServer, sound: bytes, **fields: str) -> httpx.Response:
    files = {"file": ("speech.wav", sound)}
    return httpx.post(f"{server.url}{PATH}", files=files, data=fields, timeout=300)


def decoding(server: RunningServer) -> list[psutil.Process]:
    """The processes that decode a sound now."""
    found: list[psutil.Process] = server.children()["decoder-0"].children()
    return found


def assert_refused(response: httpx.Response, *statuses: int) -> None:
    """An error of one of these statuses, which tells nothing of the server's insides."""
    assert response.status_code in (statuses or (400,)), response.text[:500]
    assert response.json()["error"]["message"]
    assert "0x" not in response.text
    assert "Traceback" not in response.text


@contextmanager
def bounded(server: RunningServer, measured: Measured, what: str, limit: int) -> Iterator[None]:
    """Notes how much memory a case takes, and holds it to its bound, in MB."""
    with watched(server) as memory:
        yield
    measured(
        what.split()[0], f"memory over {what.split(' ', 1)[1]}", f"<= {limit} MB", memory.grown
    )
    assert memory.grown <= limit


NO_SOUNDS = {
    "empty": b"",
    "one byte": b"x",
    "a text": b"this is a text, whatever its name says " * 50,
    "a header alone": encoded(tone(1.0), "WAV")[:44],
}
LIES = {
    "of 4 GB": None,  # what is there is read, and is silent
    "at 0 Hz": header(2000, 0, 1),
    "at 4 GHz": header(2000, 4_000_000_000, 1),
    "of 65,535 channels": header(2000, RATE, 65_535),
    "of what is no number": encoded(NAN, "WAV", subtype="FLOAT"),
}


def test_what_is_no_sound_is_refused(server: RunningServer, measured: Measured) -> None:
    with bounded(server, measured, "B01 what is no sound", SMALL_MB):
        for data in NO_SOUNDS.values():
            assert_refused(send(server, data))


def test_headers_that_lie_cost_nothing(server: RunningServer, measured: Measured) -> None:
    with bounded(server, measured, "B02 headers that lie", SMALL_MB):
        for data in LIES.values():
            if data is not None:
                assert_refused(send(server, data))
        heard = send(server, header(2**32 - 100, RATE, 1), response_format="verbose_json")
        assert heard.status_code == 400 or heard.json()["duration"] < 1


BOMBS: dict[str, Callable[[], bytes]] = {
    "OPUS": silent_opus,
    "MP3": silent_mp3,
    "FLAC": silent_flac,
}


@pytest.mark.parametrize("kind", [*list(BOMBS)[:2], pytest.param("FLAC", marks=heavy)])
def test_hours_in_a_small_file_are_refused_at_the_limit(
    server: RunningServer, measured: Measured, kind: str
) -> None:
    bomb = BOMBS[kind]()
    assert len(bomb) < 25 * 1024**2
    with bounded(server, measured, f"B03 three hours of {kind}", LARGE_MB):
        response = send(server, bomb)
    assert_refused(response)
    assert "longer than the 600 seconds" in response.text


def part(head: str, body: bytes) -> bytes:
    return f"--x\r\nContent-Disposition: form-data{head}\r\n\r\n".encode() + body + b"\r\n"


FILE = part('; name="file"; filename="a"', GOOD)
NESTED = b"--x\r\nContent-Disposition: form-data; name=file\r\nContent-Type: multipart/mixed; "
FORMS = {
    "a thousand parts": (b"".join(part(f'; name="n{n}"', b"1") for n in range(1000)) + FILE, "x"),
    "a part without a name": (part("", b"1") + FILE, "x"),
    "10 MB for a field": (part('; name="prompt"', b"a" * 10_000_000), "x"),
    "nested": (NESTED + b"boundary=y\r\n\r\n--y\r\n\r\n1\r\n--y--\r\n", "x"),
    "a boundary of 10 KB": (FILE, "x" * 10_000),
}


def test_forms_that_are_none_are_refused(server: RunningServer, measured: Measured) -> None:
    with bounded(server, measured, "B04 forms that are none", LARGE_MB):
        for body, boundary in FORMS.values():
            kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
            data = body + b"--x--\r\n"
            assert_refused(
                httpx.post(f"{server.url}{PATH}", content=data, headers=kind, timeout=60), 400, 413
            )


@contextmanager
def system_calls_of(process: psutil.Process, path: Path) -> Iterator[None]:
    """Writes what the process and its children open and connect to, where strace can be had."""
    program = shutil.which("strace")
    if program is None:
        yield
        return
    calls = "trace=open,openat,openat2,connect,socket,execve"
    tracer = subprocess.Popen(
        [program, "-f", "-e", calls, "-p", str(process.pid), "-o", str(path)],
        stderr=subprocess.DEVNULL,
    )
    try:
        attached = Path(f"/proc/{process.pid}/status")
        wait_until(lambda: f"TracerPid:\t{tracer.pid}" in attached.read_text(), 20)
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # it lets go of the process
        tracer.wait()


def playlists(port: int) -> list[bytes]:
    url = f"http://127.0.0.1:{port}/sound.wav"
    texts = [
        f"#EXTM3U\n#EXTINF:10,\n{url}\n#EXTINF:10,\nfile:///etc/passwd\n",
        f"ffconcat version 1.0\nfile /etc/passwd\nfile {url}\n",
        f"[playlist]\nFile1={url}\nFile2=/etc/passwd\n",
        f"concat:/etc/passwd|{url}",
        "file:///etc/passwd",
        url,
    ]
    disguises = (b"", b"\x1a\x45\xdf\xa3", b"\0\0\0\x18ftypmp42" + b"\0" * 12)
    return [disguise + text.encode() for disguise in disguises for text in texts]


def test_nothing_is_opened_that_a_file_names(
    server: RunningServer, measured: Measured, tmp_path: Path
) -> None:
    trace, film = tmp_path / "calls", packed(tone(2.0), "mp4", "aac")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with (
            system_calls_of(server.children()["decoder-0"], trace),
            bounded(server, measured, "B05 playlists", SMALL_MB),
        ):
            for data in playlists(listener.getsockname()[1]):
                assert_refused(send(server, data))
            assert send(server, film).status_code == 200
        with pytest.raises(BlockingIOError):
            listener.accept()
    calls = trace.read_text().splitlines() if trace.exists() else []
    assert not [call for call in calls if "passwd" in call or "socket(" in call]
    opened = [call for call in calls if "open" in call and "EMFILE" not in call]
    strange = [call for call in opened if '"/proc/self/statm"' not in call]
    assert strange == [], "libsndfile asks for a resource fork of each file, and is refused"
    measured("B05", "files and connections opened for 19 files", "0", len(strange))


@pytest.mark.slow
@pytest.mark.reliability
def test_uploads_up_to_their_limit(server: RunningServer, measured: Measured) -> None:
    """25 MiB are OpenAI's limit; 24.9 and 25.1 of them are on either side."""
    seconds = int(24.9 * 1024**2 / 4 / RATE)
    fits = encoded(np.tile(tone(1.0), seconds), "WAV", subtype="FLOAT")
    with bounded(server, measured, "B06 a file of 24.9 MiB", LARGE_MB):
        heard = send(server, fits, response_format="verbose_json")
    assert heard.status_code == 200, heard.text
    assert heard.json()["duration"] == pytest.approx(seconds)
    with bounded(server, measured, "B06 a file of 25.1 MiB", LARGE_MB):
        assert_refused(send(server, b"\0" * int(25.1 * 1024**2 + 64 * 1024)), 413)


@pytest.mark.slow
@pytest.mark.reliability
def test_an_upload_that_drips_is_ended(server: RunningServer) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
    kind = "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(1.0)
        connection.sendall((head + kind).encode() + b"--x\r\n")
        answer = dripped(connection)
    assert answer == b"" or answer.split()[1] == b"408"


def dripped(connection: socket.socket) -> bytes:
    """Sends a kilobyte a second until there is an answer, or none to come."""
    for _ in range(3 * UPLOAD_SECONDS):
        try:
            return connection.recv(1000)
        except TimeoutError:
            pass
        except ConnectionError:
            return b""
        with suppress(ConnectionError):  # the next look at the answer finds out
            connection.sendall(b"\0" * 1000)
    raise AssertionError("it may drip for ever")


ODD_FIELDS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"language": "xx"}, (400,)),
    ({"prompt": "<|endoftext|><|startoftranscript|><|notimestamps|> a"}, (200,)),
    ({"prompt": "<|nospeech|>" * 1000}, (200,)),
    ({"temperature": ["0", "0.2", "0.4"]}, (200, 400)),
    ({"temperature": "[0, 0.2]"}, (400,)),
    ({"temperature": "1.0", "response_format": "verbose_json"}, (200,)),
]


def test_odd_sounds_and_fields_end(server: RunningServer, measured: Measured) -> None:
    silence = encoded(np.zeros(5 * RATE, np.float32), "FLAC")
    with bounded(server, measured, "B07 silence and odd fields", LARGE_MB):
        assert send(server, silence).status_code == 200
        for fields, statuses in ODD_FIELDS:
            response = send(server, silence, **fields)
            assert response.status_code in statuses, (fields, response.text)


@pytest.mark.slow
@pytest.mark.reliability
def test_the_very_limit(server: RunningServer, measured: Measured) -> None:
    silence = np.zeros(int(600.1 * RATE), np.float32)
    with bounded(server, measured, "B07 600.1 seconds", LARGE_MB):
        assert_refused(send(server, encoded(silence, "FLAC")))
    with bounded(server, measured, "B07 600 seconds of silence", LARGE_MB):
        assert send(server, encoded(silence[: 600 * RATE], "FLAC")).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_crashes_fails_its_own_request_alone(
    server: RunningServer, number: signal.Signals
) -> None:
    before = server.children()["tokenizer-0"].pid
    victim = started(server, LONG)
    wait_until(lambda: decoding(server), REST_SECONDS)
    (child,) = decoding(server)
    beside = started(server, GOOD)
    child.send_signal(number)
    status, body = finished(victim)
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_value", "file")
    assert finished(beside)[0] == 200
    assert server.children()["tokenizer-0"].pid == before
    assert any("what decodes its sound died" in line for line in server.log)


def test_a_client_that_leaves_takes_its_decoder_with_it(server: RunningServer) -> None:
    leaver = started(server, LONG)
    wait_until(lambda: decoding(server), REST_SECONDS)
    leaver.close()
    wait_until(lambda: not decoding(server), REST_SECONDS)


def started(server: RunningServer, sound: bytes) -> socket.socket:
    """A request whose answer is not waited for."""
    body = part('; name="file"; filename="a"', sound) + b"--x--\r\n"
    kind = "Content-Type: multipart/form-data; boundary=x\r\nConnection: close"
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{kind}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.settimeout(120)
    connection.sendall(head.encode() + body)
    return connection


def finished(connection: socket.socket) -> tuple[int, Any]:
    """The status and the body of its answer."""
    with connection:
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)
