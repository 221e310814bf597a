"""Why a request may not come in now, if so: each kind of request has limits of its own."""

from frontend.admission import Admission, Limits
from frontend.health import Health, Problem
from frontend.ledger import Ledger
from frontend.occupancy import Occupancy
from shared.errors import ErrorCode, RequestError
from shared.mailbox import Mailbox


class Door:
    """Looks at all that can keep a request out, before anything is done for it."""

    def __init__(
        self,
        mailbox: Mailbox,
        health: Health,
        ledger: Ledger,
        admission: Admission,
        occupancy: Occupancy,
        limits: Limits,
    ) -> None:
        self._mailbox = mailbox
        self._health = health
        self._ledger = ledger
        self._admission = admission
        self._occupancy = occupancy
        self._most_lookups = limits.max_concurrent
        self._most_embeddings = max(1, limits.max_concurrent // 2)

    def answers_problem(self, num_answers: int) -> Problem | None:
        """Why a request for so many answers may neither start nor wait."""
        problem = self._open_problem()
        if problem is not None:
            return problem
        error = self._admission.refusal(num_answers)
        return None if error is None else Problem("full", error)

    def lookup_problem(self) -> Problem | None:
        """Why a tokenizer may not be asked for one more text."""
        problem = self._open_problem()
        num_lookups = self._ledger.num_lookups + self._occupancy.elsewhere("lookups")
        if problem is not None or num_lookups < self._most_lookups:
            return problem
        return _full(f"The server looks up at most {self._most_lookups} texts at a time.")

    def embedding_problem(self) -> Problem | None:
        """Why embeddings may not take one more of the places for which answers wait as well."""
        num_embeddings = self._ledger.num_embeddings + self._occupancy.elsewhere("embeddings")
        if num_embeddings < self._most_embeddings:
            return None
        most = self._most_embeddings
        return _full(f"The server works on at most {most} requests for embeddings at a time.")

    def _open_problem(self) -> Problem | None:
        if self._mailbox.stop is not None:
            error = RequestError(ErrorCode.SHUTTING_DOWN, "The server is shutting down.")
            return Problem("stopping", error)
        if self._mailbox.is_draining:
            sentence = "The server is shutting down and lets nobody in any more."
            return Problem("draining", RequestError(ErrorCode.SHUTTING_DOWN, sentence))
        return self._health.missing()


def _full(sentence: str) -> Problem:
    return Problem("full", RequestError(ErrorCode.QUEUE_FULL, sentence))
