"""The formula for a model: the same answer alone, in a batch, in chunks and after a preemption."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Vocabulary

from benchmarks.formula.alphabet import alphabet
from benchmarks.formula.formula import START, Formula, advance, key_of
from benchmarks.formula.runner import FormulaRunner
from benchmarks.formula.scores import Likelihoods
from benchmarks.formula.settings import FormulaSettings, load_settings
from scheduler.plan import StepPlan, StepResult
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from shared.sampling import MAX_LOGPROBS, SamplingParams
from tests.builders import END_TOKEN, make_scheduler
from tests.e2e.models import DEMO_DIRECTORY

SIZES: dict[str, Any] = {"num_blocks": 24, "block_size": 4, "max_sequences": 4}
ENDS = frozenset({END_TOKEN})
FORMULA = Formula(range(2, 40), END_TOKEN, end_probability=0.1)


def make_runner(**overrides: Any) -> FormulaRunner:
    """A runner for the builders' small schedulers."""
    return FormulaRunner(FORMULA, Likelihoods(range(40)), **{**SIZES, **overrides})


def make_sequence(name: str, prompt: list[int], sampling: SamplingParams) -> Sequence:
    return Sequence(name, tuple(prompt), 20, ENDS, sampling)


def serve(scheduler: Scheduler, runner: FormulaRunner, sequences: list[Sequence]) -> None:
    """Runs all of them to their ends, every step twice, the second time in two parts."""
    for sequence in sequences:
        scheduler.add(sequence)
    while not scheduler.is_idle:
        plan = scheduler.schedule()
        result = runner.execute(plan)
        assert again_in_parts(runner, plan) == result
        scheduler.apply(plan, result)
        scheduler.check()


def again_in_parts(runner: FormulaRunner, plan: StepPlan) -> StepResult:
    middle = len(plan.chunks) // 2
    parts = [plan.part(0, middle), plan.part(middle, len(plan.chunks))]
    return StepResult.joined(runner.execute(part) for part in parts)


PROMPTS = st.lists(st.integers(2, 5), min_size=1, max_size=30)
SETTINGS = st.builds(
    SamplingParams,
    seed=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 1.0]),
    min_tokens=st.integers(0, 20),
)


@given(requests=st.lists(st.tuples(PROMPTS, SETTINGS), min_size=1, max_size=8))
def test_company_chunks_and_preemption_change_no_answer(
    requests: list[tuple[list[int], SamplingParams]],
) -> None:
    scheduler = make_scheduler(prefix_caching=True, **SIZES)
    sequences = [make_sequence(str(n), *request) for n, request in enumerate(requests)]
    serve(scheduler, make_runner(), sequences)
    for sequence, (prompt, sampling) in zip(sequences, requests, strict=True):
        alone = FORMULA.answer(prompt, 20, sampling, ENDS)
        assert sequence.token_ids == [*prompt, *alone]


@pytest.mark.parametrize("length", [1, 3, 30])
def test_a_scored_prompt_has_the_scores_of_its_states(length: int) -> None:
    prompt = [2 + position % 7 for position in range(length)]
    sampling = SamplingParams(1, num_logprobs=2, num_prompt_logprobs=3)
    scheduler = make_scheduler(prefix_caching=True, **SIZES)
    sequence = make_sequence("a", prompt, sampling)
    serve(scheduler, make_runner(), [sequence])
    likelihoods, state, expected = Likelihoods(range(40)), START, []
    for token_id, following in pairwise(prompt):
        state = advance(state, token_id)
        expected.append(likelihoods.score(state, following, 3))
    assert list(sequence.take_prompt_scores()) == expected


def test_such_a_crowd_is_preempted_and_shares_its_prompts() -> None:
    scheduler = make_scheduler(prefix_caching=True, **SIZES)
    crowd = [make_sequence(str(n), [2] * 20, SamplingParams(n, min_tokens=20)) for n in range(8)]
    serve(scheduler, make_runner(), crowd)
    assert scheduler.counters.num_preemptions > 0
    assert scheduler.counters.num_cached_tokens > 0


def test_every_token_position_and_setting_matters() -> None:
    def answer(prompt: list[int], **settings: Any) -> list[int]:
        return FORMULA.answer(prompt, 20, SamplingParams(**{"seed": 1, **settings}), frozenset())

    prompts = ([2, 3, 4], [4, 3, 2], [2, 3], [2, 2, 3, 4], [5, 3, 4])
    others: list[dict[str, Any]] = [{"seed": 2}, {"top_p": 0.5}, {"stop_token_ids": (7,)}]
    answers = [answer(prompt) for prompt in prompts] + [answer([2, 3, 4], **o) for o in others]
    assert len({tuple(found) for found in answers}) == len(answers)


def test_a_greedy_answer_has_no_seed_and_logprobs_change_none() -> None:
    assert key_of(SamplingParams(1, temperature=0.0)) == key_of(SamplingParams(2, temperature=0.0))
    asked = SamplingParams(1, num_logprobs=5, num_prompt_logprobs=0)
    assert key_of(asked) == key_of(SamplingParams(1))


def test_the_end_token_comes_as_often_as_asked() -> None:
    formula = Formula(range(2, 40), END_TOKEN, end_probability=0.25)
    tokens = formula.answer([2], 4000, SamplingParams(1), frozenset())
    assert tokens.count(END_TOKEN) / len(tokens) == pytest.approx(0.25, abs=0.03)
    assert END_TOKEN not in Formula(range(2, 40), END_TOKEN).answer(
        [2], 4000, SamplingParams(1), frozenset()
    )


def test_a_step_waits_and_is_noted() -> None:
    steps: list[tuple[float, int]] = []
    runner = make_runner(step_seconds=0.02, note_step=lambda *step: steps.append(step))
    scheduler = make_scheduler(**SIZES)
    serve(scheduler, runner, [make_sequence("a", [2, 3], SamplingParams(1, min_tokens=3))])
    gaps = [late - early for (early, _), (late, _) in pairwise(steps)]
    assert min(gaps) >= 0.02
    assert (steps[0][1], steps[-1][1]) == (0, 1), "a prompt first, then decoding"


@given(state=st.integers(0, 2**64 - 1), num_alternatives=st.integers(0, MAX_LOGPROBS))
def test_scores_are_those_of_one_distribution(state: int, num_alternatives: int) -> None:
    likelihoods = Likelihoods(range(100))
    scores = [likelihoods.score(state, token_id, num_alternatives) for token_id in range(100)]
    assert math.fsum(math.exp(logprob) for logprob, _, _ in scores) == pytest.approx(1.0)
    (top,) = {(ids, logprobs) for _, ids, logprobs in scores}
    assert list(top[1]) == sorted(top[1], reverse=True)
    assert all(scores[token_id][0] == logprob for token_id, logprob in zip(*top, strict=True))


def test_scores_depend_on_the_state() -> None:
    likelihoods = Likelihoods(range(100))
    best = {likelihoods.score(advance(START, token), 0, 1)[1] for token in range(50)}
    assert len(best) > 10


def test_the_kinds_of_text_are_what_they_say() -> None:
    vocabulary = Vocabulary.from_file(str(DEMO_DIRECTORY / "tokenizer.json"))
    end_token_id = vocabulary.token_to_id("<|im_end|>")
    assert end_token_id is not None
    letters, plain, mixed = (
        alphabet(vocabulary, text, end_token_id) for text in ("letters", "plain", "mixed")
    )
    assert {len(vocabulary.decode([token])) for token in letters} == {1}
    assert vocabulary.decode(plain).isascii()
    assert end_token_id not in {*letters, *plain, *mixed}
    assert {*mixed} == {*range(vocabulary.get_vocab_size())} - {end_token_id}
    odd = [token for token in mixed if token not in set(plain)]
    assert len(odd) / len(mixed) == pytest.approx(1 / 16, abs=0.01)


def test_settings_reach_the_rooms(tmp_path: Path) -> None:
    given = FormulaSettings(step_ms=2.5, end_probability=0.1, text="mixed", record="/somewhere")
    given.save(str(tmp_path))
    assert load_settings(str(tmp_path)) == given
