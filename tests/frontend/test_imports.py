"""The frontend's process stays light: a fresh interpreter shows what it loads."""

import subprocess
import sys
from pathlib import Path

FOREIGN = {
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "scheduler",
    "gpu_worker",
    "tokenizer_proc",
}


def test_the_frontend_loads_no_model_library() -> None:
    script = "import sys, frontend.server; print(*{name.partition('.')[0] for name in sys.modules})"
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert not FOREIGN & set(found.stdout.split())
