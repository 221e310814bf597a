"""Makes the ledger's entries: what is asked, until when it may take, and who is told."""

import functools
from collections.abc import Callable

from frontend.admission import Limits
from frontend.entry import Entry
from frontend.events import Event, TextAdded
from frontend.ledger import Ledger
from frontend.meter import Meter
from frontend.metrics import Metrics
from frontend.submission import Embedding, Transcription, Wanted
from shared.mailbox import Mailbox
from shared.messages import WindowTaken
from shared.windows import is_silent

Sink = Callable[[Event], None]


class Entries:
    """One kind of entry for each kind of request."""

    def __init__(
        self,
        mailbox: Mailbox,
        ledger: Ledger,
        metrics: Metrics,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._mailbox = mailbox
        self._ledger = ledger
        self._metrics = metrics
        self._limits = limits
        self._clock = clock

    def request(
        self, request_id: str, sink: Sink, wanted: Wanted, digest: bytes, caller_id: str
    ) -> Entry:
        """A caller's request, or one of its prompts, which is measured."""
        meter = Meter(self._metrics.requests, request_id, self._clock(), caller_id)
        metered = functools.partial(self._meter, meter, sink)
        hears = isinstance(wanted, Transcription)
        return Entry(
            request_id,
            functools.partial(self._ask_for_more, request_id, metered) if hears else metered,
            self._deadline(),
            wanted.num_choices,
            wants_vectors=isinstance(wanted, Embedding),
            hears=hears,
            digest=digest,
        )

    def lookup(self, request_id: str, sink: Sink) -> Entry:
        """What a tokenizer alone answers."""
        return Entry(request_id, sink, self._deadline(), 0)

    def warm_up(self, request_id: str, sink: Sink, *, hears: bool) -> Entry:
        """The first words of a life of the rooms behind, which nobody reads."""
        return Entry(request_id, sink, self._deadline(), 1, hears=hears, is_callers=False)

    def _deadline(self) -> float:
        return self._clock() + self._limits.request_timeout_seconds

    def _meter(self, meter: Meter, sink: Sink, event: Event) -> None:
        meter.observe(event, self._clock())
        sink(event)

    def _ask_for_more(self, request_id: str, sink: Sink, event: Event) -> None:
        """Passes an event of a sound on; when a window is in words, one more may be sent."""
        if isinstance(event, TextAdded) and event.heard is not None:
            reader = self._ledger.tokenizer_of(request_id)
            if reader is not None:
                said = () if is_silent(event.heard) else event.tokens
                token_ids = tuple(token.token_id for token in said)
                taken = WindowTaken(request_id, token_ids, event.heard.last_temperature)
                self._mailbox.send(reader.room, taken)
        sink(event)


def numbered(name: str, count: int) -> tuple[str, ...]:
    """A name for each prompt of a request; with one prompt, the request's own."""
    return (name,) if count == 1 else tuple(f"{name}-{number}" for number in range(count))
