"""What the handlers share: one of each, built by `server.py`."""

from dataclasses import dataclass
from typing import Any

from litestar import Request
from litestar.datastructures import State

from frontend.engine_client import EngineClient
from frontend.metrics import Metrics
from frontend.served_model import ServedModel
from frontend.sound_budget import SoundBudget
from frontend.translate import Rules
from shared.config import FrontendConfig

ApiRequest = Request[Any, str, State]  # its `auth` is the id of the caller's key, or ""


@dataclass(frozen=True)
class Service:
    """Everything that a handler may use."""

    config: FrontendConfig
    engine: EngineClient
    metrics: Metrics
    model: ServedModel
    sounds: SoundBudget

    @property
    def max_choices(self) -> int:
        """The most answers to one request."""
        config = self.config
        return min(config.max_n, config.max_concurrent)

    @property
    def hears(self) -> bool:
        """True for a model that puts sound into words, and answers no text."""
        facts = self.engine.model()
        return facts is not None and facts.hears

    def rules(self) -> Rules:
        """What requests are translated by, now."""
        config, facts = self.config, self.engine.model()
        return Rules(
            self.model,
            self.max_choices,
            facts.sampling_defaults if facts else {},
            completion_max_tokens=config.default_completion_max_tokens,
            strict_max_tokens=config.strict_max_tokens,
            reasoning_field=config.reasoning_field,
        )


def service_of(request: ApiRequest) -> Service:
    """The service behind the application that got this request."""
    service: Service = request.app.state.service
    return service
