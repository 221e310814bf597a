"""What the worker does when a room that waits for its tokens dies."""

from gpu_worker.lines import MAX_UNACKNOWLEDGED_STEPS
from shared.messages import AddressBook, ConfirmHeld, Generate
from shared.parts import Peer, RequestLost
from tests.gpu_worker.stage import (
    EPOCH,
    STEP_SECONDS,
    Stage,
    expected_answer,
    generate,
    many_steps,
)

NUM_TOKENS = 30
ALL = {"frontend-0": 1, "frontend-1": 1, "detokenizer-0": 1}


def book(**epochs: int) -> AddressBook:
    """The rooms around the worker; some in another life, or with epoch 0 in none."""
    lives = {**ALL, **{name.replace("_", "-"): epoch for name, epoch in epochs.items()}}
    peers = [Peer(room, epoch, f"ipc://{room}", True, None) for room, epoch in lives.items()]
    return AddressBook(tuple(peer for peer in peers if peer.epoch), is_warm=True)


def lasting(request_id: str, frontend: int = 0) -> Generate:
    """A request whose answer does not end before its length."""
    requests = (
        generate(request_id, number, max_tokens=NUM_TOKENS, frontend=frontend)
        for number in range(10, 90)
    )
    return next(r for r in requests if len(expected_answer(r)) == NUM_TOKENS)


def test_requests_of_a_dead_frontend_end_and_the_others_go_on(stage: Stage) -> None:
    kept = lasting("kept", frontend=1)
    stage.mailbox.deliver(lasting("gone"), kept)
    stage.mailbox.deliver(book(frontend_0=0), at=0.05)
    stage.run()
    assert stage.answer("kept") == expected_answer(kept)
    assert 0 < len(stage.answer("gone")) < 10
    assert [(end.request_id, end.finish_reason) for end in stage.ends] == [
        ("gone", "abort"),
        ("kept", "length"),
    ]


def test_all_requests_end_with_the_detokenizer_and_nobody_hears_of_it(stage: Stage) -> None:
    waiting = [lasting(f"r-{n}") for n in range(6)]  # two without a row
    stage.mailbox.deliver(*waiting)
    stage.mailbox.deliver(book(detokenizer_0=2), at=0.05)
    stage.run()
    assert len(stage.runner.plans) < 10
    assert stage.ends == []
    assert stage.worker.scheduler.num_waiting == stage.worker.scheduler.num_running == 0


def test_steps_that_nobody_will_acknowledge_hold_nothing_up(stage: Stage) -> None:
    many_steps(stage)
    late = (MAX_UNACKNOWLEDGED_STEPS + 10) * STEP_SECONDS
    following = generate("next", 21, detokenizer_epoch=2)
    stage.mailbox.deliver(book(detokenizer_0=2), following, at=late)
    stage.run()
    assert stage.answer("next") == expected_answer(following)


def test_a_request_whose_frontend_is_dead_is_not_begun(stage: Stage) -> None:
    stage.run(book(frontend_0=2), generate("late", 20))
    assert stage.steps == []


def test_a_request_may_come_before_the_book_that_names_its_rooms(stage: Stage) -> None:
    early = generate("early", 20, max_tokens=3, detokenizer_epoch=2)
    stage.mailbox.deliver(early)
    stage.mailbox.deliver(book(detokenizer_0=2), at=0.005)
    stage.run()
    assert stage.answer("early") == expected_answer(early)


def test_what_never_came_is_told_after_what_was_said_before(stage: Stage) -> None:
    done = generate("done", 20, max_tokens=2)
    stage.mailbox.deliver(done)
    stage.mailbox.deliver(lasting("held"), at=0.1)
    stage.mailbox.deliver(ConfirmHeld(1, 0, ("done", "held", "lost")), at=0.2)
    stage.mailbox.deliver(generate("lost", 22), at=0.3)  # too late: it has been failed
    stage.run()
    lost = [lost for step in stage.steps for lost in step.lost]
    assert lost == [RequestLost("done", 1), RequestLost("lost", 1)]
    assert stage.answer("lost") == []
    assert len(stage.answer("held")) == NUM_TOKENS
    last_of_done = max(step.step for step in stage.steps if "done" in step.request_ids)
    assert min(step.step for step in stage.steps if step.lost) > last_of_done


def test_a_loss_is_told_also_when_no_step_follows(stage: Stage) -> None:
    stage.run(ConfirmHeld(0, 0, ("lost",)))
    (step,) = stage.steps
    assert (step.lost, step.epoch, step.request_ids) == ((RequestLost("lost", 0),), EPOCH, ())


def test_it_says_that_it_gets_on_only_when_it_does(stage: Stage) -> None:
    stage.run(generate("r", 20, max_tokens=5))
    assert stage.mailbox.num_beats >= len(stage.steps)
