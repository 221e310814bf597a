"""Penalties, bias and held back end tokens do to the logits what they say, and to no other row."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.sampler import Sampler
from scheduler.plan import NO_TOKEN, Admission
from shared.sampling import SamplingParams
from tests.builders import make_admission
from tests.gpu_worker.sampling import (
    CPU,
    after,
    ask,
    chi_square,
    decode_plan,
    edited,
    random_logits,
    scores,
)

PROMPT = (2, 3, 3)
END = 1


def admit(row: int = 0, prompt: tuple[int, ...] = PROMPT, **sampling: Any) -> Admission:
    """A row that is greedy if nothing else is said."""
    params = SamplingParams(**{"seed": 1, "temperature": 0.0, **sampling})
    return make_admission(row, params, token_ids=prompt, num_prompt_tokens=len(prompt))


def begin(vocab_size: int, *admissions: Admission) -> Sampler:
    """A sampler with these rows."""
    sampler = Sampler(len(admissions), vocab_size, CPU)
    for admission in admissions:
        sampler.begin(admission)
    return sampler


def feed(sampler: Sampler, row: int, answer: list[int]) -> None:
    """Decodes these tokens of an answer."""
    for index, token in enumerate(answer, start=1):
        sampler.observe(decode_plan([(row, index, token)]))


def best(sampler: Sampler, logits: list[float], index: int = 0) -> int:
    """What row 0 takes."""
    return ask(sampler, torch.tensor([logits]), [0], [index])[0]


def test_a_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    sampler = begin(5, admit(repetition_penalty=2.0))
    assert best(sampler, [0.0, 0.9, 2.0, 1.0, -9.0]) == 2  # 2 / 2 is more than 0.9
    assert best(sampler, [0.0, 1.1, 2.0, 1.0, -9.0]) == 1
    assert best(sampler, [-9.0, -9.0, -1.0, -9.0, -1.9]) == 4  # -1 x 2 is less than -1.9
    assert best(sampler, [-9.0, -9.0, -1.0, -9.0, -2.1]) == 2


def test_a_repetition_penalty_counts_the_answer_too() -> None:
    sampler = begin(5, admit(repetition_penalty=2.0))
    assert best(sampler, [3.0, 0.0, 0.0, 0.0, 2.0]) == 0
    feed(sampler, 0, [0])
    assert best(sampler, [3.0, 0.0, 0.0, 0.0, 2.0], 1) == 4


def test_a_frequency_penalty_grows_with_every_use_in_the_answer_only() -> None:
    sampler = begin(5, admit(frequency_penalty=0.5))
    logits = [0.0, 0.0, 2.0, 1.2, 0.0]
    assert best(sampler, logits) == 2  # its use in the prompt costs nothing
    feed(sampler, 0, [2])
    assert best(sampler, logits, 1) == 2  # 1.5
    feed(sampler, 0, [2, 2])
    assert best(sampler, logits, 2) == 3  # 1.0


def test_a_presence_penalty_is_paid_once() -> None:
    sampler = begin(5, admit(presence_penalty=1.0))
    feed(sampler, 0, [2, 2, 2])
    assert best(sampler, [0.0, 0.0, 2.0, 0.9, 0.0], 3) == 2
    assert best(sampler, [0.0, 0.0, 2.0, 1.1, 0.0], 3) == 3


def test_negative_penalties_favour_what_came_before() -> None:
    sampler = begin(5, admit(frequency_penalty=-1.0))
    feed(sampler, 0, [4])
    assert best(sampler, [0.5, 0.0, 0.0, 0.0, 0.0], 1) == 4


def test_a_bias_of_100_chooses_and_one_of_minus_100_bans_a_greedy_token() -> None:
    logits = [5.0, 0.0, 4.0, 0.0, 0.0]
    assert best(begin(5, admit(logit_bias=((4, 100.0),))), logits) == 4
    assert best(begin(5, admit(logit_bias=((0, -100.0),))), logits) == 2


def test_a_row_whose_every_token_is_biased_away_still_takes_the_best() -> None:
    bans = tuple((token, -100.0) for token in range(5))
    assert best(begin(5, admit(logit_bias=bans)), [0.0, 0.0, 0.0, 1.0, 0.0]) == 3


def test_a_bias_is_added_after_the_repetition_penalty() -> None:
    sampler = begin(5, admit(repetition_penalty=2.0, logit_bias=((2, 4.0),)))
    assert best(sampler, [3.0, 0.0, 0.0, 0.0, 0.0]) == 2  # 4, not 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_end_tokens_are_impossible_until_min_tokens_are_sampled(temperature: float) -> None:
    sampler = begin(3, admit(prompt=(0,), min_tokens=3, temperature=temperature))
    logits = [0.0, 50.0, 0.0]
    assert all(best(sampler, logits, index) != END for index in (0, 1, 2))
    assert best(sampler, logits, 3) == END


def test_every_end_token_of_the_sequence_is_held_back() -> None:
    held = dataclasses.replace(admit(min_tokens=1), end_token_ids=frozenset({1, 4, 900}))
    assert best(begin(5, held), [0.0, 9.0, 1.0, 0.0, 8.0]) == 2


def test_a_row_that_may_only_end_but_not_yet_has_no_token() -> None:
    nothing = float("-inf")
    assert best(begin(3, admit(prompt=(0,), min_tokens=1)), [nothing, 0.0, nothing]) == NO_TOKEN


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_held_back_end_token_hides_no_broken_logit(bad: float) -> None:
    assert best(begin(3, admit(prompt=(0,), min_tokens=1)), [0.0, bad, 0.0]) == NO_TOKEN


def test_a_row_without_penalties_is_left_bit_for_bit() -> None:
    sampler = begin(
        50,
        admit(0, temperature=1.0),
        admit(1, repetition_penalty=3.0, frequency_penalty=2.0, logit_bias=((5, 9.0),)),
    )
    logits = random_logits(2, 50)
    before = logits.clone()
    sampled = ask(sampler, logits, [0, 1], [0, 0])
    assert torch.equal(logits, before)
    assert sampled[:1] == ask(begin(50, admit(0, temperature=1.0)), logits[:1], [0], [0])


def test_executing_a_plan_twice_counts_its_tokens_once() -> None:
    once = begin(5, admit(frequency_penalty=0.4))
    twice = begin(5, admit(frequency_penalty=0.4))
    for index, token in enumerate([2, 2, 0], start=1):
        plan = decode_plan([(0, index, token)])
        once.observe(plan)
        for part in (plan, plan.part(0, 1), plan):
            twice.observe(part)
        for gap in range(-10, 10):
            logits = [0.1 * gap, 0.0, 0.0, 0.0, 0.0]
            assert best(once, logits, index) == best(twice, logits, index)


def test_tokens_of_prompt_chunks_are_not_counted_again() -> None:
    sampler = begin(5, admit(frequency_penalty=2.0))
    plan = dataclasses.replace(decode_plan([(0, 1, 2)]), num_decodes=0)
    sampler.observe(plan)
    assert best(sampler, [0.0, 0.0, 1.0, 0.0, 0.0], 1) == 2


def test_a_row_that_begins_again_forgets_what_came_before() -> None:
    sampler = begin(
        5, admit(repetition_penalty=2.0, frequency_penalty=2.0, logit_bias=((0, -9.0),))
    )
    feed(sampler, 0, [0, 0])
    logits = [3.0, 2.0, 0.0, 0.0, 0.0]
    for again in (
        admit(prompt=(4,), repetition_penalty=2.0),
        admit(frequency_penalty=2.0),
        admit(),
    ):
        sampler.begin(again)
        assert best(sampler, logits) == 0


EVERYTHING: dict[str, Any] = {
    "temperature": 1.0,
    "repetition_penalty": 1.3,
    "frequency_penalty": 0.7,
    "presence_penalty": 0.3,
    "logit_bias": ((7, 2.5), (9, -100.0)),
    "min_tokens": 6,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"top_p": 0.9},
    {"top_k": 20},
    {"min_p": 0.02, "top_k": 30, "top_p": 0.8},
    {"frequency_penalty": -0.5},
    {"repetition_penalty": 0.8},
    {"temperature": 0.0},
    {"logit_bias": ()},
    {"presence_penalty": 0.0, "frequency_penalty": 0.0},
    {"repetition_penalty": 1.0},
    {"min_tokens": 0},
    {"min_p": 0.05},
    {"temperature": 3.0, "top_k": 70},
    {"temperature": 0.0, "min_tokens": 2},
    {"top_p": 0.5, "temperature": 2.0},
    {"top_k": 1100},
]
SIXTEEN = [{**EVERYTHING, "seed": seed, **more} for seed, more in enumerate(VARIANTS)]


def logits_at(row: int, index: int) -> torch.Tensor:
    """What the model says at this place, [1200]: mostly one of twelve tokens, again and again."""
    logits = random_logits(1, 1200, seed=100 * row + index)[0]
    logits[:12] += 12.0
    return logits


def answer_alone(row: int, length: int, preempted_at: int | None = None) -> list[int]:
    """The answer of one of the sixteen without company; perhaps it loses its row in between."""
    admission = admit(0, **SIXTEEN[row])
    sampler, answer = begin(1200, admission), list[int]()
    while len(answer) < length:
        if answer:
            sampler.observe(decode_plan([(0, len(answer), answer[-1])]))
        if len(answer) == preempted_at:
            sampler = begin(1200, after(admission, answer))
        answer += ask(sampler, logits_at(row, len(answer))[None], [0], [len(answer)])
    return answer


def answers_together(length: int) -> list[list[int]]:
    """The answers of all sixteen side by side, the first place in a step changing every time."""
    sampler = begin(1200, *(admit(row, **SIXTEEN[row]) for row in range(16)))
    answers: list[list[int]] = [[] for _ in range(16)]
    for index in range(length):
        rows = [(row + index) % 16 for row in range(16)]
        if index:
            sampler.observe(decode_plan([(row, index, answers[row][-1]) for row in rows]))
        logits = torch.stack([logits_at(row, index) for row in rows])
        for row, token in zip(rows, ask(sampler, logits, rows, [index] * 16), strict=True):
            answers[row].append(token)
    return answers


def test_a_row_answers_alone_as_in_a_crowd_and_after_a_preemption() -> None:
    together = answers_together(10)
    for row, answer in enumerate(together):
        assert answer_alone(row, 10) == answer
        assert answer_alone(row, 10, preempted_at=4) == answer
    assert len({tuple(answer) for answer in together}) == 16


def test_penalised_draws_follow_the_penalised_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 1.5, -0.5, 0.0])
    chosen = {**EVERYTHING, "logit_bias": ((4, 1.5),), "min_tokens": 0, "temperature": 1.2}
    admissions = [admit(row, **{**chosen, "seed": row}) for row in range(6000)]
    sampler = begin(6, *admissions)
    for index, token in enumerate((0, 0, 5), start=1):
        sampler.observe(decode_plan([(row, index, token) for row in range(6000)]))
    tokens = ask(sampler, logits.repeat(6000, 1), list(range(6000)), [3] * 6000)
    expected = torch.from_numpy(edited(logits, admissions[0], [0, 0, 5])) / 1.2
    assert chi_square(tokens, expected.softmax(0)) < 26  # 5 degrees: once in 10,000


TOKENS = st.integers(0, 7)
PENALTIES = st.integers(-8, 8).map(lambda quarter: quarter / 4)
SETTINGS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**63 - 1),
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "top_p": st.sampled_from([0.3, 0.77, 1.0]),
        "top_k": st.sampled_from([0, 2, 5, 100]),
        "min_p": st.sampled_from([0.0, 0.013, 0.2]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.7]),
        "frequency_penalty": PENALTIES,
        "presence_penalty": PENALTIES,
        "logit_bias": st.dictionaries(TOKENS, st.integers(-100, 100).map(float), max_size=3).map(
            lambda bias: tuple(bias.items())
        ),
        "min_tokens": st.integers(0, 4),
    }
)


@given(
    st.lists(
        st.tuples(
            SETTINGS,
            st.lists(TOKENS, min_size=1, max_size=4),
            st.lists(TOKENS, max_size=5),
            st.integers(0, 5),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 1000),
)
def test_every_combination_is_the_references_choice(
    rows: list[tuple[dict[str, Any], list[int], list[int], int]], seed: int
) -> None:
    logits = random_logits(len(rows), 8, seed)
    admissions = [admit(row, tuple(given[1]), **given[0]) for row, given in enumerate(rows)]
    answers = [answer for _, _, answer, _ in rows]
    sampler = Sampler(len(rows), 8, CPU)
    for admission, (_, _, answer, num_restored) in zip(admissions, rows, strict=True):
        sampler.begin(after(admission, answer[:num_restored]))
        for index, token in list(enumerate(answer, start=1))[num_restored:]:
            sampler.observe(decode_plan([(admission.row, index, token)]))
    sampled = ask(sampler, logits, list(range(len(rows))), [len(answer) for answer in answers])
    for token, row, admission, answer in zip(sampled, logits, admissions, answers, strict=True):
        wanted = scores(row, admission, answer)
        # Rounding may decide between equals only.
        assert wanted[token] >= wanted.max() - 1e-3
