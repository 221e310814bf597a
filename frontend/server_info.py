"""What `/server_info` tells: model, limits and flags, for people and their scripts. Pure."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frontend.service import Service
from frontend.version import VERSION
from shared.config import is_local_path


def server_info(service: Service) -> dict[str, Any]:
    """Everything that the frontend knows of itself and its model, but no secret and no path."""
    facts = service.engine.model()
    return {
        "version": VERSION,
        "model": service.model.name,
        "aliases": sorted(service.model.aliases),
        "max_model_len": facts.max_model_len if facts else None,
        "sampling_defaults": facts.sampling_defaults if facts else {},
        "details": facts.details if facts else {},
        "limits": {
            "max_choices": service.max_choices,
            "max_concurrent": service.config.max_concurrent,
            "max_queue": service.config.max_queue,
            "queue_timeout_seconds": service.config.queue_timeout,
            "request_timeout_seconds": service.config.request_timeout,
        },
        "needs_api_key": bool(service.config.api_keys),
        "flags": dict(_flags(service.config)),
    }


def _flags(config: Any) -> Iterator[tuple[str, Any]]:
    """The flags that this room was started with, and of a local path its last part."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "help" in field.metadata and not field.metadata["is_secret"]:
            is_path = isinstance(value, str) and is_local_path(value)
            yield field.name, Path(value).name if is_path else value
        elif dataclasses.is_dataclass(value) and field.name != "identity":
            yield from _flags(value)
