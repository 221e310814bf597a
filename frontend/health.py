"""Whether the rooms behind can answer: loading, stalled, dead, or fine. Pure: time comes in."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from frontend.life import Life
from shared.errors import ErrorCode, RequestError
from shared.messages import WorkerReported
from shared.parts import (
    Peer,
)

NEEDED_KINDS = ("worker", "tokenizer", "detokenizer")


@dataclass(frozen=True)
class Problem:
    """Why the service cannot answer, for probes and for callers."""

    status: str  # "loading", "stalled", "dead", "draining", "stopping" or "full"
    error: RequestError


class Health:
    """What the address books and the worker's reports say about the rooms behind."""

    def __init__(self, stall_timeout_seconds: float) -> None:
        self._stall_timeout_seconds = stall_timeout_seconds
        self._kinds_seen: set[str] = set()  # ready at least once: gone means dead, not loading
        self._kinds_ready: set[str] = set()
        self._kinds_present: set[str] = set()
        self._is_warm = False
        self._stages: tuple[str, ...] = ()  # of the rooms that start
        self._worker: Life | None = None
        self._step = -1
        self._moved_at = 0.0  # when the worker last finished a step or was idle

    def note_peers(self, peers: Mapping[str, Peer], now: float, *, is_warm: bool) -> None:
        """Takes a new address book."""
        self._is_warm = is_warm
        self._stages = tuple(f"{p.room}: {p.stage}" for p in peers.values() if not p.is_ready)
        self._kinds_present = _kinds(peers.values())
        self._kinds_ready = _kinds([peer for peer in peers.values() if peer.is_ready])
        self._kinds_seen |= self._kinds_ready
        workers = [
            Life(p.room, p.epoch) for p in peers.values() if p.is_ready and _kind(p) == "worker"
        ]
        worker = workers[0] if workers else None
        if worker != self._worker:
            self._worker, self._step, self._moved_at = worker, -1, now

    def note_report(self, report: WorkerReported, now: float) -> None:
        """Takes a worker's report; a report of another life is stale."""
        if self._worker != Life(f"worker-{report.worker_id}", report.epoch):
            return
        if report.num_running == 0 or report.step != self._step:
            self._moved_at = now
        self._step = report.step

    @property
    def is_complete(self) -> bool:
        """True when every kind of room has one that is ready."""
        return self._kinds_ready.issuperset(NEEDED_KINDS)

    def missing(self) -> Problem | None:
        """Loading or dead: a kind of room has none that is ready, or no answer came through yet."""
        for kind in NEEDED_KINDS:
            if kind not in self._kinds_ready:
                is_dead = kind in self._kinds_seen and kind not in self._kinds_present
                return _dead(kind) if is_dead else self._loading()
        return None if self._is_warm else _problem_of_loading("warming up")

    def problem(self, now: float) -> Problem | None:
        """`missing`, or stalled: no finished step and no idle report for the stall timeout."""
        missing = self.missing()
        if missing is None and now - self._moved_at > self._stall_timeout_seconds:
            sentence = "The model has stopped making progress."
            return Problem("stalled", RequestError(ErrorCode.ENGINE_DEAD, sentence))
        return missing

    def _loading(self) -> Problem:
        return _problem_of_loading("; ".join(self._stages))


def _kind(peer: Peer) -> str:
    return peer.room.rpartition("-")[0]


def _kinds(peers: Collection[Peer]) -> set[str]:
    return {_kind(peer) for peer in peers}


def _problem_of_loading(stage: str) -> Problem:
    sentence = f"The model is loading ({stage})." if stage else "The model is loading."
    return Problem("loading", RequestError(ErrorCode.MODEL_LOADING, sentence))


def _dead(kind: str) -> Problem:
    sentence = f"The {kind} process has died and is being replaced."
    return Problem("dead", RequestError(ErrorCode.ENGINE_DEAD, sentence))
