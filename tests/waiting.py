"""Waiting for a condition, never for a time."""

import time
from collections.abc import Callable
from typing import Any

POLL_SECONDS = 0.01


def wait_until(condition: Callable[[], Any], timeout_seconds: float) -> None:
    """Returns as soon as the condition holds; raises TimeoutError when it never does."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not true after {timeout_seconds} s")
        time.sleep(POLL_SECONDS)
