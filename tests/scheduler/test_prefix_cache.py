"""What is found again, for whom, how much of it, and what goes first when its place is needed."""

import pytest

from scheduler import prefix
from scheduler.plan import NO_TOKEN, StepResult
from scheduler.sequence import State
from tests.fakes import POISON
from tests.scheduler.simulation import Simulation, assert_right, numbers, request

PROMPT = numbers(24)


@pytest.mark.parametrize(
    ("num_prompt_tokens", "num_found"),
    [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (15, 3), (16, 3), (17, 4), (24, 5), (25, 6)],
)
def test_every_full_block_is_found_but_the_last_token_is_computed(
    num_prompt_tokens: int, num_found: int
) -> None:
    simulation = Simulation(max_tokens_per_step=64)
    simulation.serve(request("a", PROMPT))
    again = request("b", (*PROMPT, 30)[:num_prompt_tokens])
    simulation.add(again)
    plan = simulation.step()
    assert len(plan.admissions[0].cached_blocks) == num_found
    assert plan.chunks[0].start == again.num_cached == 4 * num_found
    assert plan.chunks[0].token_ids == tuple(again.token_ids[4 * num_found : -1])
    assert plan.num_tokens == num_prompt_tokens - 4 * num_found > 0
    assert_right(again)


def test_a_prompt_that_differs_in_one_token_shares_only_what_comes_before() -> None:
    simulation = Simulation()
    simulation.serve(request("a", PROMPT))
    other = request("b", (*PROMPT[:9], 35, *PROMPT[10:]))
    assert len(simulation.serve(other).cached_blocks) == 2
    assert_right(other)


def test_the_same_tokens_after_another_beginning_are_not_the_same() -> None:
    simulation = Simulation()
    simulation.serve(request("a", PROMPT))
    assert simulation.serve(request("b", PROMPT[4:])).cached_blocks == ()


def test_the_next_turn_finds_the_answer_as_well() -> None:
    simulation = Simulation()
    first = request("a", PROMPT[:10], max_tokens=8)
    simulation.serve(first)  # 17 tokens computed: the last one never is
    second = request("b", (*first.token_ids, 3, 4, 5))
    assert len(simulation.serve(second).cached_blocks) == 4
    assert second.num_cached == 16
    assert_right(first, second)


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("", "a"), (None, ""), ("", None)])
def test_other_salts_share_nothing(first: str | None, second: str | None) -> None:
    simulation = Simulation()
    simulation.serve(request("a", PROMPT, salt=first))
    assert simulation.serve(request("b", PROMPT, salt=second)).cached_blocks == ()


@pytest.mark.parametrize("salt", ["", "key-1", None])
def test_only_a_salt_lets_requests_share(salt: str | None) -> None:
    simulation = Simulation()
    simulation.serve(request("a", PROMPT, salt=salt))
    again = request("b", PROMPT, salt=salt)
    assert len(simulation.serve(again).cached_blocks) == (0 if salt is None else 5)
    assert simulation.pool_state == (0, 0 if salt is None else 6)


def test_nothing_is_kept_without_prefix_caching() -> None:
    simulation = Simulation(prefix_caching=False)
    simulation.serve(request("a", PROMPT))
    assert simulation.pool_state == (0, 0)
    assert simulation.serve(request("b", PROMPT)).cached_blocks == ()
    assert simulation.scheduler.counters.num_queried_tokens == 0


def test_what_a_running_sequence_has_computed_is_shared_at_once() -> None:
    simulation = Simulation()
    first, second = request("a", PROMPT[:12], 20), request("b", (*PROMPT[:12], 30), 20)
    simulation.add(first)
    simulation.step()
    simulation.add(second)
    simulation.step()
    assert second.blocks[:3] == first.blocks[:3]
    assert second.blocks[3] != first.blocks[3]
    assert simulation.pool_state == (5, 0)
    simulation.run_to_end()
    assert_right(first, second)


def test_what_two_compute_at_the_same_time_is_kept_once() -> None:
    simulation = Simulation(max_tokens_per_step=64)
    first, second = request("a", PROMPT[:12]), request("b", PROMPT[:12])
    simulation.add(first, second)
    simulation.run_to_end()
    assert simulation.pool_state == (0, 3)
    assert_right(first, second)


@pytest.mark.parametrize(("num_steps", "num_found"), [(2, 0), (3, 5)])
def test_an_aborted_prompt_leaves_what_has_led_to_a_token(num_steps: int, num_found: int) -> None:
    simulation = Simulation(max_tokens_per_step=10)
    simulation.add(request("a", PROMPT, 9))
    for _ in range(num_steps):
        simulation.step()
    simulation.scheduler.abort("a")
    again = request("b", PROMPT)
    assert len(simulation.serve(again).cached_blocks) == num_found
    assert_right(again)


def test_the_ends_of_what_was_unused_longest_go_first() -> None:
    simulation = Simulation(num_blocks=6)
    old, new = numbers(8), numbers(8, 10)
    simulation.serve(request("a", old))
    simulation.serve(request("b", new))
    assert simulation.pool_state == (0, 4)
    simulation.serve(request("c", numbers(12, 20), salt=None))  # two free blocks and one more
    assert simulation.pool_state == (0, 3)
    assert len(simulation.serve(request("d", (*old, 30))).cached_blocks) == 1
    assert len(simulation.serve(request("e", (*new, 30))).cached_blocks) == 2


def test_what_was_used_again_is_no_longer_the_oldest() -> None:
    simulation = Simulation(num_blocks=6)
    old, new = numbers(8), numbers(8, 10)
    simulation.serve(request("a", old))
    simulation.serve(request("b", new))
    simulation.serve(request("a-again", (*old, 30)))
    simulation.serve(request("c", numbers(12, 20), salt=None))
    assert len(simulation.serve(request("d", (*old, 30))).cached_blocks) == 2
    assert len(simulation.serve(request("e", (*new, 30))).cached_blocks) == 1


def test_a_cached_block_is_taken_only_when_no_block_is_free() -> None:
    simulation = Simulation(num_blocks=8)
    simulation.serve(request("a", PROMPT[:8]))
    simulation.serve(request("b", numbers(24, 10), salt=None))
    assert simulation.pool_state == (0, 2)
    simulation.serve(request("c", numbers(25, 10), salt=None))
    assert simulation.pool_state == (0, 1)


def test_what_a_sequence_uses_is_never_evicted() -> None:
    simulation = Simulation(num_blocks=10)
    simulation.serve(request("a", PROMPT[:16]))
    sharing = request("b", (*PROMPT[:16], 30), 12)
    simulation.add(sharing)
    simulation.step()
    shared = sharing.blocks[:4]
    others = [request(str(n), numbers(9, n), 8) for n in range(1, 9)]
    simulation.add(*others)
    while sharing.state is State.RUNNING:
        assert sharing.blocks[:4] == shared
        simulation.step()
    simulation.run_to_end()
    assert_right(sharing, *others)


def test_sharing_cached_blocks_leaves_enough_for_what_was_promised() -> None:
    simulation = Simulation(num_blocks=8, max_tokens_per_step=4)
    simulation.serve(request("a", PROMPT[:16]))
    first = request("long", numbers(16, 20))  # takes its four blocks one by one
    second = request("b", (*PROMPT[:16], 30))  # four cached blocks and a fifth: too much now
    simulation.add(first, second)
    simulation.step()
    assert (first.state, second.state) == (State.RUNNING, State.WAITING)
    simulation.run_to_end()
    assert_right(first, second)


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    simulation = Simulation(num_blocks=6)
    first, second = request("a", numbers(5), 12), request("b", numbers(5, 20), 12)
    simulation.add(first, second)
    simulation.run_until_preempted(second)
    assert simulation.pool_state == (4, 2)
    plan = simulation.run_until_running(second)
    assert len(plan.admissions[0].cached_blocks) == 2
    assert plan.chunks[0].start == 8
    assert second.num_cached == 0, "what it had computed itself is no hit"
    assert simulation.scheduler.counters.num_queried_tokens == 10


def test_the_counters_tell_how_much_of_the_prompts_was_found() -> None:
    simulation = Simulation()
    for name, length in (("a", 24), ("b", 24), ("c", 9), ("d", 3)):
        simulation.serve(request(name, PROMPT[:length]))
    simulation.serve(request("e", PROMPT, salt=None))
    counters = simulation.scheduler.counters
    assert counters.num_queried_tokens == 24 + 24 + 9 + 3
    assert counters.num_cached_tokens == 0 + 20 + 8 + 0


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_a_prompt_that_failed_is_not_found_again(num_steps: int) -> None:
    simulation = Simulation(max_tokens_per_step=10)
    failing = request("a", PROMPT, 9)
    simulation.add(failing)
    for _ in range(num_steps):
        simulation.step()
    simulation.step(failing)
    assert failing.state is State.FAILED
    assert simulation.pool_state == (0, 0)
    again = request("b", PROMPT)
    assert simulation.serve(again).cached_blocks == ()
    assert_right(again)


def test_blocks_that_led_to_no_number_are_not_found_again() -> None:
    simulation = Simulation(max_tokens_per_step=10)
    for name in "ab":
        poisoned = request(name, (*PROMPT[:5], POISON, *PROMPT[6:]))
        assert simulation.serve(poisoned).cached_blocks == ()
        assert poisoned.state is State.FAILED
        assert simulation.pool_state == (0, 0)


def test_a_failure_leaves_what_led_to_tokens_before() -> None:
    simulation = Simulation()
    failing = request("a", PROMPT[:7], 9)
    simulation.add(failing)
    simulation.step()
    simulation.step(failing)  # the token that would fill the second block
    assert failing.state is State.FAILED
    again = request("b", PROMPT)
    assert len(simulation.serve(again).cached_blocks) == 1
    assert_right(again)


def test_a_failure_takes_nothing_from_those_that_share_its_blocks() -> None:
    simulation = Simulation()
    first, failing = request("a", PROMPT[:12], 20), request("b", (*PROMPT[:12], 30), 20)
    simulation.add(first)
    simulation.step()
    simulation.add(failing)
    simulation.step()
    simulation.step(failing)
    assert failing.state is State.FAILED
    assert simulation.scheduler.pool.num_used == len(first.blocks)
    simulation.run_to_end()
    assert_right(first)
    assert len(simulation.serve(request("c", PROMPT[:12])).cached_blocks) == 2


def test_a_failure_between_plan_and_result_of_an_aborted_one_changes_nothing() -> None:
    simulation = Simulation()
    sequence = request("a", PROMPT[:12], 20)
    simulation.add(sequence)
    plan = simulation.scheduler.schedule()
    simulation.runner.execute(plan)
    simulation.scheduler.abort("a")
    assert simulation.apply(plan, StepResult((NO_TOKEN,), frozenset({0}))) == []
    assert sequence.state is State.ABORTED
    assert simulation.pool_state == (0, 0)


def test_a_prompt_that_waits_is_hashed_once_however_long_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_hashed = 0
    block_key = prefix.block_key

    def counting(parent: prefix.BlockKey, token_ids: list[int]) -> prefix.BlockKey:
        nonlocal num_hashed
        num_hashed += 1
        return block_key(parent, token_ids)

    simulation = Simulation(num_blocks=12)
    simulation.serve(request("a", PROMPT))
    running = request("b", numbers(20, 10), 19, salt=None)
    waiting = request("c", (*PROMPT, 30))
    simulation.add(running, waiting)
    monkeypatch.setattr(prefix, "block_key", counting)
    simulation.run_until(lambda: running.num_output_tokens == 15)
    assert waiting.state is State.WAITING
    assert 0 < num_hashed <= 6
