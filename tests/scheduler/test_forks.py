"""Several answers to one prompt: computed once, shared in full blocks, ended one by one or all."""

from dataclasses import replace

import pytest

from scheduler import prefix
from scheduler.plan import NO_TOKEN, StepResult, TokenScore
from scheduler.sequence import Sequence, State
from shared.sampling import SamplingParams
from tests.builders import END_TOKEN, GREEDY
from tests.fakes import formula_score
from tests.scheduler.simulation import Simulation, assert_right, numbers, request

PROMPT = numbers(18)  # four full blocks, and two tokens more


def states(siblings: list[Sequence]) -> list[State]:
    """Where each stands."""
    return [sibling.state for sibling in siblings]


def decoding_siblings(simulation: Simulation, num_answers: int = 3) -> list[Sequence]:
    """The answers of one request, all of them begun."""
    siblings = simulation.fork(request("r", PROMPT, max_tokens=12), num_answers)
    simulation.run_until(lambda: all(sibling.num_output_tokens for sibling in siblings))
    return siblings


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("num_answers", [1, 2, 4])
def test_siblings_share_the_full_blocks_of_the_prompt(
    num_answers: int, prefix_caching: bool
) -> None:
    simulation = Simulation(prefix_caching=prefix_caching)
    siblings = simulation.fork(request("r", PROMPT, max_tokens=2), num_answers)
    simulation.run_until(lambda: siblings[-1].state is State.RUNNING)
    tables = [tuple(sibling.blocks[:4]) for sibling in siblings if sibling.blocks]
    assert len(tables[0]) == 4
    assert len(set(tables)) == 1
    simulation.run_to_end()
    outputs_computed = num_answers  # of two tokens the last is never computed
    assert simulation.runner.num_written == 18 + 2 * (num_answers - 1) + outputs_computed
    assert [s.num_cached for s in siblings[1:]] == [16] * (num_answers - 1)
    assert_right(*siblings)


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_each_sibling_owns_only_what_it_writes(prefix_caching: bool) -> None:
    simulation = Simulation(prefix_caching=prefix_caching)
    siblings = decoding_siblings(simulation, num_answers=4)
    assert simulation.pool_state == (4 + 4, 0)
    assert len({sibling.blocks[4] for sibling in siblings}) == 4
    simulation.run_to_end()
    assert_right(*siblings)


def test_requests_share_nothing_without_prefix_caching() -> None:
    simulation = Simulation(prefix_caching=False)
    first = simulation.fork(request("a", PROMPT, max_tokens=12), 2)
    second = simulation.fork(request("b", PROMPT, max_tokens=12), 2)
    simulation.run_until(lambda: second[-1].state is State.RUNNING)
    tables = [set(sibling.blocks[:4]) for sibling in (*first, *second)]
    assert tables[0] == tables[1]
    assert tables[2] == tables[3]
    assert not tables[0] & tables[2]


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_siblings_without_a_salt_share_nothing_and_do_not_wait(prefix_caching: bool) -> None:
    simulation = Simulation(prefix_caching=prefix_caching, max_tokens_per_step=64)
    siblings = simulation.fork(request("r", PROMPT, max_tokens=3, salt=None), 3)
    plan = simulation.step()
    assert [admission.cached_blocks for admission in plan.admissions] == [()] * 3
    assert simulation.pool_state == (15, 0)
    simulation.run_to_end()
    assert_right(*siblings)


def test_siblings_wait_while_the_first_computes_the_prompt_and_others_use_the_time() -> None:
    simulation = Simulation(max_tokens_per_step=8)
    siblings = simulation.fork(request("r", PROMPT, max_tokens=12), 2)
    behind = request("behind", numbers(2, 30))
    simulation.add(behind)
    for num_computed in (8, 16, 18):
        assert behind.state is State.WAITING
        simulation.step()
        assert siblings[0].num_computed == num_computed
        assert siblings[1].state is State.WAITING
    assert behind.num_output_tokens == 1, "the budget of the last step had room for it"
    plan = simulation.step()
    assert siblings[1].state is State.RUNNING
    assert len(plan.admissions[0].cached_blocks) == 4
    simulation.run_to_end()
    assert_right(*siblings, behind)


@pytest.mark.parametrize("num_prompt_tokens", [1, 4])
def test_siblings_do_not_wait_for_a_prompt_without_a_block_to_share(num_prompt_tokens: int) -> None:
    simulation = Simulation()
    siblings = simulation.fork(request("r", PROMPT[:num_prompt_tokens], max_tokens=4), 4)
    assert len(simulation.step().admissions) == 4
    simulation.run_to_end()
    assert_right(*siblings)


def test_siblings_outlive_a_first_one_that_is_aborted_within_its_prompt() -> None:
    simulation = Simulation(max_tokens_per_step=8)
    first, *others = simulation.fork(request("r", PROMPT, max_tokens=5), 3)
    simulation.step()
    assert simulation.scheduler.abort("r", 0) == [first]
    plan = simulation.step()
    assert plan.admissions[0].cached_blocks == (), "what it had computed led to no token"
    simulation.run_to_end()
    assert_right(*others)


def test_siblings_outlive_a_first_one_that_was_aborted_before_it_ran() -> None:
    simulation = Simulation()
    first, *others = simulation.fork(request("r", PROMPT, max_tokens=5), 3)
    assert simulation.scheduler.abort("r", 0) == [first]
    simulation.run_to_end()
    assert_right(*others)


def test_siblings_do_not_touch_the_blocks_of_a_first_one_that_failed() -> None:
    simulation = Simulation(max_tokens_per_step=8)
    first, *others = simulation.fork(request("r", PROMPT, max_tokens=5), 3)
    simulation.step()
    simulation.step(first)
    assert first.state is State.FAILED
    plan = simulation.step()
    assert plan.admissions[0].cached_blocks == ()
    simulation.run_to_end()
    assert_right(*others)


def test_siblings_find_what_a_first_one_left_that_has_ended() -> None:
    simulation = Simulation()
    siblings = simulation.fork(request("r", numbers(16), max_tokens=1), 3)
    simulation.step()
    assert states(siblings) == [State.LENGTH, State.WAITING, State.WAITING]
    plan = simulation.step()
    assert [len(admission.cached_blocks) for admission in plan.admissions] == [3, 3]
    simulation.run_to_end()
    assert_right(*siblings)


def test_siblings_wait_again_for_a_first_one_that_was_preempted_within_its_prompt() -> None:
    simulation = Simulation(num_blocks=12, max_sequences=3, max_tokens_per_step=3)
    older = request("older", numbers(4, 20), max_tokens=26)
    simulation.add(older)
    simulation.step()
    siblings = simulation.fork(request("r", numbers(32), max_tokens=2), 2)
    simulation.run_until_preempted(siblings[0])
    assert siblings[0].num_output_tokens == 0
    assert states(siblings) == [State.WAITING, State.WAITING]
    simulation.run_until_running(siblings[0])
    assert siblings[1].state is State.WAITING
    simulation.run_to_end()
    assert siblings[1].num_cached == 28
    assert_right(older, *siblings)


def test_a_preempted_sibling_finds_the_prompt_again() -> None:
    simulation = Simulation(num_blocks=8)
    siblings = decoding_siblings(simulation, num_answers=2)
    simulation.run_until_preempted(siblings[1])
    plan = simulation.run_until_running(siblings[1])
    assert len(plan.admissions[0].cached_blocks) >= 4
    simulation.run_to_end()
    assert_right(*siblings)


def test_every_sibling_has_noise_of_its_own_and_all_else_in_common() -> None:
    sampling = SamplingParams(seed=2**63 - 2, temperature=0.7, top_p=0.5)
    first = Sequence("r", PROMPT, 9, frozenset({END_TOKEN}), sampling, cache_salt="key")
    siblings = [first, *(first.fork(choice) for choice in range(1, 4))]
    assert [sibling.sampling.seed for sibling in siblings] == [2**63 - 2, 2**63 - 1, 0, 1]
    assert [sibling.choice for sibling in siblings] == [0, 1, 2, 3]
    for sibling in siblings[1:]:
        assert sibling.leader is first
        assert (sibling.sampling.temperature, sibling.sampling.top_p) == (0.7, 0.5)
        assert (sibling.request_id, sibling.max_tokens) == ("r", 9)
        assert (sibling.end_token_ids, sibling.cache_salt) == (first.end_token_ids, "key")
        assert sibling.token_ids == list(PROMPT)
        assert sibling.token_ids is not first.token_ids


def test_a_fork_repeats_the_prompt_not_the_answer() -> None:
    first = request("r", PROMPT, max_tokens=5)
    first.change(State.RUNNING)
    first.append(7)
    assert first.fork(1).token_ids == list(PROMPT)


@pytest.mark.parametrize("choice", [0, 1, 2])
def test_an_abort_of_one_answer_leaves_the_others(choice: int) -> None:
    simulation = Simulation()
    siblings = decoding_siblings(simulation)
    assert simulation.scheduler.abort("r", choice) == [siblings[choice]]
    simulation.scheduler.check()
    assert simulation.scheduler.abort("r", choice) == []
    assert simulation.scheduler.holds("r")
    simulation.run_to_end()
    assert not simulation.scheduler.holds("r")
    assert siblings.pop(choice).state is State.ABORTED
    assert_right(*siblings)


def test_an_abort_of_the_request_ends_every_answer_running_or_waiting() -> None:
    simulation = Simulation(max_sequences=2)
    siblings = simulation.fork(request("r", PROMPT, max_tokens=12), 4)
    simulation.run_until(lambda: simulation.scheduler.num_running == 2)
    assert simulation.scheduler.num_waiting == 2
    assert simulation.scheduler.abort("r") == siblings
    assert states(siblings) == [State.ABORTED] * 4
    assert simulation.scheduler.is_idle
    simulation.scheduler.check()
    assert simulation.scheduler.pool.num_used == 0


def test_an_abort_of_the_request_passes_over_answers_that_have_ended() -> None:
    simulation = Simulation()
    first, *others = simulation.fork(request("r", PROMPT, max_tokens=4), 3)
    simulation.run_until(lambda: first.state is State.LENGTH)
    assert simulation.scheduler.abort("r") == others
    assert first.state is State.LENGTH


def test_an_abort_that_came_before_the_request_ends_all_its_answers() -> None:
    simulation = Simulation()
    simulation.scheduler.abort("r")
    siblings = simulation.fork(request("r", PROMPT), 3)
    assert states(siblings) == [State.ABORTED] * 3
    assert simulation.scheduler.is_idle
    assert not simulation.scheduler._early_aborts


def test_an_abort_of_one_answer_that_came_before_the_request_is_not_remembered() -> None:
    simulation = Simulation()
    assert simulation.scheduler.abort("r", 1) == []
    siblings = simulation.fork(request("r", PROMPT), 2)
    simulation.run_to_end()
    assert_right(*siblings)


def test_a_prompt_is_hashed_once_for_all_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    block_key = prefix.block_key

    def counting(parent: prefix.BlockKey, token_ids: list[int]) -> prefix.BlockKey:
        hashed.append(len(token_ids))
        return block_key(parent, token_ids)

    monkeypatch.setattr(prefix, "block_key", counting)
    simulation = Simulation(max_sequences=8)
    simulation.fork(request("r", PROMPT), 8)
    simulation.run_to_end()
    assert hashed == [4, 4, 4, 4]


SCORING = replace(GREEDY, num_prompt_logprobs=1)


def scored_request(prompt: tuple[int, ...], max_tokens: int = 3) -> Sequence:
    """A request whose prompt is scored."""
    return Sequence("r", prompt, max_tokens, frozenset(), SCORING)


@pytest.mark.parametrize("length", [1, 2, 3, 18])
def test_the_first_answer_scores_the_prompt_before_the_others_begin(length: int) -> None:
    simulation = Simulation()
    siblings = simulation.fork(scored_request(numbers(length)), 3)
    simulation.run_until(lambda: any(sibling.num_output_tokens for sibling in siblings))
    assert siblings[0].num_output_tokens == 1
    assert siblings[0].is_scored
    if length > 1:
        assert [sibling.num_output_tokens for sibling in siblings[1:]] == [0, 0]
    simulation.run_to_end()
    scores = [formula_score(numbers(end)) for end in range(2, length + 1)]
    assert [sibling.take_prompt_scores() for sibling in siblings] == [tuple(scores), (), ()]
    assert_right(*siblings)


def test_siblings_of_a_scored_prompt_share_its_blocks() -> None:
    simulation = Simulation()
    siblings = simulation.fork(scored_request(PROMPT), 3)
    simulation.run_to_end()
    assert [s.num_cached for s in siblings] == [0, 16, 16]


def test_a_prompt_that_is_scored_is_computed_though_it_is_known() -> None:
    simulation = Simulation()
    simulation.serve(request("before", PROMPT))
    admission = simulation.serve(scored_request(PROMPT))
    assert admission.cached_blocks == ()
    assert simulation.scheduler.counters.num_queried_tokens == len(PROMPT), "it does not ask"
    assert len(simulation.serve(request("after", PROMPT)).cached_blocks) == 4


def test_scores_are_handed_over_once_and_only_when_complete() -> None:
    sequence = scored_request((5, 6, 7))
    score = TokenScore(-1.0, (), ())
    sequence.score([score])
    assert (sequence.is_scored, sequence.num_scored) == (False, 1)
    sequence.score([score])
    assert sequence.is_scored
    assert sequence.take_prompt_scores() == (score, score)
    assert sequence.take_prompt_scores() == ()
    assert sequence.is_scored, "nothing is scored again"
    halfway = scored_request((5, 6, 7))
    halfway.score([score])
    assert halfway.take_prompt_scores() == ()


def test_a_score_that_is_no_number_fails_its_sequence() -> None:
    simulation = Simulation()
    sequence = scored_request((5, 6, 7))
    simulation.add(sequence)
    plan = simulation.scheduler.schedule()
    result = StepResult((9,), prompt_scores=(TokenScore(-1.0, (), ()), None))
    (output,) = simulation.apply(plan, result)
    assert (sequence.state, output.token_id) == (State.FAILED, NO_TOKEN)
