"""What a formula server is told beside the launcher's flags, and how its rooms learn of it."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

FILE_NAME = "formula.json"  # in the run directory


@dataclass(frozen=True)
class FormulaSettings:
    """The formula's own switches."""

    step_ms: float = 0.0  # a step takes at least this long
    end_probability: float = 0.0  # that a token is the end token
    text: str = "plain"  # which tokens are said: see `alphabet.py`
    num_blocks: int = 0  # of the pool; 0: enough for every row
    record: str = ""  # directory for what the rooms measure of themselves; empty: nothing

    def save(self, run_directory: str) -> None:
        """Leaves the settings where the rooms find them."""
        (Path(run_directory) / FILE_NAME).write_bytes(msgspec.json.encode(self))


def load_settings(run_directory: str) -> FormulaSettings:
    """What the server's launcher has saved."""
    saved = (Path(run_directory) / FILE_NAME).read_bytes()
    return msgspec.json.decode(saved, type=FormulaSettings)
