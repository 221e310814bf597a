"""Which rooms are yet to be asked for a first token, and what came of those that were. Pure."""

import functools
import logging
import uuid
from collections.abc import Callable, Collection

from frontend.events import Event, Failed, Finished
from frontend.life import Life
from shared.errors import ErrorCode, FatalError, RequestError

logger = logging.getLogger(__name__)


class WarmUp:
    """One token through the worker and each detokenizer, in each of their lives.

    `tell` is called with the epochs that a token has come through, by room, until it returns True.
    """

    def __init__(self, tell: Callable[[dict[str, int]], bool]) -> None:
        self._tell = tell
        self._untold: list[dict[str, int]] = []
        self._worker: Life | None = None
        self._asked: set[Life] = set()  # detokenizers, for a token from this worker
        self._is_warm = False  # when the last tokens were asked for
        self._error: RequestError | None = None

    def due(
        self, worker: Life, detokenizers: Collection[Life], *, is_warm: bool
    ) -> list[tuple[str, Life]]:
        """The detokenizers that a token should come through now, each with a request's name.

        Where the server is warm already, those that came later: none with a worker that is new to
        this frontend, none that is alone.
        """
        is_known = worker == self._worker
        self._worker, self._is_warm = worker, is_warm
        if is_warm and (not is_known or len(detokenizers) == 1):
            self._asked = set(detokenizers)
        elif not is_known:
            self._asked = set()
        new = [detokenizer for detokenizer in detokenizers if detokenizer not in self._asked]
        self._asked = set(detokenizers)
        return [(f"warm-up-{uuid.uuid4().hex}", detokenizer) for detokenizer in new]

    def check(self) -> None:
        """Tells what is to be told; FatalError if the model has failed at its first token."""
        self._untold = [epochs for epochs in self._untold if not self._tell(epochs)]
        if self._error is not None:
            raise FatalError(f"the model could not say its first token: {self._error.message}")

    def sink(self, worker: Life, detokenizer: Life) -> Callable[[Event], None]:
        """Takes the events of one of the requests."""
        return functools.partial(self._take, worker, detokenizer)

    def _take(self, worker: Life, detokenizer: Life, event: Event) -> None:
        match event:
            case Finished():
                self._untold.append({life.room: life.epoch for life in (worker, detokenizer)})
            case Failed(error) if error.code in (ErrorCode.ENGINE_DEAD, ErrorCode.SHUTTING_DOWN):
                self._asked.discard(detokenizer)  # the next lives get their own
            case Failed(error) if self._is_warm:  # others have had answers from this model
                logger.warning(
                    "%s has not had its first token: %s", detokenizer.room, error.message
                )
            case Failed(error):
                self._error = error
            case _:
                pass  # the token itself
