"""A sound is decoded in a process of its own, whose end, however it comes, is no other's."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

from shared.child import TITLE
from shared.errors import BadRequest, ErrorCode, FatalError, RequestError
from tests.e2e.server import is_alive
from tests.reliability.sounds import HOURS, silent_opus
from tests.tokenizer_proc.decoders import NAME, children_of, found_on_the_path, running_decoder
from tests.tokenizer_proc.sounds import RATE, encoded, tone
from tests.tokenizer_proc.test_sound import FILES, whole
from tests.waiting import wait_until
from tokenizer_proc import decoder as program
from tokenizer_proc import decoding
from tokenizer_proc.decoder_wire import Order
from tokenizer_proc.decoding import DecodedSound, Decoder

ORDER = Order(RATE, 120.0, "file")
GONE_SECONDS = 5.0
LONG = encoded(np.tile(tone(1.0), 100), "FLAC")
PLANTED = "tests.tokenizer_proc.planted_decoder"
# A tokenizer that has a sound under way and then waits to be killed.
TOKENIZER = """
import sys
from tests.tokenizer_proc.test_decoding import LONG, ORDER
from tokenizer_proc.decoding import Decoder
decoder = Decoder("decoder-0")
sound = decoder.decode(LONG, ORDER, "request")
next(sound)
print(decoder._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def shared_decoder() -> Iterator[Decoder]:
    with running_decoder() as decoder:
        yield decoder


@pytest.fixture
def decoder(shared_decoder: Decoder) -> Iterator[Decoder]:
    """One that nobody has anything under way at, neither before nor after."""
    num_descriptors = psutil.Process().num_fds()
    with found_on_the_path():
        yield shared_decoder
    wait_until(lambda: not children_of(shared_decoder), GONE_SECONDS)
    assert psutil.Process().num_fds() == num_descriptors


@pytest.fixture(scope="module")
def planted() -> Iterator[Decoder]:
    with running_decoder(PLANTED) as decoder:
        yield decoder


def begin(decoder: Decoder, data: bytes) -> DecodedSound:
    return decoder.decode(data, ORDER, "some-request")


def refusal(sound: DecodedSound) -> str:
    """Why it is refused, wherever that is found."""
    with closing(sound), pytest.raises(BadRequest) as caught:
        list(sound)
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_VALUE, "file")
    return caught.value.message


@pytest.mark.parametrize("kind", FILES)
def test_the_sound_is_what_it_would_be_in_this_process(decoder: Decoder, kind: str) -> None:
    """Also that nothing has to be opened for any kind of file."""
    data = FILES[kind]()
    assert np.array_equal(np.concatenate(list(begin(decoder, data))), whole(data))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no sound file"),
        (b"no sound at all", "no sound file"),
        (encoded(tone(0.0), "WAV"), "holds no sound"),
        (encoded(np.tile(tone(1.0), 121), "FLAC"), "longer than the 120 seconds"),
    ],
)
def test_what_is_no_sound_is_refused_as_by_the_reader(
    decoder: Decoder, data: bytes, sentence: str
) -> None:
    assert sentence in refusal(begin(decoder, data))


def test_nothing_is_held_that_is_not_asked_for(decoder: Decoder) -> None:
    with closing(begin(decoder, LONG)) as sound:
        wait_until(lambda: sound.is_ready(2 * RATE), GONE_SECONDS)
        (child,) = children_of(decoder)
        wait_until(lambda: child.status() == psutil.STATUS_SLEEPING, GONE_SECONDS)
        assert 2 * RATE <= sound._num_held < 4 * RATE
        assert sum(map(len, sound)) == 100 * RATE


def test_a_sound_that_is_dropped_at_once_leaves_no_child(planted: Decoder) -> None:
    """Before anybody has read who decodes it."""
    sound = begin(planted, b"hang")
    wait_until(lambda: children_of(planted), GONE_SECONDS)
    sound.close()
    wait_until(lambda: not children_of(planted), GONE_SECONDS)


def test_whether_something_is_there_can_be_asked_without_waiting(decoder: Decoder) -> None:
    with closing(begin(decoder, LONG)) as sound:
        next(sound)
        (child,) = children_of(decoder)
        child.suspend()
        started = time.monotonic()
        assert not sound.is_ready(100 * RATE)
        assert time.monotonic() - started < 0.5
        child.resume()
        wait_until(lambda: sound.is_ready(100 * RATE), GONE_SECONDS)  # the end is near enough
        assert sum(map(len, sound)) == 99 * RATE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_child_that_dies_fails_its_own_sound_alone(
    decoder: Decoder, number: signal.Signals
) -> None:
    with closing(begin(decoder, LONG)) as other:
        next(other)
        (spared,) = children_of(decoder)
        victim = begin(decoder, LONG)
        next(victim)
        (child,) = set(children_of(decoder)) - {spared}
        child.send_signal(number)
        assert "no sound file" in refusal(victim)
        assert sum(map(len, other)) > 98 * RATE


def test_a_child_that_gives_nothing_is_ended(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "SILENT_SECONDS", 0.3)
    sound = begin(decoder, LONG)
    next(sound)
    (child,) = children_of(decoder)
    child.suspend()
    assert "too long" in refusal(sound)
    wait_until(lambda: not is_alive(child), GONE_SECONDS)


def test_sounds_that_nobody_wants_any_more_leave_nothing(decoder: Decoder) -> None:
    for number in range(30):
        sound = begin(decoder, LONG)
        if number % 3:
            next(sound)
        sound.close()
        sound.close()


def test_limits_are_the_kernels(decoder: Decoder) -> None:
    with closing(begin(decoder, LONG)) as sound:
        next(sound)
        (child,) = children_of(decoder)
        held = {what: resource.prlimit(child.pid, what) for what in range(resource.RLIMIT_AS + 1)}
        size = child.memory_info().vms
    assert held[resource.RLIMIT_NOFILE] == (0, 0)
    assert held[resource.RLIMIT_CORE] == (0, 0)
    assert held[resource.RLIMIT_CPU] == (72, 72)
    assert held[resource.RLIMIT_AS][1] <= size + program.MEMORY_BYTES


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("crash", "no sound file"),
        ("exit", "no sound file"),
        ("raise", "no sound file"),
        ("spin", "no sound file"),
        ("eat", "more memory"),
        ("open /etc/passwd", "no sound file"),
        ("connect", "no sound file"),
    ],
)
def test_the_worst_that_a_file_can_do_is_a_refusal(
    planted: Decoder, what: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert sentence in refusal(begin(planted, what.encode()))
    reasons = {
        "raise": "IndexError('planted')",
        "open /etc/passwd": "Too many open files",
        "connect": "Too many open files",
    }
    assert reasons.get(what, "") in caplog.text
    assert sum(map(len, begin(planted, b"nothing"))) == 2000


def test_one_that_hangs_is_ended(planted: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SILENT_SECONDS", 0.3)
    assert "too long" in refusal(begin(planted, b"hang"))
    wait_until(lambda: not children_of(planted), GONE_SECONDS)


def test_signals_of_a_terminal_end_nothing(decoder: Decoder) -> None:
    process = psutil.Process(decoder._process.pid)
    assert process.cmdline()[0] == f"{TITLE}: {NAME}"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    assert sum(map(len, begin(decoder, FILES["wav"]()))) == 2.5 * RATE


def test_a_decoder_that_has_died_is_started_again_and_no_file_is_at_fault() -> None:
    with running_decoder() as decoder, closing(begin(decoder, LONG)) as sound:
        next(sound)
        (child,) = children_of(decoder)
        decoder._process.kill()
        wait_until(lambda: not is_alive(child), GONE_SECONDS)
        with pytest.raises(RequestError) as caught:
            list(sound)
        assert caught.value.code == ErrorCode.INTERNAL
        assert sum(map(len, begin(decoder, FILES["wav"]()))) == 2.5 * RATE


def test_where_no_process_can_be_had_the_server_is_at_fault(decoder: Decoder) -> None:
    """A fork that fails closes the channel without a word, as a decoder that dies at once does."""
    decoder._process.send_signal(signal.SIGSTOP)
    with closing(begin(decoder, LONG)) as sound:
        decoder._process.kill()
        decoder._process.wait()
        with pytest.raises(RequestError) as caught:
            next(sound)
    assert caught.value.code is ErrorCode.INTERNAL
    assert sum(map(len, begin(decoder, FILES["wav"]()))) == 2.5 * RATE


def test_a_decoder_that_stands_still_is_the_servers_fault(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "SILENT_SECONDS", 0.3)
    decoder._process.send_signal(signal.SIGSTOP)
    with closing(begin(decoder, LONG)) as sound, pytest.raises(RequestError) as caught:
        next(sound)
    decoder._process.send_signal(signal.SIGCONT)
    assert caught.value.code is ErrorCode.INTERNAL


def test_a_decoder_that_does_not_start_ends_the_start() -> None:
    missing = Decoder("decoder-0", "tests.no_such_module")
    with closing(missing), pytest.raises(FatalError, match="does not start"):
        missing.wait_started()


def test_all_die_with_the_tokenizer() -> None:
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", TOKENIZER],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        decoder = psutil.Process(int(process.stdout.readline()))
        family = [decoder, *decoder.children()]
        process.kill()
    assert len(family) == 2
    wait_until(lambda: not any(map(is_alive, family)), GONE_SECONDS)


@pytest.mark.slow
def test_three_hours_pass_through_little_memory(decoder: Decoder) -> None:
    order = Order(RATE, 4 * 3600.0, "file")
    with closing(decoder.decode(silent_opus(), order, "long")) as sound:
        next(sound)
        (child,) = children_of(decoder)
        sizes, num_samples = [child.memory_info().rss], RATE
        for number, piece in enumerate(sound):
            num_samples += len(piece)
            if number % 500 == 0:
                sizes.append(child.memory_info().rss)
    assert abs(num_samples - HOURS * 3600 * RATE) < RATE
    assert max(sizes) - sizes[0] < 8 * 1024**2
