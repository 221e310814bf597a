"""Every open request: who works on it, how far it is, when it must end. Pure: time comes in.

    queued ──► admitted ──► tokenising ──► running ──► ended
       └───────────┴────────────┴──────────────┴─────────▲

A request has one outcome, told once to its sink by `_end`, which also forgets the request. Text may
overtake the acceptance, because two rooms send them: it waits in `Entry.early`. ZeroMQ promises no
delivery, so the ledger does: a dead owner, a gap or the deadline ends a request.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

from frontend.entry import Abandoned, Entry, Row, State
from frontend.events import (
    Aborted,
    Accepted,
    Failed,
    Finished,
    Outcome,
    PromptRead,
    TextAdded,
    TextFound,
    TokensFound,
    VectorsFound,
    WindowStarted,
)
from frontend.life import Life
from shared.errors import ErrorCode, RequestError
from shared.messages import PromptAccepted, SoundRead, TextProduced, WindowRead
from shared.parts import (
    TextEnded,
)
from shared.windows import sound_of


def _timeout(sentence: str) -> RequestError:
    return RequestError(ErrorCode.TIMEOUT, sentence)


def _lost() -> RequestError:
    return RequestError(ErrorCode.INTERNAL, "The server lost a part of the answer.")


class Ledger:
    """The open requests by id, and how many answers wait for a place or hold one."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self.num_queued = 0  # answers that wait for a place
        self.num_under_way = 0  # answers that hold one, until their request has ended
        self.num_given_back = 0  # places so far
        self.num_lookups = 0  # open requests that a tokenizer alone answers
        self.num_embeddings = 0  # open requests for vectors
        self.num_changes = 0  # of any of these numbers so far

    def __len__(self) -> int:
        return len(self._entries)

    def open(self, entry: Entry) -> None:
        """Adds a request that waits for places; its sink will get exactly one outcome."""
        if entry.request_id in self._entries:
            raise RuntimeError(f"{entry.request_id} is open already")
        self._entries[entry.request_id] = entry
        self.num_changes += 1
        self.num_queued += entry.num_places
        self.num_lookups += entry.num_choices == 0
        self.num_embeddings += entry.wants_vectors

    def admit(
        self,
        request_id: str,
        worker: Life | None,
        detokenizer: Life | None,
        first_token_deadline: float = math.inf,
    ) -> bool:
        """Gives a request its places; false if it has ended meanwhile."""
        entry = self._entries.get(request_id)
        if entry is None:
            return False
        entry.move(State.ADMITTED)
        entry.first_token_deadline = first_token_deadline
        entry.worker, entry.detokenizer = worker, detokenizer
        self.num_changes += 1
        self.num_queued -= entry.num_places
        self.num_under_way += entry.num_places
        return True

    def start_tokenising(self, request_id: str, tokenizer: Life) -> None:
        """Notes that this tokenizer owns the request until it accepts or fails it."""
        entry = self._entries[request_id]
        entry.move(State.TOKENISING)
        entry.tokenizer = tokenizer

    def accept(self, accepted: PromptAccepted) -> list[Abandoned]:
        """Takes the tokenizer's word, and then the text that overtook it."""
        entry = self._entries.get(accepted.request_id)
        if entry is None:
            return []
        if entry.state is not State.TOKENISING or entry.worker is None:
            return self._abandon([entry], _lost())
        entry.move(State.RUNNING)
        entry.passed_on_by, entry.tokenizer = entry.tokenizer, None
        entry.sink(Accepted(accepted.prompt_tokens, accepted.prompt_text))
        if entry.early_vectors is not None:
            self._end(entry, entry.early_vectors)
            return []
        early, entry.early = entry.early, []
        return self._take_rows((entry.request_id, row) for row in early)

    def read_sound(self, read: WindowRead | SoundRead) -> list[Abandoned]:
        """Takes the tokenizer's word of a sound's next window, or that no further one will come.

        A window's first text may have overtaken it.
        """
        entry = self._entries.get(read.request_id)
        if entry is None:
            return []
        if entry.state is not State.TOKENISING or not entry.hears:
            return self._abandon([entry], _lost())
        if isinstance(read, WindowRead):
            _add_window(entry, read)
        else:
            entry.is_read = True
            entry.move(State.RUNNING)
            entry.passed_on_by, entry.tokenizer = entry.tokenizer, None
            self._end_if_over(entry)
        return []

    def tokenizer_of(self, request_id: str) -> Life | None:
        """Who reads the sound of this request, if anybody does."""
        entry = self._entries.get(request_id)
        return entry.tokenizer if entry is not None else None

    def add_text(self, produced: TextProduced) -> list[Abandoned]:
        """Takes one step's text; a row of another worker's life or a gap ends its request.

        A worker that goes on with a request that is not open is owed an `Abort` as well: it may
        have forgotten an earlier one.
        """
        return self._take_rows(_rows(produced))

    def add_vectors(self, request_id: str, worker: Life, found: VectorsFound) -> list[Abandoned]:
        """Ends a request with its vectors, which may overtake the tokenizer's word."""
        entry = self._entries.get(request_id)
        if entry is None:
            return []
        if worker != entry.worker or entry.state not in (State.TOKENISING, State.RUNNING):
            return self._abandon([entry], _lost())
        if entry.state is State.TOKENISING:
            entry.early_vectors = found
        else:
            self._end(entry, found)
        return []

    def answer_lookup(self, request_id: str, found: TokensFound | TextFound) -> None:
        """Ends a request that its tokenizer has answered alone."""
        entry = self._entries.get(request_id)
        if entry is not None:
            is_answer = entry.num_choices == 0 and entry.state is State.TOKENISING
            self._end(entry, found if is_answer else Failed(_lost()))

    def fail(self, request_id: str, error: RequestError) -> list[Abandoned]:
        """Ends a request that its room gave up; others work on the rest of a sound."""
        entry = self._entries.get(request_id)
        if entry is None:
            return []
        rest = entry.abandoned() if entry.hears else []
        self._end(entry, Failed(error))
        return rest

    def abort(self, request_id: str) -> list[Abandoned]:
        """Ends a request whose caller left."""
        entry = self._entries.get(request_id)
        if entry is None:
            return []
        abandoned = entry.abandoned()
        self._end(entry, Aborted())
        return abandoned

    def expire(self, now: float) -> list[Abandoned]:
        """Ends every request whose deadline has passed."""
        entries = self._entries.values()
        late = [entry for entry in entries if entry.deadline <= now]
        silent = [e for e in entries if e.first_token_deadline <= now < e.deadline]
        return [
            *self._abandon(late, _timeout("The request took longer than the server allows.")),
            *self._abandon(silent, _timeout("The first token took longer than the server allows.")),
        ]

    def silent_from(self, tokenizer: Life) -> dict[tuple[Life, Life | None], list[str]]:
        """The requests that it passed on and of which nothing has been heard yet.

        By the worker and the detokenizer that they go through.
        """
        silent: dict[tuple[Life, Life | None], list[str]] = {}
        for entry in self._entries.values():
            if entry.passed_on_by == tokenizer and entry.worker is not None:
                way = (entry.worker, entry.detokenizer)
                silent.setdefault(way, []).extend(entry.silent_names())
        return silent

    def digests_in(self, life: Life) -> list[bytes]:
        """The requests that this life was working on, as the quarantine knows them."""
        return [e.digest for e in self._entries.values() if life in e.workers() and e.digest]

    def fail_owned_by(self, life: Life, error: RequestError) -> list[Abandoned]:
        """Ends every request that this life owned."""
        owned = [entry for entry in self._entries.values() if life in entry.owners()]
        return [
            Abandoned(orphan.request_id, tuple(r for r in orphan.rooms if r != life.room))
            for orphan in self._abandon(owned, error)
        ]

    def fail_all(self, error: RequestError) -> list[Abandoned]:
        """Ends every request."""
        return self._abandon(list(self._entries.values()), error)

    def _take_rows(self, rows: Iterable[tuple[str, Row]]) -> list[Abandoned]:
        abandoned: dict[str, Abandoned] = {}  # by name: each is told once
        for request_id, row in rows:
            entry = self._entries.get(request_id)
            if entry is not None:
                for orphan in self._take_row(entry, row):
                    abandoned[orphan.request_id] = orphan
            elif row.end is None:
                abandoned.setdefault(row.name, Abandoned(row.name, (row.worker.room,)))
        return list(abandoned.values())

    def _take_row(self, entry: Entry, row: Row) -> Sequence[Abandoned]:
        is_under_way = entry.state is State.RUNNING
        if entry.state is State.TOKENISING:
            if not entry.hears:
                entry.early.append(row)
                return ()
            is_under_way = True
            entry.open_window(row.added.choice)
        if not is_under_way or not entry.counts(row):
            return self._abandon([entry], _lost())
        if entry.first_token_deadline < math.inf:  # the first text
            entry.first_token_deadline = math.inf
            entry.passed_on_by = entry.passed_on_by if entry.hears else None
        if row.prompt:
            entry.sink(PromptRead(row.prompt))
        entry.sink(row.added)
        if row.end is not None:
            self._end_answer(entry, row.added, row.end)
        return ()

    def _end_answer(self, entry: Entry, last: TextAdded, end: TextEnded) -> None:
        del entry.next_seqs[last.choice]
        entry.completion_tokens += last.completion_tokens
        entry.reasoning_tokens += end.reasoning_tokens
        self._end_if_over(entry, end.cached_tokens)

    def _end_if_over(self, entry: Entry, cached_tokens: int = 0) -> None:
        if not entry.next_seqs and (entry.is_read or not entry.hears):
            tokens = entry.completion_tokens
            self._end(entry, Finished(tokens, cached_tokens, entry.reasoning_tokens))

    def _abandon(self, entries: list[Entry], error: RequestError) -> list[Abandoned]:
        abandoned = [orphan for entry in entries for orphan in entry.abandoned()]
        for entry in entries:
            self._end(entry, Failed(error))
        return abandoned

    def _end(self, entry: Entry, outcome: Outcome) -> None:
        if entry.state is State.QUEUED:
            self.num_queued -= entry.num_places
        else:
            self.num_under_way -= entry.num_places
            self.num_given_back += entry.num_places
        self.num_changes += 1
        self.num_lookups -= entry.num_choices == 0
        self.num_embeddings -= entry.wants_vectors
        entry.move(State.ENDED)
        del self._entries[entry.request_id]
        entry.sink(outcome)


def _add_window(entry: Entry, read: WindowRead) -> None:
    if read.number == 0:
        entry.sink(Accepted(0))
        entry.first_token_deadline = math.inf  # a window's words come with its end
    entry.open_window(read.number)
    started = WindowStarted(
        read.number, read.start_seconds, read.seconds, read.first_time_id, read.mark_seconds
    )
    entry.sink(started)


def _rows(produced: TextProduced) -> Iterator[tuple[str, Row]]:
    worker = Life(f"worker-{produced.worker_id}", produced.epoch)
    ends = {(end.request_id, end.choice): end for end in produced.ended}
    prompts = {scored.request_id: scored.tokens for scored in produced.prompts}
    columns = zip(
        produced.request_ids,
        produced.choices,
        produced.seqs,
        produced.texts,
        produced.completion_tokens,
        produced.scored or ((),) * len(produced.texts),
        produced.thoughts or ("",) * len(produced.texts),
        strict=True,
    )
    for name, number, seq, text, num_tokens, tokens, thoughts in columns:
        end = ends.get((name, number)) if ends else None
        reason = end.finish_reason if end else None
        stop_reason = end.stop_reason if end else None
        request_id, window = sound_of(name)
        choice = number + window  # a window is one answer
        heard = end.heard if end else None
        added = TextAdded(choice, text, num_tokens, reason, stop_reason, tokens, thoughts, heard)
        prompt = prompts.pop(name, ()) if prompts else ()
        yield request_id, Row(name, worker, seq, added, prompt, end)
