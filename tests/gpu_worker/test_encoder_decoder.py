"""T5 and its kin over slots: what joins and leaves at any time gets `generate()`'s answer."""

from typing import Any

import pytest
import torch

from gpu_worker.families import encoder_decoder
from gpu_worker.slot_cache import SlotCache
from scheduler.plan import Admission, EncoderInput, StepResult
from tests.builders import GREEDY
from tests.gpu_worker.encoder_decoders import (
    MODELS,
    NUM_ROWS,
    difference,
    make_t5,
    requests,
    serve_all,
    served,
)


@pytest.mark.parametrize("name", MODELS)
def test_requests_that_come_and_go_are_answered_as_alone(name: str) -> None:
    sequences = requests(24)
    runner, scheduler = served(make_t5(name))
    assert serve_all(runner, scheduler, sequences) > 0
    reference = make_t5(name)
    assert [found for s in sequences if (found := difference(reference, s))] == []


def test_every_slot_is_used() -> None:
    _, scheduler = served(make_t5("t5"))
    for sequence in requests(2 * NUM_ROWS):
        scheduler.add(sequence)
    most = 0
    for _ in range(2 * NUM_ROWS):  # an encoder's budget may take several steps
        plan = scheduler.schedule()
        most = max(most, scheduler.num_running)
        scheduler.apply(plan, StepResult((7,) * sum(chunk.samples for chunk in plan.chunks)))
    assert most == NUM_ROWS


@pytest.mark.parametrize("name", MODELS)
def test_prompts_of_the_decoder_are_prefilled_in_one_go(name: str) -> None:
    sequences = requests(12, longest_start=9)
    runner, scheduler = served(make_t5(name))
    serve_all(runner, scheduler, sequences)
    assert {sequence.num_prompt_tokens for sequence in sequences} > {1, 4, 9}
    reference = make_t5(name)
    assert [found for s in sequences if (found := difference(reference, s))] == []


@pytest.mark.parametrize("fault", ["one position for all", "one length for all"])
def test_the_comparison_sees_what_rows_must_not_share(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, scheduler = served(make_t5("t5"))
    if fault == "one position for all":
        begin = SlotCache.begin

        def begin_at_one(
            cache: SlotCache,
            positions: torch.Tensor,
            num_keys: int,
            *rest: Any,
        ) -> None:
            shared = positions.where(positions == cache.scratch, num_keys - 1)
            begin(cache, shared, num_keys, *rest)

        monkeypatch.setattr(SlotCache, "begin", begin_at_one)
    else:
        monkeypatch.setattr(runner, "_encoder_lengths", _Longest(runner._encoder_lengths))
    sequences = requests(6)
    serve_all(runner, scheduler, sequences)
    reference = make_t5("t5")
    assert [found for s in sequences if (found := difference(reference, s))] != []


class _Longest(list[int]):
    """Lengths of which everybody gets the longest."""

    def __getitem__(self, row: object) -> int:  # type: ignore[override]
        return max(self)


def test_inputs_of_like_length_are_encoded_together() -> None:
    admissions = [
        Admission(row, GREEDY, (0,), 1, frozenset(), (), EncoderInput.text((7,) * length))
        for row, length in enumerate([100, 3, 90, 4, 5, 40])
    ]
    found = [
        [len(admission.encoder_input.token_ids) for admission in group]
        for group in encoder_decoder.groups(admissions)
    ]
    assert found == [[3, 4, 5], [40, 90, 100]]
    assert sum(map(len, found)) == len(admissions)
