"""The child's side of the contract with the launcher: life, signals, title, last words.

Started as `python -P -m shared.process ROOM_CONFIG.json`; the file names the room, its settings and
its launcher. A room dies with its launcher (prctl(2), PR_SET_PDEATHSIG) and ignores SIGINT,
SIGTERM, SIGHUP and SIGUSR2: only the launcher's `Stop` ends it, so that rooms end in order.
"""

import faulthandler
import importlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shared import logs
from shared.child import name_process, settle
from shared.config import (
    DetokenizerConfig,
    FrontendConfig,
    Identity,
    TokenizerConfig,
    WorkerConfig,
)
from shared.errors import EXIT_FAILED, FatalError
from shared.mailbox import Mailbox

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoomKind:
    """Where a kind of room starts and what it is told."""

    entry: str  # "module:function", called with (config, mailbox)
    config_class: type


ROOM_KINDS = {
    "frontend": RoomKind("frontend.server:run", FrontendConfig),
    "tokenizer": RoomKind("tokenizer_proc.tokenizer:run", TokenizerConfig),
    "detokenizer": RoomKind("tokenizer_proc.detokenizer:run", DetokenizerConfig),
    "worker": RoomKind("gpu_worker.worker:run", WorkerConfig),
}


@dataclass(frozen=True)
class ChildProcess:
    """What a room's config file holds."""

    launcher_pid: int
    loglevel: str
    log_format: str
    kind: str
    config: dict[str, Any]  # the fields of the kind's config class


def main(config_path: str) -> int:
    """Runs one room to its end and returns the exit status."""
    child = msgspec.json.decode(Path(config_path).read_bytes(), type=ChildProcess)
    settle(child.launcher_pid)
    kind = ROOM_KINDS[child.kind]
    config: Any = msgspec.convert(child.config, kind.config_class)
    identity: Identity = config.identity
    faulthandler.enable()  # the stack goes to the log at a crash, or when the launcher aborts us
    name_process(identity.room)
    logs.set_up(identity.room, child.loglevel, child.log_format)
    _hide_hqq()
    return _run(kind.entry, config)


def last_words_path(identity: Identity) -> Path:
    """Where a room that fails leaves its reason; a file, because a dying socket loses messages."""
    return Path(identity.run_directory) / f"{identity.room}.{identity.epoch}.failed"


def _run(entry: str, config: Any) -> int:
    last_words = last_words_path(config.identity)
    try:
        mailbox = Mailbox(config.identity)
        mailbox.join()
        _resolve(entry)(config, mailbox)
    except FatalError as error:
        last_words.write_text(str(error))
        return error.exit_status
    except Exception as error:  # the room's boundary: last words, then exit
        logger.exception("the room failed")
        last_words.write_text(f"{type(error).__name__}: {error}")
        return EXIT_FAILED
    return 0


def _resolve(entry: str) -> Callable[[Any, Mailbox], None]:
    module, _, function = entry.partition(":")
    run: Callable[[Any, Mailbox], None] = getattr(importlib.import_module(module), function)
    return run


def _hide_hqq() -> None:
    """Lets transformers not find hqq, which it would import in each start for a cache of its own.

    hqq brings torch's compiler, a fifth of all that the worker and the tokenizer import.
    """
    sys.modules["hqq"] = None  # type: ignore[assignment]  # as import_module() wants it said


if __name__ == "__main__":
    status = main(sys.argv[1])
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)  # tearing down torch takes seconds that the launcher would wait for
