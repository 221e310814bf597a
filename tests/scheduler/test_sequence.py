"""The life of a sequence: which states follow which, and what ends it."""

import itertools

import pytest

from scheduler.sequence import FINISH_REASONS, LEGAL_TRANSITIONS, IllegalTransition, Sequence, State
from tests.builders import END_TOKEN, make_sequence

WAYS = {  # how to come to each state
    State.WAITING: (),
    State.RUNNING: (State.RUNNING,),
    State.STOPPED: (State.RUNNING, State.STOPPED),
    State.LENGTH: (State.RUNNING, State.LENGTH),
    State.ABORTED: (State.ABORTED,),
    State.FAILED: (State.RUNNING, State.FAILED),
}
LEGAL = {
    (State.WAITING, State.RUNNING),
    (State.WAITING, State.ABORTED),
    (State.RUNNING, State.WAITING),
    (State.RUNNING, State.STOPPED),
    (State.RUNNING, State.LENGTH),
    (State.RUNNING, State.ABORTED),
    (State.RUNNING, State.FAILED),
}


def appended(sequence: Sequence, token_id: int) -> State:
    """The sequence's state after one more token."""
    sequence.append(token_id)
    return sequence.state


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_only_these_changes_are_legal(old: State, new: State) -> None:
    sequence = make_sequence("r-7")
    for state in WAYS[old]:
        sequence.change(state)
    if (old, new) in LEGAL:
        sequence.change(new)
        assert sequence.state is new
    else:
        with pytest.raises(IllegalTransition, match=f"r-7: {old} to {new}"):
            sequence.change(new)
        assert sequence.state is old


def test_every_end_has_its_reason_and_nothing_else_has() -> None:
    ends = {state for state in State if not LEGAL_TRANSITIONS[state]}
    assert set(FINISH_REASONS) == ends == set(State) - {State.WAITING, State.RUNNING}
    assert FINISH_REASONS[State.STOPPED] == "stop"
    assert FINISH_REASONS[State.LENGTH] == "length"


def test_an_end_token_ends_it() -> None:
    sequence = make_sequence("r", max_tokens=3)
    sequence.change(State.RUNNING)
    states = [appended(sequence, token_id) for token_id in (7, END_TOKEN)]
    assert states == [State.RUNNING, State.STOPPED]
    assert sequence.num_output_tokens == 2


def test_the_length_ends_it() -> None:
    sequence = make_sequence("r", max_tokens=2)
    sequence.change(State.RUNNING)
    assert [appended(sequence, 7), appended(sequence, 7)] == [State.RUNNING, State.LENGTH]


def test_an_end_token_in_the_last_place_is_a_stop() -> None:
    sequence = make_sequence("r", max_tokens=1)
    sequence.change(State.RUNNING)
    sequence.append(END_TOKEN)
    assert sequence.state is State.STOPPED


def test_nothing_is_appended_to_an_ended_sequence() -> None:
    sequence = make_sequence("r", max_tokens=1)
    sequence.change(State.RUNNING)
    sequence.append(7)
    with pytest.raises(IllegalTransition):
        sequence.append(END_TOKEN)


def test_the_last_sampled_token_is_never_computed() -> None:
    assert make_sequence("r", num_prompt_tokens=5, max_tokens=3).max_computed == 7
    assert make_sequence("r", num_prompt_tokens=5, max_tokens=1).max_computed == 5


def test_it_decodes_when_only_its_newest_sampled_token_is_left() -> None:
    sequence = make_sequence("r", num_prompt_tokens=2)
    sequence.change(State.RUNNING)
    seen = []
    for num_computed, sampled in ((0, []), (1, []), (2, [7]), (1, [])):
        sequence.num_computed = num_computed
        for token_id in sampled:
            sequence.append(token_id)
        seen.append(sequence.is_decoding)
    assert seen == [False, False, True, False]
    assert sequence.token_ids == [10, 11, 7]
