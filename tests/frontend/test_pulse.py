"""What may be written past the task that writes, and when."""

import asyncio
from typing import Any, cast

from frontend.direct_body import DirectBody
from frontend.pulse import Pulse


class OpenBody:
    """A connection that takes everything."""

    takes_more = True


def test_nothing_overtakes_what_is_being_sent() -> None:
    """A client may read again before the task that waited for it has run."""

    async def send_slowly() -> list[bool]:
        may_go_on = asyncio.Event()

        async def send(message: Any) -> None:
            await may_go_on.wait()

        pulse = Pulse(
            send, cast("DirectBody", OpenBody()), write_seconds=9.0, on_silence=lambda: None
        )
        found = [pulse.takes_more]
        sending = asyncio.create_task(pulse.send({}))
        await asyncio.sleep(0)
        found.append(pulse.takes_more)
        may_go_on.set()
        await sending
        return [*found, pulse.takes_more]

    assert asyncio.run(send_slowly()) == [True, False, True]
