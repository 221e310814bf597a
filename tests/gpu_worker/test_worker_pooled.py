"""Requests for vectors in the step loop: one answer each, past the detokenizer."""

from array import array
from dataclasses import replace

import pytest

from gpu_worker.intake import to_pooled
from shared.errors import ErrorCode, RequestError
from shared.messages import Abort, ConfirmHeld, Pool, Pooled, RequestFailed
from tests.builders import ROUTE
from tests.fakes import POISON, formula_vector
from tests.gpu_worker.stage import EPOCH, LIMITS, Stage, generate, make_stage

TEXTLESS = replace(ROUTE, detokenizer_epoch=None)
SIZE = 2  # numbers of a vector of the formula
POOLING = replace(LIMITS, embedding_size=SIZE)


def pool(request_id: str, *inputs: tuple[int, ...], dimensions: int = SIZE) -> Pool:
    return Pool(request_id, TEXTLESS, inputs, dimensions, "")


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def stage(request: pytest.FixtureRequest) -> Stage:
    made = make_stage(overlaps=request.param)
    made.worker._limits = POOLING
    return made


def vectors(*inputs: tuple[int, ...]) -> bytes:
    return b"".join(formula_vector(ids) or b"" for ids in inputs)


def test_all_vectors_of_a_request_come_in_one_message_in_order(stage: Stage) -> None:
    inputs = tuple((n, n + 1) * (n + 1) for n in range(9))  # more than there are rows
    stage.run(pool("v", *inputs))
    (answer,) = stage.mailbox.of_type(Pooled)
    assert answer == Pooled("v", 0, EPOCH, vectors(*inputs))
    assert stage.ends == []
    assert stage.started == []
    assert stage.worker._audience._routes == {}


def test_an_answer_does_not_wait_for_many_vectors(stage: Stage) -> None:
    many = pool("v", *((n % 40,) * 12 for n in range(40)))
    stage.run_with(many, generate("a", 1, 2, 3, max_tokens=3), step=2)
    assert len(stage.answer("a")) == 3
    numbers = [step.step for step in stage.steps if "a" in step.request_ids]
    assert numbers[0] <= 4, "it waited for vectors that came before it"
    (answer,) = stage.mailbox.of_type(Pooled)
    assert len(answer.vectors) == 40 * SIZE * 4


def test_one_input_that_fails_fails_its_request_alone(stage: Stage) -> None:
    stage.run(pool("bad", (1, 2), (POISON, 3), (4,)), pool("good", (5, 6)))
    (failed,) = stage.mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.code) == ("bad", ErrorCode.INTERNAL)
    (answer,) = stage.mailbox.of_type(Pooled)
    assert answer.request_id == "good"
    assert stage.worker.scheduler.is_idle


def test_an_abort_ends_it_and_nobody_hears_of_it(stage: Stage) -> None:
    many = pool("v", *((n % 40,) * 12 for n in range(40)))
    stage.run_with(many, Abort("v"), step=2)
    assert stage.mailbox.of_type(Pooled) == []
    assert stage.ends == []
    assert stage.worker._pooled._open == {}


def test_what_never_came_is_lost_and_what_is_held_is_not(stage: Stage) -> None:
    many = pool("v", *((n % 40,) * 12 for n in range(40)))
    stage.run_with(many, ConfirmHeld(0, None, ("v", "w")), step=2)
    (failed,) = stage.mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.code) == ("w", ErrorCode.ENGINE_DEAD)
    assert [answer.request_id for answer in stage.mailbox.of_type(Pooled)] == ["v"]


def test_fewer_dimensions_are_of_length_one(stage: Stage) -> None:
    stage.run(pool("v", (1, 2), dimensions=1))
    (answer,) = stage.mailbox.of_type(Pooled)
    assert array("f", answer.vectors).tolist() == [1.0]


@pytest.mark.parametrize(
    "message",
    [
        pool("v"),
        pool("v", ()),
        pool("v", (1,), dimensions=0),
        pool("v", (1,), dimensions=SIZE + 1),
        pool("v", (100,)),
        pool("v", (-1,)),
        pool("v", (1,) * 257),
    ],
)
def test_nothing_that_would_break_a_step_comes_in(message: Pool) -> None:
    with pytest.raises(RequestError) as caught:
        to_pooled(message, POOLING)
    assert caught.value.code == ErrorCode.INTERNAL


def test_a_model_without_embeddings_takes_none(stage: Stage) -> None:
    stage.worker._limits = LIMITS
    stage.run(pool("v", (1,)))
    assert [failed.request_id for failed in stage.mailbox.of_type(RequestFailed)] == ["v"]
