"""A sound in the frontend: windows become known one by one, in any order, and end together."""

import asyncio

import pytest

from frontend.events import Event, Failed, Finished, TextAdded, WindowStarted
from frontend.generation import Generation
from frontend.submission import Transcription
from shared.errors import ErrorCode
from shared.messages import (
    Abort,
    ConfirmHeld,
    RequestFailed,
    SoundRead,
    TextProduced,
    Transcribe,
    WindowRead,
    WindowTaken,
)
from shared.parts import Heard, ScoredToken, TextEnded, TranscriptOptions
from shared.sampling import SamplingParams
from shared.windows import sound_of, window_name
from tests.frontend.bench import Bench
from tests.frontend.fakes import make_book

HEARD = Heard(0.2, -0.5, 1.0, 0.1, 0.4)
WANTED = Transcription(b"RIFF", TranscriptOptions(), SamplingParams(seed=1, temperature=0.0))


@pytest.fixture
def sound(bench: Bench) -> tuple[Generation, str]:
    """A sound that a tokenizer reads, and its name."""
    generation = bench.engine.submit(WANTED)
    (order,) = [m for m in bench.mailbox.sent_to("tokenizer-0") if isinstance(m, Transcribe)]
    assert (order.audio, order.options) == (b"RIFF", TranscriptOptions())
    return generation, order.request_id


def read(name: str, number: int) -> WindowRead:
    return WindowRead(name, number, 2.0 * number, 2.0, 1000, 0.02)


def text(name: str, number: int, seq: int, *, ends: bool = False, epoch: int = 1) -> TextProduced:
    """One token of one window."""
    window = window_name(name, number)
    ended = (TextEnded(window, 0, "stop", None, 0, heard=HEARD),) if ends else ()
    token = ScoredToken("a", (97,), -0.5, (), 7)
    scored = ((token,),)
    return TextProduced(0, epoch, (window,), (0,), (seq,), ("a",), (seq + 1,), scored, (), ended)


def events(generation: Generation) -> list[Event]:
    """What has come by now."""

    async def take() -> list[Event]:
        async with asyncio.timeout(1):
            return await generation.next_events()

    return asyncio.run(take())


def taken(bench: Bench) -> int:
    return sum(isinstance(m, WindowTaken) for m in bench.mailbox.sent_to("tokenizer-0"))


@pytest.mark.parametrize("name", ["trsc-1", "trsc-1-0", "a#b"])
def test_a_windows_name_is_read_again(name: str) -> None:
    assert sound_of(window_name(name, 12)) == (name, 12)
    assert sound_of("chatcmpl-5") == ("chatcmpl-5", 0)


def test_it_ends_when_the_last_window_is_known_and_all_have_ended(
    bench: Bench, sound: tuple[Generation, str]
) -> None:
    generation, name = sound
    bench.arrive(read(name, 0), text(name, 0, 0), text(name, 0, 1, ends=True))
    assert taken(bench) == 1
    assert bench.mailbox.sent[-1] == ("tokenizer-0", WindowTaken(name, (7,), 0.4))
    bench.arrive(text(name, 1, 0, ends=True))  # it overtakes the tokenizer's word
    assert taken(bench) == 2
    bench.arrive(read(name, 1), read(name, 2), SoundRead(name))
    found = events(generation)
    assert [type(event) for event in found].count(WindowStarted) == 3
    assert not any(isinstance(event, Finished) for event in found)
    bench.arrive(text(name, 2, 0, ends=True))
    assert taken(bench) == 2, "nothing is left to read"
    *_, last = events(generation)
    assert last == Finished(4, 0)
    assert bench.engine.is_empty


def test_a_window_may_end_before_those_before_it(
    bench: Bench, sound: tuple[Generation, str]
) -> None:
    """And all of it may come before the tokenizer's word of any."""
    generation, name = sound
    bench.arrive(text(name, 2, 0, ends=True), read(name, 0), read(name, 1), read(name, 2))
    bench.arrive(SoundRead(name), text(name, 1, 0, ends=True), text(name, 0, 0, ends=True))
    assert isinstance(events(generation)[-1], Finished)


def test_the_last_word_of_the_tokenizer_may_end_it(
    bench: Bench, sound: tuple[Generation, str]
) -> None:
    generation, name = sound
    bench.arrive(read(name, 0), text(name, 0, 0, ends=True))
    bench.arrive(text(name, 1, 0, ends=True), read(name, 1), SoundRead(name))
    assert isinstance(events(generation)[-1], Finished)


def test_texts_are_of_their_windows(bench: Bench, sound: tuple[Generation, str]) -> None:
    generation, name = sound
    bench.arrive(read(name, 0), read(name, 1), SoundRead(name), text(name, 1, 0), text(name, 0, 0))
    added = [event for event in events(generation) if isinstance(event, TextAdded)]
    assert [event.choice for event in added] == [1, 0]


def test_a_caller_who_leaves_is_told_to_all_who_work_for_it(
    bench: Bench, sound: tuple[Generation, str]
) -> None:
    generation, name = sound
    bench.arrive(read(name, 0), text(name, 0, 0, ends=True), read(name, 1), read(name, 2))
    with generation:
        pass
    assert bench.mailbox.aborted("tokenizer-0") == [name]
    assert bench.mailbox.aborted() == [window_name(name, 1), window_name(name, 2)]
    bench.arrive(text(name, 3, 0))  # on its way already
    assert bench.mailbox.sent[-1] == ("worker-0", Abort(window_name(name, 3)))


@pytest.mark.parametrize("window", ["", "#1"])
def test_one_window_that_fails_fails_the_sound(
    bench: Bench, sound: tuple[Generation, str], window: str
) -> None:
    generation, name = sound
    bench.arrive(read(name, 0), read(name, 1))
    bench.arrive(RequestFailed(name + window, ErrorCode.INTERNAL, "It broke.", None))
    last = events(generation)[-1]
    assert isinstance(last, Failed)
    assert last.error.message == "It broke."
    assert window_name(name, 0) in bench.mailbox.aborted()
    assert bench.engine.is_empty


def test_a_gap_fails_it(bench: Bench, sound: tuple[Generation, str]) -> None:
    generation, name = sound
    bench.arrive(read(name, 0), text(name, 0, 0), text(name, 0, 2))
    assert isinstance(events(generation)[-1], Failed)


@pytest.mark.parametrize("room", ["tokenizer-0", "worker-0", "detokenizer-0"])
def test_the_death_of_a_room_that_has_it_ends_it(
    bench: Bench, sound: tuple[Generation, str], room: str
) -> None:
    generation, name = sound
    bench.arrive(read(name, 0))
    bench.arrive(make_book({room: 2}))
    last = events(generation)[-1]
    assert isinstance(last, Failed)
    assert last.error.code == ErrorCode.ENGINE_DEAD


def test_of_a_sound_that_is_read_the_silent_windows_are_asked_for(
    bench: Bench, sound: tuple[Generation, str]
) -> None:
    _, name = sound
    bench.arrive(read(name, 0), text(name, 0, 0), read(name, 1), read(name, 2), SoundRead(name))
    bench.arrive(make_book({"tokenizer-0": 2}))
    asked = [m for m in bench.mailbox.sent_to("worker-0") if isinstance(m, ConfirmHeld)]
    assert asked == [ConfirmHeld(0, 0, (window_name(name, 1), window_name(name, 2)))]
    assert not bench.engine.is_empty


def test_silence_for_too_long_ends_it() -> None:
    bench = Bench(first_token_timeout=5.0)
    generation = bench.engine.submit(WANTED)
    bench.engine.submit(WANTED)
    *_, order = [m for m in bench.mailbox.sent_to("tokenizer-0") if isinstance(m, Transcribe)]
    bench.arrive(read(order.request_id, 0))  # its words take as long as they take
    bench.now = 6.0
    bench.engine.sweep()
    last = events(generation)[-1]
    assert isinstance(last, Failed)
    assert last.error.code == ErrorCode.TIMEOUT
    bench.mailbox.close()
