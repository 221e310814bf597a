"""Several prompts are one request: one numbering, one acceptance, one outcome."""

import asyncio

import pytest

from frontend.events import (
    Accepted,
    Event,
    Failed,
    Finished,
    PromptRead,
    TextAdded,
    TextFound,
    TokensFound,
)
from frontend.generation import Generation
from shared.errors import ErrorCode, RequestError

ERROR = RequestError(ErrorCode.INTERNAL, "It broke.")


def make_generation(num_prompts: int = 2, num_choices: int = 2) -> tuple[Generation, list[str]]:
    released: list[str] = []
    made = Generation(
        "r", lambda: released.append("r"), num_prompts=num_prompts, num_choices=num_choices
    )
    return made, released


def test_choices_are_numbered_through_all_prompts() -> None:
    generation, _ = make_generation()
    generation.push(TextAdded(1, "b", 1), prompt=1)
    generation.push(PromptRead(()), prompt=1)
    generation.push(TextAdded(0, "a", 1), prompt=0)
    events = asyncio.run(generation.next_events())
    assert events == [TextAdded(3, "b", 1), PromptRead((), prompt=1), TextAdded(0, "a", 1)]


def test_a_request_is_accepted_when_all_its_prompts_are() -> None:
    async def accept() -> list[Accepted]:
        generation, _ = make_generation()
        waiting = asyncio.create_task(generation.accepted())
        generation.push(Accepted(5, "b"), prompt=1)
        await asyncio.sleep(0)
        assert not waiting.done()
        generation.push(TextAdded(0, "x", 1), prompt=1)
        generation.push(Accepted(3, "a"), prompt=0)
        return await waiting

    assert asyncio.run(accept()) == [Accepted(3, "a"), Accepted(5, "b")]


def test_it_is_finished_once_and_costs_the_sum() -> None:
    generation, _ = make_generation()
    generation.push(Finished(2, 16), prompt=1)
    generation.push(TextAdded(0, "x", 1), prompt=0)
    generation.push(Finished(3, 1), prompt=0)
    assert asyncio.run(generation.next_events()) == [TextAdded(0, "x", 1), Finished(5, 17)]


def test_the_first_failure_is_the_outcome() -> None:
    generation, _ = make_generation()
    generation.push(Accepted(3), prompt=0)
    generation.push(Failed(ERROR), prompt=1)
    generation.push(TextAdded(0, "late", 1), prompt=0)
    generation.push(Failed(ERROR), prompt=0)
    with pytest.raises(RequestError, match="It broke"):
        asyncio.run(generation.accepted())
    assert asyncio.run(generation.next_events()) == [Failed(ERROR)]


def test_leaving_gives_the_request_back() -> None:
    generation, released = make_generation()
    with pytest.raises(KeyError), generation:
        raise KeyError
    assert released == ["r"]


def test_what_came_together_is_offered_together_and_what_is_refused_waits() -> None:
    async def offer() -> tuple[list[list[Event]], list[Event]]:
        generation, _ = make_generation(1, 2)
        offered: list[list[Event]] = []

        def take(events: list[Event]) -> bool:
            offered.append(list(events))
            return len(events) == 2

        generation.offer_to(take)
        waiting = asyncio.create_task(generation.next_events())
        await asyncio.sleep(0)
        for choice in range(2):
            generation.push(TextAdded(choice, "a", 1))
        await asyncio.sleep(0)
        assert not waiting.done()
        generation.push(TextAdded(0, "b", 2))
        return offered, await waiting

    offered, waited = asyncio.run(offer())
    assert offered == [[TextAdded(0, "a", 1), TextAdded(1, "a", 1)], [TextAdded(0, "b", 2)]]
    assert waited == [TextAdded(0, "b", 2)]


def test_what_cannot_be_taken_is_not_lost() -> None:
    async def offer() -> list[Event]:
        generation, _ = make_generation(1, 1)
        reported: list[object] = []
        handle = asyncio.get_running_loop().set_exception_handler
        handle(lambda loop, context: reported.append(context["exception"]))

        def take(events: list[Event]) -> bool:
            raise ValueError(len(events))

        generation.offer_to(take)
        waiting = asyncio.create_task(generation.next_events())
        await asyncio.sleep(0)
        generation.push(TextAdded(0, "a", 1))
        events = await waiting
        assert [type(error) for error in reported] == [ValueError]
        return events

    assert asyncio.run(offer()) == [TextAdded(0, "a", 1)]


@pytest.mark.parametrize("found", [TokensFound((1, 2), None), TextFound("ab")])
def test_a_lookup_has_one_answer(found: TokensFound | TextFound) -> None:
    generation, _ = make_generation(1, 1)
    generation.push(found)
    assert asyncio.run(generation.found()) == found


def test_a_lookup_fails_with_its_reason() -> None:
    generation, _ = make_generation(1, 1)
    generation.push(Failed(ERROR))
    with pytest.raises(RequestError, match="It broke"):
        asyncio.run(generation.found())
