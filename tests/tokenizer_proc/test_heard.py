"""A window's whole answer comes in one step, with its end and where its tokens were heard."""

from dataclasses import replace

import numpy as np
import pytest

from shared.messages import TextProduced, TokensSampled
from shared.parts import Heard, SequenceEnded, TokenLogprobs
from tests.tokenizer_proc.test_detokenizer import EPOCH, VOCABULARY, Bench, start
from tokenizer_proc.alignment import token_times

HEARD = Heard(0.0, -0.4, 1.1, 0.05, 0.0)


def step(*names: str, alignments: bytes = b"", shape: tuple[int, int] = (0, 0)) -> TokensSampled:
    """The three tokens of each window, all of which have ended."""
    ids = tuple(VOCABULARY.encode(text).ids[0] for text in "abc") * len(names)
    told = tuple(TokenLogprobs(-0.1 * number, (), ()) for number in range(len(ids)))
    return TokensSampled(
        worker_id=0,
        epoch=EPOCH,
        step=1,
        started=tuple(start(name) for name in names),
        request_ids=tuple(name for name in names for _ in range(3)),
        choices=(0,) * len(ids),
        seqs=(0, 1, 2) * len(names),
        token_ids=ids,
        logprobs=told,
        ended=tuple(SequenceEnded(name, 0, "length", False, HEARD, shape) for name in names),
        alignments=alignments,
    )


def produced(message: TokensSampled) -> TextProduced:
    bench = Bench()
    bench.mailbox.deliver(message)
    bench.detokenizer.serve_once(timeout_seconds=0.0)
    (found,) = bench.mailbox.of_type(TextProduced)
    assert bench.detokenizer.num_answers == 0
    return found


def test_all_tokens_of_an_answer_are_one_row() -> None:
    found = produced(step("a#0", "a#1"))
    assert found.request_ids == ("a#0", "a#1")
    assert (found.seqs, found.texts, found.completion_tokens) == ((0, 0), ("abc", "abc"), (3, 3))
    assert [[t.logprob for t in tokens] for tokens in found.scored] == [
        pytest.approx([-0.0, -0.1, -0.2]),
        pytest.approx([-0.3, -0.4, -0.5]),
    ]
    assert [end.heard for end in found.ended] == [HEARD, HEARD]


def test_each_answer_is_timed_by_its_own_part() -> None:
    random = np.random.default_rng(3)
    matrices = random.normal(size=(2, 4, 9)).astype("<f4")
    found = produced(step("a#0", "a#1", alignments=matrices.tobytes(), shape=(4, 9)))
    times = [token_times(matrix, 1.0) for matrix in matrices]
    assert times[0] != times[1]
    assert [end.heard for end in found.ended] == [replace(HEARD, token_times=t) for t in times]


def test_of_two_only_one_may_be_timed() -> None:
    matrix = np.random.default_rng(4).normal(size=(4, 9)).astype("<f4")
    message = step("a#0", "a#1", alignments=matrix.tobytes(), shape=(4, 9))
    first, second = message.ended
    found = produced(replace(message, ended=(replace(first, alignment_shape=(0, 0)), second)))
    assert found.ended[0].heard == HEARD
    assert found.ended[1].heard == replace(HEARD, token_times=token_times(matrix, 1.0))
