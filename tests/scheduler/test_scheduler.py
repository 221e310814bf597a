"""What each step holds, who is admitted when, and that everything comes back."""

import pytest

from scheduler.plan import NO_TOKEN, StepPlan, StepResult
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence, State
from shared.sampling import SamplingParams
from tests.builders import END_TOKEN, make_scheduler, make_sequence, run_step


def add(scheduler: Scheduler, *sequences: Sequence) -> None:
    """Queues them in this order."""
    for sequence in sequences:
        scheduler.add(sequence)
        scheduler.check()


def lengths(plan: StepPlan) -> list[int]:
    """Tokens of each chunk."""
    return [len(chunk.token_ids) for chunk in plan.chunks]


def run_to_end(scheduler: Scheduler) -> list[StepPlan]:
    """Steps until nothing is left; every step must have something in it."""
    plans = []
    while not scheduler.is_idle:
        plans.append(run_step(scheduler)[0])
        assert not plans[-1].is_empty, "work waits, but nothing is planned"
    return plans


def assert_at_rest(scheduler: Scheduler) -> None:
    """Nothing is held, and all rows and blocks can be had again."""
    scheduler.check()
    assert scheduler.is_idle
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
    assert scheduler.pool.num_used == 0
    assert scheduler._places.num_promised == 0
    scheduler._places.rows.check(())


def test_an_idle_scheduler_plans_nothing() -> None:
    scheduler = make_scheduler()
    plan = scheduler.schedule()
    assert plan.is_empty
    assert scheduler.is_idle
    assert scheduler.apply(plan, StepResult(())) == []


def test_one_request_from_prompt_to_end() -> None:
    scheduler = make_scheduler(block_size=4)
    sampling = SamplingParams(seed=9)
    sequence = make_sequence("r", num_prompt_tokens=5, max_tokens=2, sampling=sampling)
    add(scheduler, sequence)
    prefill, outputs = run_step(scheduler, token_id=7)
    assert [(a.row, a.sampling) for a in prefill.admissions] == [(sequence.row, sampling)]
    (chunk,) = prefill.chunks
    assert (chunk.start, chunk.token_ids) == (0, (10, 11, 12, 13, 14))
    assert (chunk.output_index, chunk.samples, prefill.num_decodes) == (0, True, 0)
    assert len(chunk.new_blocks) == 2
    assert [(o.sequence, o.token_id) for o in outputs] == [(sequence, 7)]
    decode, _ = run_step(scheduler, token_id=8)
    (chunk,) = decode.chunks
    assert (chunk.start, chunk.token_ids, chunk.new_blocks) == (5, (7,), ())
    assert (chunk.output_index, chunk.samples, decode.num_decodes) == (1, True, 1)
    assert sequence.token_ids[-2:] == [7, 8]
    assert sequence.state is State.LENGTH
    assert_at_rest(scheduler)


def test_a_step_has_the_next_number() -> None:
    scheduler = make_scheduler()
    assert [scheduler.schedule().step for _ in range(3)] == [1, 2, 3]


def test_a_long_prompt_is_cut_to_the_budget_and_samples_at_its_end_only() -> None:
    scheduler = make_scheduler(max_tokens_per_step=16)
    add(scheduler, make_sequence("long", num_prompt_tokens=40, max_tokens=2))
    plans = run_to_end(scheduler)
    assert [lengths(plan) for plan in plans] == [[16], [16], [8], [1]]
    assert [plan.chunks[0].samples for plan in plans] == [False, False, True, True]
    assert [plan.chunks[0].start for plan in plans] == [0, 16, 32, 40]
    assert [len(plan.admissions) for plan in plans] == [1, 0, 0, 0]
    computed = [token for plan in plans[:3] for token in plan.chunks[0].token_ids]
    assert computed == list(range(10, 50))


def test_blocks_are_given_when_they_are_needed_not_before() -> None:
    scheduler = make_scheduler(block_size=4)
    add(scheduler, make_sequence("r", num_prompt_tokens=4, max_tokens=6))
    new_blocks = [len(plan.chunks[0].new_blocks) for plan in run_to_end(scheduler)]
    assert new_blocks == [1, 1, 0, 0, 0, 1]


def test_decodes_come_first_and_a_long_prompt_takes_what_is_left() -> None:
    scheduler = make_scheduler(max_tokens_per_step=16)
    add(scheduler, make_sequence("a", max_tokens=9), make_sequence("b", max_tokens=9))
    run_step(scheduler)
    add(scheduler, make_sequence("long", num_prompt_tokens=40))
    plan, outputs = run_step(scheduler)
    assert lengths(plan) == [1, 1, 14]
    assert (plan.num_decodes, plan.num_tokens, plan.is_mixed) == (2, 16, True)
    assert [output.sequence.request_id for output in outputs] == ["a", "b"]


def test_everybody_that_decodes_is_in_every_step() -> None:
    scheduler = make_scheduler(max_tokens_per_step=8)
    add(scheduler, *(make_sequence(name, 2, max_tokens=8) for name in "abc"))
    run_step(scheduler)
    add(scheduler, make_sequence("long", num_prompt_tokens=20))
    for _ in range(5):
        plan, _ = run_step(scheduler)
        assert plan.num_decodes >= 3
        assert plan.num_tokens <= 8


def test_a_budget_smaller_than_the_batch_still_feeds_every_row() -> None:
    scheduler = make_scheduler(max_tokens_per_step=1, max_sequences=4)
    sequences = [make_sequence(name, num_prompt_tokens=3, max_tokens=5) for name in "abcd"]
    add(scheduler, *sequences)
    plans = run_to_end(scheduler)
    assert max(plan.num_tokens for plan in plans) == 4
    assert all(sequence.state is State.LENGTH for sequence in sequences)


def test_prompts_share_a_step_and_the_last_one_is_cut() -> None:
    scheduler = make_scheduler(max_tokens_per_step=16)
    add(scheduler, *(make_sequence(name, num_prompt_tokens=6) for name in "abc"))
    plan, outputs = run_step(scheduler)
    assert lengths(plan) == [6, 6, 4]
    assert not plan.is_mixed
    assert [output.sequence.request_id for output in outputs] == ["a", "b"]
    plan, _ = run_step(scheduler)
    assert lengths(plan) == [1, 1, 2]


def test_a_begun_prompt_goes_on_before_the_next_is_admitted() -> None:
    scheduler = make_scheduler(max_tokens_per_step=16)
    long, short = make_sequence("long", num_prompt_tokens=33), make_sequence("short")
    add(scheduler, long, short)
    run_step(scheduler)
    plan, _ = run_step(scheduler)
    assert [chunk.row for chunk in plan.chunks] == [long.row]
    plan, outputs = run_step(scheduler)
    assert lengths(plan) == [1, 5]
    assert [output.sequence for output in outputs] == [long, short]


def test_first_come_first_served() -> None:
    scheduler = make_scheduler(max_sequences=1)
    names = [f"r-{number}" for number in range(5)]
    add(scheduler, *(make_sequence(name, max_tokens=1) for name in names))
    served = [run_step(scheduler)[1][0].sequence.request_id for _ in names]
    assert served == names


def test_never_more_sequences_than_rows() -> None:
    scheduler = make_scheduler(max_sequences=3, max_tokens_per_step=100)
    add(scheduler, *(make_sequence(str(number), max_tokens=4) for number in range(7)))
    seen = []
    while not scheduler.is_idle:
        plan, _ = run_step(scheduler)
        seen.append(len(plan.chunks))
    assert max(seen) == 3
    assert_at_rest(scheduler)


def test_a_freed_row_is_taken_in_the_next_step() -> None:
    scheduler = make_scheduler(max_sequences=1)
    first, second = make_sequence("a", max_tokens=1), make_sequence("b")
    add(scheduler, first, second)
    run_step(scheduler)
    plan, _ = run_step(scheduler)
    assert [admission.row for admission in plan.admissions] == [first.row] == [second.row]


def test_what_does_not_fit_now_waits_and_nobody_overtakes_it() -> None:
    scheduler = make_scheduler(num_blocks=8, block_size=4)
    running = make_sequence("running", num_prompt_tokens=16, max_tokens=9)  # 4 blocks and more
    big = make_sequence("big", num_prompt_tokens=16, max_tokens=2)  # would leave no spare block
    small = make_sequence("small", num_prompt_tokens=1, max_tokens=1)  # 1 block
    add(scheduler, running, big, small)
    run_step(scheduler)
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)
    while running.state is State.RUNNING:
        assert (big.state, small.state) == (State.WAITING, State.WAITING)
        run_step(scheduler)
    run_step(scheduler)
    assert big.state is State.RUNNING
    run_step(scheduler)
    assert small.state is State.LENGTH


def test_a_sequence_may_fill_the_whole_pool_to_its_last_slot() -> None:
    scheduler = make_scheduler(num_blocks=3, block_size=4)
    add(scheduler, make_sequence("all", num_prompt_tokens=6, max_tokens=7))  # 12 computed
    most_used = 0
    while not scheduler.is_idle:
        plan = scheduler.schedule()
        most_used = max(most_used, scheduler.pool.num_used)
        scheduler.apply(plan, StepResult((7,) * sum(chunk.samples for chunk in plan.chunks)))
    assert most_used == 3
    assert_at_rest(scheduler)


def test_what_can_never_fit_is_refused() -> None:
    scheduler = make_scheduler(num_blocks=3, block_size=4)
    with pytest.raises(AssertionError):
        scheduler.add(make_sequence("more", num_prompt_tokens=6, max_tokens=8))


def test_an_end_token_ends_early_and_gives_everything_back() -> None:
    scheduler = make_scheduler()
    sequence = make_sequence("r", max_tokens=50)
    add(scheduler, sequence)
    run_step(scheduler)
    _, outputs = run_step(scheduler, END_TOKEN)
    assert outputs[0].sequence.state is State.STOPPED
    assert_at_rest(scheduler)


def test_tokens_go_to_their_own_sequences() -> None:
    scheduler = make_scheduler(max_tokens_per_step=16)
    first, cut, last = make_sequence("a"), make_sequence("b", 30), make_sequence("c")
    add(scheduler, first)
    run_step(scheduler)
    add(scheduler, cut)
    run_step(scheduler)
    add(scheduler, last)
    plan = scheduler.schedule()
    assert [chunk.samples for chunk in plan.chunks] == [True, True]
    outputs = scheduler.apply(plan, StepResult((21, 22)))
    assert [(o.sequence, o.token_id) for o in outputs] == [(first, 21), (cut, 22)]


@pytest.mark.parametrize("num_steps", [0, 1, 2, 4], ids=["waiting", "cut", "prefilled", "decoding"])
def test_an_abort_gives_everything_back_in_every_state(num_steps: int) -> None:
    scheduler = make_scheduler(max_tokens_per_step=16)
    sequence = make_sequence("r", num_prompt_tokens=20, max_tokens=9)
    add(scheduler, sequence)
    for _ in range(num_steps):
        run_step(scheduler)
    assert scheduler.abort("r") == [sequence]
    assert sequence.state is State.ABORTED
    assert_at_rest(scheduler)
    assert scheduler.schedule().is_empty


def test_an_abort_lets_the_next_one_in() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=4)
    add(scheduler, make_sequence("a", max_tokens=12), make_sequence("b", max_tokens=12))
    run_step(scheduler)
    scheduler.abort("a")
    _, outputs = run_step(scheduler)
    assert [output.sequence.request_id for output in outputs] == ["b"]


def test_an_abort_from_the_middle_of_the_queue_keeps_the_order() -> None:
    scheduler = make_scheduler(max_sequences=1)
    add(scheduler, *(make_sequence(name, max_tokens=1) for name in "abc"))
    scheduler.abort("b")
    served = [run_step(scheduler)[1][0].sequence.request_id for _ in "ac"]
    assert served == ["a", "c"]


def test_an_abort_that_overtakes_its_sequence_is_remembered_once() -> None:
    scheduler = make_scheduler()
    assert scheduler.abort("r") == []
    sequence = make_sequence("r")
    add(scheduler, sequence)
    assert sequence.state is State.ABORTED
    assert_at_rest(scheduler)
    again = make_sequence("r")
    add(scheduler, again)
    assert again.state is State.WAITING


def test_early_aborts_are_forgotten_oldest_first() -> None:
    scheduler = make_scheduler(max_early_aborts=3)
    for name in "abcd":
        scheduler.abort(name)
    sequences = [make_sequence(name) for name in "abcd"]
    add(scheduler, *sequences)
    assert [sequence.state for sequence in sequences] == [State.WAITING, *[State.ABORTED] * 3]


def test_a_flood_of_early_aborts_does_not_pile_up() -> None:
    scheduler = make_scheduler(max_early_aborts=3)
    for number in range(100):
        scheduler.abort(f"r-{number}")
    assert len(scheduler._early_aborts) == 3


def test_an_abort_of_a_finished_sequence_changes_nothing() -> None:
    scheduler = make_scheduler()
    sequence = make_sequence("r", max_tokens=1)
    add(scheduler, sequence)
    run_step(scheduler)
    assert scheduler.abort("r") == []
    assert sequence.state is State.LENGTH
    assert_at_rest(scheduler)


@pytest.mark.parametrize("aborted", range(3))
def test_a_sequence_aborted_during_the_step_is_passed_over(aborted: int) -> None:
    scheduler = make_scheduler(max_tokens_per_step=64)
    sequences = [make_sequence(name) for name in "abc"]
    add(scheduler, *sequences)
    plan = scheduler.schedule()
    scheduler.abort("abc"[aborted])
    scheduler.check()
    outputs = scheduler.apply(plan, StepResult((21, 22, 23)))
    scheduler.check()
    expected = [(sequence, 21 + n) for n, sequence in enumerate(sequences) if n != aborted]
    assert [(o.sequence, o.token_id) for o in outputs] == expected
    assert sequences[aborted].num_output_tokens == 0
    assert sequences[aborted].blocks == []


def test_a_cut_prompt_aborted_during_the_step_takes_no_token_from_others() -> None:
    scheduler = make_scheduler(max_tokens_per_step=16)
    short, long = make_sequence("short"), make_sequence("long", 40)
    add(scheduler, short, long)
    plan = scheduler.schedule()
    scheduler.abort("long")
    outputs = scheduler.apply(plan, StepResult((21,)))
    assert [(o.sequence, o.token_id) for o in outputs] == [(short, 21)]
    scheduler.check()


def test_logits_that_are_no_numbers_fail_one_sequence_only() -> None:
    scheduler = make_scheduler()
    sequences = [make_sequence(name, max_tokens=2) for name in "abc"]
    add(scheduler, *sequences)
    plan = scheduler.schedule()
    outputs = scheduler.apply(plan, StepResult((7, NO_TOKEN, 7)))
    scheduler.check()
    assert [output.token_id for output in outputs] == [7, NO_TOKEN, 7]
    assert sequences[1].state is State.FAILED
    assert sequences[1].num_output_tokens == 0
    run_to_end(scheduler)
    assert [sequences[n].state for n in (0, 2)] == [State.LENGTH, State.LENGTH]
    assert_at_rest(scheduler)


def test_sequences_that_grow_together_keep_neighbouring_blocks() -> None:
    scheduler = make_scheduler(num_blocks=64, block_size=4, max_sequences=4)
    sequences = [make_sequence(name, max_tokens=60) for name in "abcd"]
    add(scheduler, *sequences)
    for _ in range(50):
        run_step(scheduler)
    for sequence in sequences:
        first = sequence.blocks[0]
        assert sequence.blocks == list(range(first, first + len(sequence.blocks)))
        assert len(sequence.blocks) > 10


def test_neighbours_stay_neighbours_after_rows_changed_hands() -> None:
    scheduler = make_scheduler(num_blocks=64, block_size=4, max_sequences=4)
    for generation in range(5):
        names = [f"{generation}-{number}" for number in range(4)]
        sequences = [make_sequence(name, max_tokens=40) for name in names]
        add(scheduler, *sequences)
        for _ in range(30):
            run_step(scheduler)
        for sequence in sequences:
            assert sequence.blocks[-1] - sequence.blocks[0] == len(sequence.blocks) - 1
            scheduler.abort(sequence.request_id)


def test_a_scattered_pool_is_used_to_the_last_block() -> None:
    scheduler = make_scheduler(num_blocks=8, block_size=4, max_sequences=8)
    add(scheduler, *(make_sequence(str(n), 3, max_tokens=2) for n in range(8)))
    run_step(scheduler)
    run_step(scheduler)
    for number in range(0, 8, 2):
        scheduler.abort(str(number))
    scattered = make_sequence("wide", num_prompt_tokens=10, max_tokens=7)  # 4 blocks
    add(scheduler, scattered)
    run_to_end(scheduler)
    assert scattered.state is State.LENGTH
    assert_at_rest(scheduler)


def test_the_same_calls_make_the_same_plans() -> None:
    schedulers = [make_scheduler(max_tokens_per_step=8) for _ in range(2)]
    for scheduler in schedulers:
        add(scheduler, *(make_sequence(name, 11, max_tokens=4) for name in "abcdef"))
    assert run_to_end(schedulers[0]) == run_to_end(schedulers[1])
