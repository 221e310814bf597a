"""Requests for vectors that the worker holds: each is answered once, when its last vector is there.

They go to the frontend directly, because they are no text.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from gpu_worker.pooling import shortened
from scheduler.outcome import SampledToken
from shared.errors import ErrorCode
from shared.messages import Message, Pool, Pooled, RequestFailed


@dataclass
class _Open:
    """One request."""

    frontend_id: int
    num_inputs: int
    dimensions: int
    vectors: dict[int, bytes] = field(default_factory=dict)  # by input


class PooledRequests:
    """The open requests for vectors; `send` takes a room and a message."""

    def __init__(self, worker_id: int, epoch: int, send: Callable[[str, Message], bool]) -> None:
        self._worker_id = worker_id
        self._epoch = epoch
        self._send = send
        self._open: dict[str, _Open] = {}

    def open(self, message: Pool) -> None:
        """Notes a request whose sequences are scheduled."""
        self._open[message.request_id] = _Open(
            message.route.frontend_id, len(message.inputs), message.dimensions
        )

    def drop(self, request_id: str) -> bool:
        """Forgets a request that nobody waits for any more; false if it is none of these."""
        return self._open.pop(request_id, None) is not None

    def take(self, output: SampledToken) -> bool:
        """Takes one input's vector; true when the request has ended with it, or with its failure.

        Then whatever of the request is still scheduled is for nobody.
        """
        request_id = output.sequence.request_id
        entry = self._open.get(request_id)
        if entry is None:
            return False
        if output.vector is None:
            sentence = "The model could not compute one of the vectors."
            self._end(request_id, RequestFailed(request_id, ErrorCode.INTERNAL, sentence, None))
            return True
        entry.vectors[output.sequence.choice] = output.vector
        if len(entry.vectors) < entry.num_inputs:
            return False
        vectors = b"".join(entry.vectors[number] for number in range(entry.num_inputs))
        shown = shortened(vectors, len(output.vector) // 4, entry.dimensions)
        self._end(request_id, Pooled(request_id, self._worker_id, self._epoch, shown))
        return True

    def _end(self, request_id: str, outcome: Message) -> None:
        entry = self._open.pop(request_id)
        self._send(f"frontend-{entry.frontend_id}", outcome)
