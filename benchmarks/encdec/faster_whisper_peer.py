"""faster-whisper's engine, CTranslate2, answering one line a turn on its standard streams.

Run by a Python of its own, which has ctranslate2, transformers and torch; it imports nothing of
this project. A line asks for so many windows, the answer says how long they took and what was said.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def convert(checkpoint: Path, target: Path) -> None:
    """The checkpoint in CTranslate2's format, in float32."""
    converters: Any = importlib.import_module("ctranslate2.converters")
    converters.TransformersConverter(str(checkpoint)).convert(str(target), force=True)


class Peer:
    """One model in one precision."""

    def __init__(self, asked: dict[str, Any]) -> None:
        engine: Any = importlib.import_module("ctranslate2")
        self._storage = engine.StorageView.from_array
        self._model = engine.models.Whisper(
            asked["model"], compute_type=asked["compute_type"], intra_threads=asked["threads"]
        )
        self._features = np.load(asked["features"])  # [windows, bins, frames]
        self._asked = asked

    def answer(self, num_windows: int) -> dict[str, Any]:
        """Greedy, with the rules of timestamps and with what faster-whisper asks to be told."""
        start = time.perf_counter()
        results = self._model.generate(
            self._storage(np.ascontiguousarray(self._features[:num_windows])),
            [self._asked["prompt"]] * num_windows,
            beam_size=1,
            max_length=2 * self._asked["num_tokens"],  # half of it is the answer's, by design
            suppress_tokens=self._asked["suppressed"],
            suppress_blank=True,
            max_initial_timestamp_index=self._asked["max_first_time"],
            return_scores=True,
            return_no_speech_prob=True,
        )
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "token_ids": [r.sequences_ids[0] for r in results]}


def main() -> None:
    """The first line says what to load; every other is a number of windows."""
    asked = json.loads(sys.stdin.readline())
    target = Path(asked["model"])
    if not target.exists():
        convert(Path(asked["checkpoint"]), target)
    peer = Peer(asked)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(peer.answer(int(line))), flush=True)


if __name__ == "__main__":
    main()
