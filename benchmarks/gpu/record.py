"""The record of a run: one row a measurement, on disk after every row, whatever happens next.

A row that this machine cannot measure says why; one that breaks holds its error, and the run goes
on. Rows measured before on the same commit and device stay, so that stages can be run one by one.
"""

import json
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Values = dict[str, Any]
_KEPT_FROM_BEFORE = ("commit", "device", "torch", "transformers")


class Unavailable(Exception):
    """Raised by a measurement that this machine, or this version, cannot make; says why."""


class Wrong(Exception):
    """Raised by a check that failed: the numbers of such a build mean nothing."""


@dataclass(frozen=True)
class Row:
    """One measurement: its name, and what makes it."""

    name: str
    measure: Callable[[], Values]


@dataclass(frozen=True)
class Stage:
    """Measurements that share what they are made on, which is made by the first that needs it."""

    name: str
    seconds: float  # rows that would begin later are left out
    rows: Callable[[], Sequence[Row]]


class Record:
    """The JSON file of a run."""

    def __init__(self, path: Path, facts: Values) -> None:
        self._path = path
        self._facts = facts
        self.rows: list[Values] = _earlier_rows(path, facts)

    def run(self, stage: Stage) -> None:
        """Measures every row of a stage that its time allows."""
        start = time.monotonic()
        for row in stage.rows():
            begun = time.monotonic()
            if begun - start > stage.seconds:
                self.add(stage.name, row.name, {"skipped": f"after {stage.seconds:.0f} s"})
                continue
            values = _outcome(row.measure)
            took = round(time.monotonic() - begun, 3)
            self.add(stage.name, row.name, {**values, "took_seconds": took})

    def add(self, stage: str, row: str, values: Values) -> None:
        """Puts a row in the place of an earlier one of its name, and on disk."""
        self.rows = [old for old in self.rows if (old["stage"], old["row"]) != (stage, row)]
        self.rows.append({"stage": stage, "row": row, **values})
        print(_line(self.rows[-1]), flush=True)
        self._write()

    @property
    def has_failed(self) -> bool:
        """True when a check failed or a row broke."""
        return any("error" in row or "wrong" in row for row in self.rows)

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self._facts, "rows": self.rows}, indent=1)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=self._path.parent, suffix=".part", delete=False
        ) as file:
            file.write(text + "\n")
        Path(file.name).replace(self._path)


def _outcome(measure: Callable[[], Values]) -> Values:
    """What was measured, or why it was not."""
    try:
        return measure()
    except Unavailable as reason:
        return {"skipped": str(reason)}
    except Wrong as difference:
        return {"wrong": str(difference)}
    except Exception as error:  # noqa: BLE001 — recorded: the next row may still be measured
        traceback.print_exc(limit=-3)
        return {"error": f"{type(error).__name__}: {str(error)[:2000]}"}


def _earlier_rows(path: Path, facts: Values) -> list[Values]:
    if not path.exists():
        return []
    earlier: Values = json.loads(path.read_text(encoding="utf-8"))
    if any(earlier.get(name) != facts.get(name) for name in _KEPT_FROM_BEFORE):
        return []
    rows: list[Values] = earlier["rows"]
    return rows


def _line(row: Values) -> str:
    """A row for people."""
    values = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if name not in ("stage", "row")
    ]
    return f"{row['stage']:9} {row['row']:36} {'  '.join(values)}"
