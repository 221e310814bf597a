"""What an answer must be, whatever happened while it was made."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from scheduler.plan import NO_TOKEN, StepPlan, StepResult
from scheduler.sequence import MAX_PREEMPTIONS, Sequence, State
from tests.builders import END_TOKEN
from tests.fakes import POISON, formula_answer, formula_score, formula_vector

END_TOKENS = frozenset({END_TOKEN})


def check_answer(
    sequence: Sequence,
    aborted: Collection[Sequence],
    failed: Collection[Sequence],
    vectors: Mapping[Sequence, bytes | None],
) -> None:
    """It is what it would be alone in the world, or the beginning of that."""
    prompt = sequence.token_ids[: sequence.num_prompt_tokens]
    prompt = [*sequence.encoder_input.token_ids, *prompt]
    answer = sequence.token_ids[sequence.num_prompt_tokens :]
    whole = formula_answer(prompt, sequence.max_tokens, END_TOKENS)
    assert sequence.num_preemptions <= MAX_PREEMPTIONS
    if sequence.is_pooled:
        _check_vector(sequence, prompt, aborted, failed, vectors)
    elif sequence in aborted or sequence in failed:
        assert sequence.state is (State.ABORTED if sequence in aborted else State.FAILED)
        assert answer == whole[: len(answer)]
    else:
        assert answer == whole
        assert sequence.state is _expected_end(prompt, whole)


def _check_vector(
    sequence: Sequence,
    prompt: list[int],
    aborted: Collection[Sequence],
    failed: Collection[Sequence],
    vectors: Mapping[Sequence, bytes | None],
) -> None:
    assert sequence.num_output_tokens == 0
    if sequence in aborted:
        assert sequence.state is State.ABORTED
        assert sequence not in vectors
        return
    expected = None if sequence in failed else formula_vector(prompt)
    assert vectors[sequence] == expected
    assert sequence.state is (State.FAILED if expected is None else State.STOPPED)


def check_scores(sequence: Sequence) -> None:
    """Each prompt token but the first was scored once, in order, as far as it came."""
    prompt = sequence.token_ids[: sequence.num_prompt_tokens]
    whole = [formula_score(prompt[:end]) for end in range(2, len(prompt) + 1)]
    scores = sequence._prompt_scores
    assert scores == whole[: len(scores)]
    if sequence.num_output_tokens and sequence.num_to_score:
        assert len(scores) == len(whole)
    if sequence.choice or sequence.sampling.num_prompt_logprobs is None:
        assert scores == []


def _expected_end(prompt: list[int], answer: list[int]) -> State:
    if POISON in prompt:
        return State.FAILED
    return State.STOPPED if answer[-1] in END_TOKENS else State.LENGTH


def rows_of(plan: StepPlan) -> list[int]:
    """The rows of its chunks."""
    return [chunk.row for chunk in plan.chunks]


def with_failure(plan: StepPlan, result: StepResult, row: int) -> StepResult:
    """The same result, but the sequence of this row has failed."""
    sampled = [chunk.row for chunk in plan.chunks if chunk.samples]
    pairs = zip(sampled, result.token_ids, strict=True)
    token_ids = tuple(NO_TOKEN if r == row else t for r, t in pairs)
    return replace(result, token_ids=token_ids, failed_rows=frozenset({row}))
