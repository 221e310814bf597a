"""Several detokenizers: each hears of its own requests alone, and each may hold the worker up."""

from gpu_worker.lines import MAX_UNACKNOWLEDGED_STEPS
from shared.messages import (
    Abort,
    AddressBook,
    ConfirmHeld,
    Generate,
    Message,
    StepsAcknowledged,
    TokensSampled,
)
from shared.parts import Peer, RequestLost
from tests.gpu_worker.stage import (
    EPOCH,
    STEP_SECONDS,
    Stage,
    expected_answer,
    generate,
)

ROOMS = ("frontend-0", "frontend-1", "detokenizer-0", "detokenizer-1")
NUM_TOKENS = 12


def book(**epochs: int) -> AddressBook:
    """The rooms around the worker; some in another life, or with epoch 0 in none."""
    lives = {**dict.fromkeys(ROOMS, 1), **{n.replace("_", "-"): e for n, e in epochs.items()}}
    peers = [Peer(room, epoch, f"ipc://{room}", True, None) for room, epoch in lives.items()]
    return AddressBook(tuple(peer for peer in peers if peer.epoch), is_warm=True)


def lasting(request_id: str, detokenizer: int, num_tokens: int = NUM_TOKENS) -> Generate:
    """A request whose answer does not end before its length."""
    prompts = ((a, b) for a in range(10, 40) for b in range(10, 40))
    requests = (
        generate(request_id, *prompt, max_tokens=num_tokens, detokenizer=detokenizer)
        for prompt in prompts
    )
    return next(r for r in requests if len(expected_answer(r)) == num_tokens)


def told(stage: Stage, detokenizer: int) -> list[TokensSampled]:
    """What one detokenizer was told, in order."""
    room = f"detokenizer-{detokenizer}"
    sent = stage.mailbox.sent
    return [message for to, message in sent if to == room and isinstance(message, TokensSampled)]


def names(steps: list[TokensSampled]) -> set[str]:
    return {name for step in steps for name in step.request_ids}


def run(stage: Stage, *messages: Message, at: float = 0.0) -> None:
    stage.mailbox.deliver(book())
    stage.mailbox.deliver(*messages, at=at)
    stage.worker.run()
    stage.worker.scheduler.check()


def test_each_hears_of_its_own_requests_in_steps_without_a_gap(stage: Stage) -> None:
    requests = [lasting(f"r-{n}", n % 2, NUM_TOKENS - n) for n in range(4)]
    run(stage, *requests)
    for number in range(2):
        steps = told(stage, number)
        assert [step.step for step in steps] == list(range(1, len(steps) + 1))
        assert names(steps) == {f"r-{number}", f"r-{number + 2}"}
        assert {s.text.request_id for step in steps for s in step.started} == names(steps)
        assert {end.request_id for step in steps for end in step.ended} == names(steps)
    for request in requests:
        assert stage.answer(request.request_id) == expected_answer(request)


def test_who_has_nothing_in_a_step_is_not_told(stage: Stage) -> None:
    run(stage, lasting("long", 0), lasting("short", 1, 3))
    assert [len(told(stage, number)) for number in range(2)] == [NUM_TOKENS, 3]


def test_answers_of_one_request_stay_together(stage: Stage) -> None:
    several = generate("n", 20, 21, max_tokens=4, num_choices=3, detokenizer=1)
    run(stage, several, lasting("r", 0))
    assert names(told(stage, 0)) == {"r"}
    ends = [end for step in told(stage, 1) for end in step.ended]
    assert sorted(end.choice for end in ends) == [0, 1, 2]


def test_an_abort_is_told_to_the_detokenizer_that_has_the_text(stage: Stage) -> None:
    stage.mailbox.deliver(book(), lasting("gone", 1), lasting("kept", 0))
    stage.mailbox.deliver(Abort("gone"), at=3.5 * STEP_SECONDS)
    stage.run()
    ends = {number: [e for s in told(stage, number) for e in s.ended] for number in range(2)}
    assert [(end.request_id, end.finish_reason) for end in ends[1]] == [("gone", "abort")]
    assert [(end.request_id, end.finish_reason) for end in ends[0]] == [("kept", "length")]


def test_a_dead_detokenizer_ends_its_own_requests_alone(stage: Stage) -> None:
    stage.mailbox.deliver(book(), lasting("gone", 1), lasting("kept", 0))
    stage.mailbox.deliver(book(detokenizer_1=2), at=3.5 * STEP_SECONDS)
    late = generate("late", 20, detokenizer=1)  # for the dead life
    following = generate("next", 21, detokenizer=1, detokenizer_epoch=2)
    stage.mailbox.deliver(late, following, at=4.5 * STEP_SECONDS)
    stage.run()
    assert 0 < len(stage.answer("gone")) < NUM_TOKENS
    assert stage.answer("late") == []
    assert stage.answer("next") == expected_answer(following)
    assert [end.request_id for step in told(stage, 0) for end in step.ended] == ["kept"]
    assert [end.request_id for step in told(stage, 1) for end in step.ended] == ["next"]
    assert len(stage.answer("kept")) == NUM_TOKENS


def test_one_that_is_behind_holds_the_worker_up_until_it_acknowledges(stage: Stage) -> None:
    num_tokens = MAX_UNACKNOWLEDGED_STEPS + 30
    num_waits = 0

    def acknowledge(_: float | None) -> None:
        nonlocal num_waits
        if not told(stage, 1):
            return  # it waits for companions
        num_waits += 1
        assert len(told(stage, 1)) == MAX_UNACKNOWLEDGED_STEPS
        number = 1 if num_waits == 3 else 0  # the other's word does not help
        stage.mailbox.deliver(StepsAcknowledged(number, EPOCH, MAX_UNACKNOWLEDGED_STEPS))
        if num_waits == 3:
            stage.mailbox.when_waiting = stage.mailbox._stop_when_waiting_for_ever

    stage.mailbox.when_waiting = acknowledge
    request = lasting("r", 1, num_tokens)
    run(stage, lasting("other", 0, 3), request)
    assert num_waits == 3
    assert stage.answer("r") == expected_answer(request)


def test_the_death_of_the_one_that_is_behind_frees_the_others(stage: Stage) -> None:
    num_tokens = MAX_UNACKNOWLEDGED_STEPS + 30
    request = lasting("r", 0, num_tokens)

    def answer(_: float | None) -> None:
        if not told(stage, 1):
            return  # it waits for companions
        stage.mailbox.deliver(
            StepsAcknowledged(0, EPOCH, len(told(stage, 0))), book(detokenizer_1=0)
        )
        stage.mailbox.when_waiting = stage.mailbox._stop_when_waiting_for_ever

    stage.mailbox.when_waiting = answer
    run(stage, lasting("behind", 1, num_tokens), request)
    assert stage.answer("r") == expected_answer(request)
    assert len(stage.answer("behind")) == MAX_UNACKNOWLEDGED_STEPS


def test_steps_for_one_that_lives_in_no_book_hold_nobody_up(stage: Stage) -> None:
    num_tokens = MAX_UNACKNOWLEDGED_STEPS + 30
    request = lasting("r", 0, num_tokens)

    def acknowledge(_: float | None) -> None:
        if not told(stage, 0):
            return  # it waits for companions
        stage.mailbox.deliver(StepsAcknowledged(0, EPOCH, len(told(stage, 0))))
        stage.mailbox.when_waiting = stage.mailbox._stop_when_waiting_for_ever

    stage.mailbox.when_waiting = acknowledge
    stage.mailbox.deliver(book(detokenizer_1=0))
    stage.mailbox.deliver(lasting("lost", 1, num_tokens), request)
    stage.worker.run()
    assert stage.answer("r") == expected_answer(request)


def test_a_loss_goes_the_way_that_the_answer_went(stage: Stage) -> None:
    stage.mailbox.deliver(book(), lasting("done", 1, 3), lasting("held", 1))
    stage.mailbox.deliver(ConfirmHeld(1, 1, ("done", "held", "lost")), at=6 * STEP_SECONDS)
    stage.run()
    lost = [loss for step in told(stage, 1) for loss in step.lost]
    assert lost == [RequestLost("done", 1), RequestLost("lost", 1)]
    assert told(stage, 0) == []


def test_an_acknowledgement_of_nobody_we_know_changes_nothing(stage: Stage) -> None:
    run(stage, StepsAcknowledged(7, EPOCH, 10**6), lasting("r", 0))
    assert stage.worker._lines._lines.keys() == {0}
