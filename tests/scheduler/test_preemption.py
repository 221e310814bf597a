"""Who yields when blocks run out, how it comes back, and that in the end everybody is served."""

import pytest

from scheduler.plan import Chunk, StepPlan
from scheduler.sequence import MAX_PREEMPTIONS, Sequence, State
from tests.scheduler.simulation import Simulation, assert_right, numbers, request


def full_pool(simulation: Simulation) -> list[Sequence]:
    """Three that decode in nine blocks, with none to spare: the first is next to need one."""
    prompts = [numbers(8), numbers(7, 10), numbers(7, 20)]
    sequences = [request("abc"[n], prompts[n], 25) for n in range(3)]
    simulation.add(*sequences)
    simulation.run_until(lambda: simulation.scheduler.pool.num_available == 0)
    return sequences


def crowd(simulation: Simulation) -> list[Sequence]:
    """Four in eleven blocks, of such lengths that the newest yields three times."""
    lengths = [7, 16, 25, 27]
    sequences = [request("abcd"[n], numbers(5, 10 * n), lengths[n]) for n in range(4)]
    simulation.add(*sequences)
    return sequences


def chunk_of(plan: StepPlan, sequence: Sequence) -> Chunk:
    """The sequence's part in a step."""
    (chunk,) = (chunk for chunk in plan.chunks if chunk.row == sequence.row)
    return chunk


@pytest.mark.parametrize(("num_blocks", "state"), [(5, State.WAITING), (6, State.RUNNING)])
def test_admission_leaves_a_block_for_each_that_runs(num_blocks: int, state: State) -> None:
    simulation = Simulation(num_blocks=num_blocks)
    running, next_one = request("a", numbers(5), 9), request("b", numbers(9, 20), 2)
    simulation.add(running, next_one)
    simulation.step()
    assert (running.state, next_one.state) == (State.RUNNING, state)
    simulation.run_to_end()
    assert_right(running, next_one)


def test_the_newest_yields_to_the_oldest() -> None:
    simulation = Simulation(num_blocks=9, max_tokens_per_step=32)
    oldest, middle, newest = full_pool(simulation)
    plan = simulation.run_until_preempted(newest)
    assert (oldest.state, middle.state) == (State.RUNNING, State.RUNNING)
    assert [chunk.row for chunk in plan.chunks] == [oldest.row, middle.row]
    assert (newest.blocks, newest.num_computed) == ([], 0)
    assert simulation.scheduler.counters.num_preemptions == 1


def test_the_newest_yields_itself_when_it_is_the_one_in_need() -> None:
    simulation = Simulation(num_blocks=6)
    first, second = request("a", numbers(5), 12), request("b", numbers(8, 20), 12)
    simulation.add(first, second)
    plan = simulation.run_until_preempted(second)
    assert [chunk.row for chunk in plan.chunks] == [first.row]
    simulation.run_to_end()
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)
    assert_right(first, second)


def test_the_oldest_never_yields_to_those_that_came_later() -> None:
    simulation = Simulation(num_blocks=9, max_tokens_per_step=32)
    sequences = full_pool(simulation)
    simulation.run_to_end()
    assert sequences[0].num_preemptions == 0
    assert sequences[2].num_preemptions > 0
    assert_right(*sequences)


def test_a_preempted_one_is_first_in_the_queue_and_nobody_overtakes_it() -> None:
    simulation = Simulation(num_blocks=9, max_sequences=3, max_tokens_per_step=32)
    _, _, newest = full_pool(simulation)
    small = request("small", numbers(1, 30))
    simulation.add(small)
    simulation.run_until_preempted(newest)
    assert simulation.scheduler._places.rows.has_free, "there is a row for the small one"
    assert simulation.scheduler.pool.num_available > 0, "and a block"
    while newest.state is State.WAITING:
        assert small.state is State.WAITING
        simulation.step()
    simulation.run_to_end()
    assert_right(newest, small)


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_what_was_said_before_counts_as_output_after(prefix_caching: bool) -> None:
    simulation = Simulation(num_blocks=6, prefix_caching=prefix_caching)
    first, second = request("a", numbers(5), 12), request("b", numbers(5, 20), 12)
    simulation.add(first, second)
    simulation.run_until_preempted(second)
    assert second.num_output_tokens == 8
    plan = simulation.run_until_running(second)
    (admission,) = plan.admissions
    assert admission.token_ids == tuple(second.token_ids[:-1])
    assert (len(admission.token_ids), admission.num_prompt_tokens) == (13, 5)
    assert len(admission.cached_blocks) == (2 if prefix_caching else 0)
    chunk = chunk_of(plan, second)
    assert (chunk.output_index, chunk.samples, plan.num_decodes) == (8, True, 0)
    assert chunk_of(simulation.step(), second).output_index == 9
    simulation.run_to_end()
    assert_right(first, second)


def test_a_prompt_that_has_only_begun_yields_too() -> None:
    simulation = Simulation(num_blocks=9, max_sequences=2, max_tokens_per_step=2)
    first, second = request("a", numbers(4), 20), request("b", numbers(24, 10), 2)
    simulation.add(first, second)
    simulation.run_until_running(second)
    simulation.run_until_preempted(second)
    assert (second.num_output_tokens, second.num_preemptions) == (0, 1)
    assert simulation.scheduler._places.num_promised == 0
    plan = simulation.run_until_running(second)
    assert chunk_of(plan, second).output_index == 0
    simulation.run_to_end()
    assert_right(first, second)


def test_after_the_third_time_it_comes_back_only_with_blocks_for_its_whole_length() -> None:
    simulation = Simulation(num_blocks=11)
    *others, newest = crowd(simulation)
    simulation.run_until_preempted(newest, times=MAX_PREEMPTIONS)
    simulation.run_until_running(newest)
    num_blocks = -(-newest.max_computed // 4)
    assert newest.num_promised == num_blocks
    assert simulation.scheduler._places.num_promised == num_blocks - len(newest.blocks)
    simulation.run_to_end()
    assert newest.num_preemptions == MAX_PREEMPTIONS
    assert [sequence.num_preemptions for sequence in others] == [0, 0, 0]
    assert_right(*others, newest)


def test_it_waits_for_those_blocks_even_when_what_it_has_so_far_would_fit() -> None:
    simulation = Simulation(num_blocks=11)
    *_, newest = crowd(simulation)
    simulation.run_until_preempted(newest, times=MAX_PREEMPTIONS)
    would_have_fitted = 0
    while newest.state is State.WAITING:
        pool, num_running = simulation.scheduler.pool, simulation.scheduler.num_running
        needed = -(-len(newest.token_ids) // 4)
        would_have_fitted += needed + num_running <= pool.num_available
        simulation.step()
    assert would_have_fitted > 0


def test_what_is_reserved_is_never_taken_and_even_the_oldest_yields_to_it() -> None:
    simulation = Simulation(num_blocks=6)
    oldest, reserved = request("a", numbers(8), 12), request("b", numbers(5, 20), 8)
    reserved.num_preemptions = MAX_PREEMPTIONS
    simulation.add(oldest, reserved)
    simulation.run_until_preempted(oldest)
    assert reserved.state is State.RUNNING
    simulation.run_to_end()
    assert (oldest.num_preemptions, reserved.num_preemptions) == (1, MAX_PREEMPTIONS)
    assert_right(oldest, reserved)


def test_nobody_is_preempted_for_blocks_that_were_promised() -> None:
    simulation = Simulation(num_blocks=7, max_tokens_per_step=4)
    reserved, other = request("a", numbers(5), 12), request("b", numbers(9, 20), 2)
    reserved.num_preemptions = MAX_PREEMPTIONS
    simulation.add(reserved, other)
    simulation.run_to_end()
    assert simulation.scheduler.counters.num_preemptions == 0
    assert_right(reserved, other)


@pytest.mark.parametrize("state", [State.RUNNING, State.WAITING])
def test_an_abort_of_a_reserved_or_preempted_one_gives_everything_back(state: State) -> None:
    simulation = Simulation(num_blocks=11)
    *others, newest = crowd(simulation)
    simulation.run_until_preempted(newest, times=MAX_PREEMPTIONS)
    if state is State.RUNNING:
        simulation.run_until_running(newest)
    assert simulation.scheduler.abort("d") == [newest]
    simulation.scheduler.check()
    simulation.run_to_end()
    assert simulation.scheduler._places.num_promised == 0
    assert newest.state is State.ABORTED
    assert_right(*others)


def test_a_request_may_fill_the_whole_pool_alone() -> None:
    simulation = Simulation(num_blocks=4)
    sequence = request("all", numbers(5), 12)
    simulation.add(sequence)
    most_used = 0
    while not simulation.scheduler.is_idle:
        simulation.step()
        most_used = max(most_used, len(sequence.blocks))
    assert sequence.max_computed == 16
    assert sequence.num_preemptions == 0
    assert_right(sequence)


@pytest.mark.parametrize("num_requests", [2, 4])
def test_requests_that_each_fill_the_whole_pool_are_served_one_after_the_other(
    num_requests: int,
) -> None:
    simulation = Simulation(num_blocks=4)
    sequences = [request(str(n), numbers(1, n), 16) for n in range(num_requests)]
    simulation.add(*sequences)
    simulation.run_to_end()
    assert simulation.scheduler.counters.num_preemptions > 0
    assert sequences[0].num_preemptions == 0
    assert_right(*sequences)


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("num_blocks", [8, 11, 16])
def test_nobody_is_computed_again_and_again(num_blocks: int, prefix_caching: bool) -> None:
    simulation = Simulation(num_blocks=num_blocks, max_sequences=8, prefix_caching=prefix_caching)
    sequences = [request(str(n), numbers(1 + n % 4, n), 10 + 7 * n % 19) for n in range(20)]
    simulation.add(*sequences)
    simulation.run_to_end()
    assert sum(s.num_preemptions for s in sequences) >= 10
    assert max(s.num_preemptions for s in sequences) <= MAX_PREEMPTIONS
    ceiling = sum((s.num_preemptions + 1) * s.max_computed for s in sequences)
    assert sum(s.max_computed for s in sequences) < simulation.runner.num_written <= ceiling
    assert_right(*sequences)
