"""Prompts that are pooled: answers pass them, and they are never left behind for ever."""

from scheduler.sequence import Sequence, State
from scheduler.waiting import MAX_OVERTAKES
from tests.builders import GREEDY
from tests.scheduler.simulation import Simulation, assert_right, numbers, request


def pooled(name: str, length: int) -> Sequence:
    """A prompt whose vector is wanted."""
    prompt = tuple(number % 40 for number in range(length))
    return Sequence(name, prompt, 1, frozenset(), GREEDY, is_pooled=True)


def test_an_answer_passes_a_long_prompt_that_has_begun() -> None:
    simulation = Simulation(num_blocks=200)
    long = pooled("long", 160)  # ten steps of 16 tokens
    simulation.add(long)
    simulation.step()
    answer = request("answer", numbers(20), max_tokens=3)
    simulation.add(answer)
    simulation.step()
    simulation.step()
    assert answer.num_output_tokens == 1, "two chunks are its own prompt"
    assert 0 < long.num_computed < long.num_prompt_tokens
    simulation.run_to_end()
    assert_right(answer)
    assert long.state is State.STOPPED


def test_answers_without_end_let_one_pass_now_and_then() -> None:
    simulation = Simulation(max_sequences=1)
    waiting = [pooled("first", 3), pooled("second", 3)]
    simulation.add(*waiting)
    answers = [request(f"a{n}", numbers(3, n)) for n in range(3 * MAX_OVERTAKES)]
    simulation.add(*answers)
    order = []
    while not simulation.scheduler.is_idle:
        for admission in simulation.step().admissions:
            order.append(admission.is_pooled)
    places = [place for place, is_pooled in enumerate(order) if is_pooled]
    assert places == [MAX_OVERTAKES, 2 * MAX_OVERTAKES + 1]
    assert_right(*answers)


def test_without_a_prefix_cache_inputs_of_one_request_share_nothing() -> None:
    simulation = Simulation(prefix_caching=False)
    inputs = [pooled("v", 8), pooled("v", 12)]  # the second begins with the first
    inputs[1].choice = 1
    simulation.scheduler.add(*inputs)
    for admission in [a for plan in simulation.run_to_end() for a in plan.admissions]:
        assert admission.cached_blocks == ()
