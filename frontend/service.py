"""What the handlers share: one of each, built by `server.py`."""

from dataclasses import dataclass
from typing import Any

from litestar import Request
from litestar.datastructures import State

from frontend.engine_client import EngineClient
from frontend.metrics import Metrics
from frontend.served_model import ServedModel
from frontend.translate import Rules

ApiRequest = Request[Any, Any, State]


@dataclass(frozen=True)
class Service:
    """Everything that a handler may use."""

    engine: EngineClient
    metrics: Metrics
    model: ServedModel
    max_choices: int  # most answers to one request
    reasoning_field: str = "both"  # `--reasoning-field`

    def rules(self) -> Rules:
        """What requests are translated by, now."""
        facts = self.engine.model()
        defaults = facts.sampling_defaults if facts else {}
        field = self.reasoning_field
        return Rules(self.model, self.max_choices, defaults, reasoning_field=field)


def service_of(request: ApiRequest) -> Service:
    """The service behind the application that got this request."""
    service: Service = request.app.state.service
    return service
