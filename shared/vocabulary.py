"""Where the tokenizer leaves its vocabulary for the detokenizer, which loads no checkpoint."""

from pathlib import Path


def vocabulary_path(run_directory: str) -> Path:
    """The run's `tokenizer.json`, as the `tokenizers` library writes and reads it."""
    return Path(run_directory) / "tokenizer.json"
