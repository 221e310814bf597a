"""Several detokenizers: which request goes through which, and what a death of one means."""

import dataclasses

import pytest

from shared.errors import ErrorCode
from shared.messages import (
    AddressBook,
    ConfirmHeld,
    PipelineWarm,
    PromptAccepted,
    RequestFailed,
    Tokenize,
)
from tests.frontend.bench import WANTED, Bench, failure
from tests.frontend.fakes import make_book, make_text
from tests.frontend.test_occupancy import sheets

# The worker is another one than that of a new bench, which knows one detokenizer.
ROOMS = {"worker-0": 2, "detokenizer-0": 1, "detokenizer-1": 1}


def book(*, is_warm: bool = True, **epochs: int) -> AddressBook:
    """All rooms with two detokenizers; of epoch 0, without one."""
    lives = {name.replace("_", "-"): epoch for name, epoch in epochs.items()}
    return dataclasses.replace(make_book({**ROOMS, **lives}), is_warm=is_warm)


def ways(bench: Bench) -> dict[str, tuple[int, int | None]]:
    """Through which life of which detokenizer each prompt goes, by request."""
    commands = [m for m in bench.mailbox.sent_to("tokenizer-0") if isinstance(m, Tokenize)]
    return {
        command.request_id: (command.route.detokenizer_id, command.route.detokenizer_epoch)
        for command in commands
    }


def answer(bench: Bench, request_id: str) -> None:
    bench.arrive(
        PromptAccepted(request_id, 1, None), make_text(request_id, 0, "", epoch=2, finish="stop")
    )
    bench.grant("tokenizer-0", 1)


def warm_ups(bench: Bench) -> dict[tuple[int, int | None], str]:
    return {way: name for name, way in ways(bench).items() if name.startswith("warm-up")}


def test_requests_go_through_all_in_turn(bench: Bench) -> None:
    bench.arrive(book())
    for _ in range(4):
        bench.submit()
    assert sorted(ways(bench).values()) == [(0, 1), (0, 1), (1, 1), (1, 1)]


def test_the_prompts_of_one_request_are_spread_and_their_answers_are_not(bench: Bench) -> None:
    bench.arrive(book())
    bench.engine.submit(dataclasses.replace(WANTED, prompts=WANTED.prompts * 2, num_choices=2))
    assert sorted(ways(bench).values()) == [(0, 1), (1, 1)]


def test_frontends_begin_with_different_ones() -> None:
    first: list[tuple[int, int | None]] = []
    for index, sheet in enumerate(sheets(2)):
        bench = Bench(index=index, sheet=sheet)
        bench.arrive(book())
        bench.submit()
        first += ways(bench).values()
        bench.mailbox.close()
    assert sorted(first) == [(0, 1), (1, 1)]


def test_a_death_fails_its_own_requests_and_the_next_go_elsewhere(bench: Bench) -> None:
    bench.arrive(book())
    submitted = [bench.submit() for _ in range(2)]
    of_which = {ways(bench)[generation.request_id][0]: generation for generation in submitted}
    bench.arrive(book(detokenizer_1=0))
    assert failure(of_which[1]) is ErrorCode.ENGINE_DEAD
    assert bench.engine.readiness_problem() is None
    further = bench.submit()
    assert ways(bench)[further.request_id] == (0, 1)
    answer(bench, of_which[0].request_id)
    assert bench.value("vllm:request_success_total", finished_reason="stop") == 1
    assert bench.value("vllm:request_success_total", finished_reason="error") == 1


def test_the_worker_is_asked_once_for_each_way(bench: Bench) -> None:
    bench.arrive(book())
    submitted = [bench.submit() for _ in range(2)]
    for generation in submitted:
        bench.arrive(PromptAccepted(generation.request_id, 9, None))
    bench.arrive(book(tokenizer_0=2))
    questions = [m for m in bench.mailbox.sent_to("worker-0") if isinstance(m, ConfirmHeld)]
    by_way = {(q.frontend_id, q.detokenizer_id): q.request_ids for q in questions}
    assert by_way == {(0, way): (name,) for name, (way, _) in ways(bench).items()}


# ── warm-up ──────────────────────────────────────────────────────────────────────────────────────


def test_a_first_token_comes_through_each(bench: Bench) -> None:
    bench.arrive(book(is_warm=False))
    assert warm_ups(bench).keys() == {(0, 1), (1, 1)}
    for way, name in warm_ups(bench).items():
        bench.arrive(PromptAccepted(name, 1, None))
        bench.arrive(make_text(name, 0, "", epoch=2, finish="length"))
        told = bench.mailbox.sent_to("launcher-0")[-1]
        assert told == PipelineWarm({"worker-0": 2, f"detokenizer-{way[0]}": 1})


def test_one_that_comes_back_is_asked_while_callers_are_served(bench: Bench) -> None:
    bench.arrive(book())
    bench.arrive(book(detokenizer_1=0))
    assert warm_ups(bench) == {}
    bench.arrive(book(detokenizer_1=2))
    assert warm_ups(bench).keys() == {(1, 2)}
    bench.submit()
    bench.arrive(book(detokenizer_1=2))
    assert len(warm_ups(bench)) == 1


def test_a_first_token_takes_no_callers_place() -> None:
    bench = Bench(max_concurrent=1, max_queue=0)
    bench.arrive(book())
    bench.arrive(book(detokenizer_1=0))
    bench.arrive(book(detokenizer_1=2))
    assert warm_ups(bench)
    assert bench.submit().request_id in ways(bench)
    bench.mailbox.close()


def test_a_token_that_fails_while_callers_are_served_ends_nobody(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.arrive(book())
    bench.arrive(book(detokenizer_1=0))
    bench.arrive(book(detokenizer_1=2))
    (name,) = warm_ups(bench).values()
    bench.arrive(RequestFailed(name, ErrorCode.INTERNAL, "no memory", None))
    assert "detokenizer-1 has not had its first token: no memory" in caplog.text
    assert bench.engine.readiness_problem() is None


def test_a_frontend_that_comes_late_asks_nobody(bench: Bench) -> None:
    bench.arrive(book(worker_0=7))
    assert warm_ups(bench) == {}


@pytest.mark.parametrize("room", ["detokenizer_1", "tokenizer_0"])
def test_a_first_token_that_was_lost_is_asked_for_again(bench: Bench, room: str) -> None:
    bench.arrive(book(is_warm=False))
    bench.arrive(book(is_warm=False, **{room: 0}))
    num_asked = len(warm_ups(bench))
    bench.arrive(book(is_warm=False, **{room: 2}))
    bench.grant("tokenizer-0", 4, epoch=2 if room == "tokenizer_0" else 1)
    names = [name for name in bench.tokenised() if name.startswith("warm-up")]
    assert len(names) > num_asked
