"""Refuses a request that was under way at two deaths: it may be what kills. Pure: time comes in.

A client that tries again would otherwise kill one life of a process after the other. Requests are
known by a digest of all that shapes their answer but the seed.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import orjson

from frontend.life import Life
from frontend.submission import Embedding, Submission, Transcription, Wanted
from shared.errors import BadRequest
from shared.parts import Prompt

MAX_DEATHS = 2
QUARANTINE_SECONDS = 600.0
_KNOWN_BYTES = 2**20  # of a sound, by which it is known beside its length


class Quarantine:
    """The digests of requests that were under way when a process died, and how often."""

    def __init__(self) -> None:
        self._deaths: dict[bytes, dict[Life, float]] = {}  # who died in it, and when

    def note_death(self, life: Life, digests: Iterable[bytes], now: float) -> None:
        """One process died while these requests were in it; a second word of it counts once."""
        self._forget_before(now - QUARANTINE_SECONDS)
        for digest in digests:
            self._deaths.setdefault(digest, {})[life] = now

    def check(self, digests: Iterable[bytes], now: float) -> None:
        """Raises BadRequest if one of them has been there too often."""
        if not self._deaths:
            return
        self._forget_before(now - QUARANTINE_SECONDS)
        if any(len(self._deaths.get(digest, ())) >= MAX_DEATHS for digest in digests):
            raise BadRequest(
                f"A process of the server died {MAX_DEATHS} times while it worked on this request,"
                f" so it is refused for {QUARANTINE_SECONDS / 60:.0f} minutes."
            )

    def _forget_before(self, oldest: float) -> None:
        recent = {
            digest: {life: at for life, at in deaths.items() if at > oldest}
            for digest, deaths in self._deaths.items()
        }
        self._deaths = {digest: deaths for digest, deaths in recent.items() if deaths}


def digests_of(wanted: Wanted) -> list[bytes]:
    """What a request is known by: one digest for each prompt, one for a sound or for all inputs."""
    if isinstance(wanted, Transcription):
        settings = orjson.dumps([wanted.options, replace(wanted.sampling, seed=0)])
        known = settings + len(wanted.audio).to_bytes(8) + wanted.audio[:_KNOWN_BYTES]
        return [hashlib.sha256(known).digest()]
    if isinstance(wanted, Embedding):
        return [hashlib.sha256(orjson.dumps([wanted.inputs, wanted.dimensions])).digest()]
    return [_digest_of(prompt, wanted) for prompt in wanted.prompts]


def _digest_of(prompt: Prompt, wanted: Submission) -> bytes:
    settings = replace(wanted.sampling, seed=0)
    parts = [prompt, wanted.max_tokens, wanted.echo, wanted.text, settings, wanted.num_choices]
    return hashlib.sha256(orjson.dumps(parts)).digest()
