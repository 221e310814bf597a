"""Model directories for end-to-end tests: random weights behind the demo model's tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

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


def copy_demo(directory: Path, **generation_config: Any) -> Path:
    """The demo model, whose makers recommend this sampling."""
    shutil.copytree(DEMO_DIRECTORY, directory, dirs_exist_ok=True)
    path = directory / "generation_config.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(stated | generation_config), encoding="utf-8")
    return directory
