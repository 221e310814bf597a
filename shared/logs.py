"""One logging set-up for every room: level, process name, message."""

import logging
import sys


def set_up(room: str, level: str) -> None:
    """Sends this process's log to standard error; third-party chatter starts at WARNING."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s {room} %(message)s", "%m-%d %H:%M:%S")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # Its own handler would say everything twice, and each failed try is no news: the end is.
    logging.getLogger("huggingface_hub").handlers.clear()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    for ours in ("frontend", "gpu_worker", "launcher", "scheduler", "shared", "tokenizer_proc"):
        logging.getLogger(ours).setLevel(level)
