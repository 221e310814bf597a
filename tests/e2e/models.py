"""Model directories for end-to-end tests: random weights behind the demo model's tokenizer."""

import shutil
from pathlib import Path

from tests.builders import make_model
from tests.e2e.server import ROOT

DEMO_DIRECTORY = ROOT / "demo" / "chat"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def save_endless_model(directory: Path, num_vocabulary: int) -> Path:
    """A random model without an end token: every answer runs to its length."""
    model = make_model(
        "llama", vocab_size=num_vocabulary, max_position_embeddings=4096, eos_token_id=None
    )
    model.generation_config.eos_token_id = None
    model.save_pretrained(directory)
    for name in TOKENIZER_FILES:
        if (DEMO_DIRECTORY / name).exists():
            shutil.copy(DEMO_DIRECTORY / name, directory / name)
    return directory
