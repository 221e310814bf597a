"""Logprobs are the log softmax of a row's raw logits, whoever else asks, and always numbers."""

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch

from gpu_worker.logprobs import Computed, Scorer, read
from gpu_worker.tiles import rows_at_once
from scheduler.plan import NO_TOKEN, Chunk, StepResult, TokenScore
from shared.sampling import MIN_LOGPROB, SamplingParams
from tests.builders import GREEDY, make_admission
from tests.gpu_worker.sampling import CPU, random_logits
from tests.gpu_worker.test_sampler_cost import WAITING, Recorded

INF, NAN = float("inf"), float("nan")
Counts = Sequence[int | None]


def asking(count: int | None, prompt_count: int | None = None) -> SamplingParams:
    """Settings that ask for so many alternatives."""
    return dataclasses.replace(GREEDY, num_logprobs=count, num_prompt_logprobs=prompt_count)


def make_scorer(counts: Counts, vocab_size: int, prompt_counts: Counts = ()) -> Scorer:
    """A scorer whose rows 0, 1, … ask for these."""
    scorer = Scorer(vocab_size, CPU)
    for row, count in enumerate(counts):
        prompt_count = prompt_counts[row] if prompt_counts else None
        scorer.begin(make_admission(row, asking(count, prompt_count)))
    return scorer


def told(logits: torch.Tensor, tokens: list[int], counts: Counts) -> StepResult:
    """What a step is told whose rows 0, 1, … have sampled these tokens."""
    scorer, rows = make_scorer(counts, logits.shape[1]), list(range(len(tokens)))
    token_ids = torch.tensor(tokens)
    asking, scores = scorer.score_sampled(logits, token_ids, rows)
    return read([Computed(token_ids, asking, scores, ())])


def score(logits: list[float], token: int, count: int) -> TokenScore:
    """What one row is told of one token."""
    (found,) = told(torch.tensor([logits]), [token], [count]).scores
    assert found is not None
    return found


@pytest.mark.parametrize("vocab_size", [1, 7, 1003, 40_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logprobs_are_the_log_softmax_and_the_best_come_first(
    vocab_size: int, dtype: torch.dtype
) -> None:
    logits = random_logits(9, vocab_size).to(dtype)
    tokens = [n % vocab_size for n in range(9)]
    expected = logits.double().log_softmax(-1)
    for row, found in enumerate(told(logits, tokens, [20] * 9).scores):
        assert found is not None
        assert found.logprob == pytest.approx(float(expected[row, tokens[row]]), abs=1e-5)
        order = sorted(range(vocab_size), key=lambda token: (-float(logits[row, token]), token))
        assert found.top_ids == tuple(order[:20])
        best = [float(expected[row, token]) for token in order[:20]]
        assert found.top_logprobs == pytest.approx(best, abs=1e-5)


def test_equal_logprobs_come_in_the_order_of_their_ids_also_where_the_list_ends() -> None:
    logits = [0.0] * 500
    logits[77] = logits[400] = 1.0
    assert score(logits, 3, 6).top_ids == (77, 400, 0, 1, 2, 3)
    assert score([-0.0, 0.0, -0.0, 0.0], 3, 3).top_ids == (0, 1, 2)


def test_each_row_is_told_what_it_asks_for_and_the_others_nothing() -> None:
    result = told(random_logits(5, 50), [4, 5, 6, 7, 8], [2, None, 0, 20, None])
    assert result.token_ids == (4, 5, 6, 7, 8)
    lengths = [None if found is None else len(found.top_ids) for found in result.scores]
    assert lengths == [2, None, 0, 20, None]


def test_a_token_outside_the_list_has_its_own_logprob() -> None:
    found = score([5.0, 4.0, 0.0], 2, 1)
    assert found.top_ids == (0,)
    assert found.logprob < found.top_logprobs[0] < 0.0


def test_no_more_tokens_are_told_than_there_are() -> None:
    assert score([1.0, 3.0, 2.0], 0, 20).top_ids == (1, 2, 0)


def test_what_cannot_be_said_has_the_least_logprob() -> None:
    found = score([-INF, 0.0, -INF, -2e4], 0, 4)
    assert found == TokenScore(MIN_LOGPROB, (1, 3, 0, 2), (0.0, *[MIN_LOGPROB] * 3))


@pytest.mark.parametrize(
    "broken", [[NAN, 1.0, 2.0], [NAN, -INF, -INF], [INF, 1.0, 2.0], [INF, INF, 0.0], [-INF] * 3]
)
def test_a_row_without_numbers_is_told_nothing_and_harms_nobody(broken: list[float]) -> None:
    good = random_logits(2, 3)
    logits = torch.stack([good[0], torch.tensor(broken), good[1]])
    result = told(logits, [1, NO_TOKEN, 2], [3, 3, 3])
    assert result.scores[1] is None
    assert [result.scores[0], result.scores[2]] == [*told(good, [1, 2], [3, 3]).scores]


@pytest.mark.parametrize("vocab_size", [2, 97, 1003, 2**18])
def test_a_row_is_told_the_same_alone_and_in_a_crowd(vocab_size: int) -> None:
    logits, counts = random_logits(12, vocab_size), [n % 5 or None for n in range(12)]
    crowd = told(logits, [1] * 12, counts).scores
    for row in range(12):
        alone = told(logits[row : row + 1], [1], counts[row : row + 1]).scores
        assert (alone or (None,)) == crowd[row : row + 1]


def test_everything_told_is_finite() -> None:
    logits = random_logits(200, 40) * torch.logspace(-3, 36, 200)[:, None]
    for found in told(logits, [0] * 200, [20] * 200).scores:
        assert found is not None
        numbers = (found.logprob, *found.top_logprobs)
        assert all(math.isfinite(number) and MIN_LOGPROB <= number <= 0.0 for number in numbers)


def test_prompts_are_scored_by_what_their_rows_ask_for() -> None:
    scorer = make_scorer([None, None, 4], 50, [2, None, 0])
    logits, targets = random_logits(5, 50), torch.tensor([6, 7, 8, 9, 10])
    chunks = (
        Chunk(1, 0, (5, 5), (), 0, True),
        Chunk(0, 0, (5, 6, 7), (), 0, False, 0, (6, 7, 8)),
        Chunk(2, 3, (8, 9, 10), (), 0, True, 3, (9, 10)),
    )
    computed = Computed(torch.tensor([3, 4]), (), (), scorer.score_prompts(logits, targets, chunks))
    result = read([computed])
    assert (result.token_ids, result.scores) == ((3, 4), ())
    expected = told(logits, targets.tolist(), [2, 2, 2, 0, 0])
    assert result.prompt_scores == expected.scores


def test_parts_of_a_step_are_read_together_and_in_order() -> None:
    logits = random_logits(4, 50)
    scorer, token_ids = make_scorer([1, 1], 50, [3, 3]), torch.tensor([8, 9])
    prompt = Chunk(0, 0, (5, 6, 7), (), 0, False, 0, (6, 7))
    first = Computed(
        torch.tensor([], dtype=torch.long),
        (),
        (),
        scorer.score_prompts(logits[:2], torch.tensor([6, 7]), (prompt,)),
    )
    second = Computed(token_ids, *scorer.score_sampled(logits[2:], token_ids, [0, 1]), ())
    result = read([first, second])
    assert result.token_ids == (8, 9)
    assert result.scores == told(logits[2:], [8, 9], [1, 1]).scores
    assert result.prompt_scores == told(logits[:2], [6, 7], [3, 3]).scores


def test_a_row_that_begins_again_forgets_what_it_asked() -> None:
    scorer, logits = make_scorer([3], 50, [3]), random_logits(1, 50)
    scorer.begin(make_admission(0, asking(None)))
    assert scorer.score_sampled(logits, torch.tensor([1]), [0]) == ((), ())
    scorer.begin(make_admission(0, asking(1)))
    (found,) = scorer.score_sampled(logits, torch.tensor([1]), [0])[1]
    assert found.counts == (1,)


def test_only_the_rows_that_ask_pay_and_nothing_waits() -> None:
    vocab_size = 5000
    logits, token_ids = random_logits(6, vocab_size), torch.tensor([1] * 6)
    scorer = make_scorer([None, 5, None, None, 0, None], vocab_size)
    scorer.score_sampled(logits, token_ids, list(range(6)))
    recorded = Recorded()
    with recorded:
        scorer.score_sampled(logits, token_ids, list(range(6)))
    assert {op.first_shape[0] for op in recorded.operations if op.name == "_log_softmax"} == {2}
    assert not recorded.names.keys() & {*WAITING, "sort"}
    recorded.operations.clear()
    with recorded:
        make_scorer([None] * 6, vocab_size).score_sampled(logits, token_ids, list(range(6)))
    assert recorded.operations == []


def test_a_large_step_is_scored_in_tiles() -> None:
    vocab_size = 2**16
    size = rows_at_once(vocab_size, CPU)
    logits = random_logits(1, vocab_size).expand(size + 1, -1)
    scorer = make_scorer([1] * (size + 1), vocab_size)
    rows = list(range(size + 1))
    _, scores = scorer.score_sampled(logits, torch.tensor(rows), rows)
    assert [len(part.counts) for part in scores] == [size, 1]
