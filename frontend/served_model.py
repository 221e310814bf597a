"""The names under which the one model is served, and its card in `/v1/models`. Pure."""

from typing import Any

from frontend.decoding import quoted
from shared.config import FrontendConfig
from shared.errors import ErrorCode, RequestError

# What the predecessor and fine-tuning tutorials call the only model of a server.
_GENERIC_NAMES = frozenset({"model", "base"})


class ServedModel:
    """One model: its id in the API and its aliases."""

    def __init__(self, config: FrontendConfig, created: int) -> None:
        self.name = config.model_name
        id_or_path = config.model.hf_model.strip("/")
        last_part = id_or_path.rpartition("/")[2]
        self._names = _GENERIC_NAMES | {self.name.strip("/"), id_or_path, last_part}
        self._created = created

    def require(self, name: str) -> None:
        """Raises RequestError when the caller means another model."""
        # A path in a URL loses slashes at its ends, so they make no difference.
        if name.strip("/") not in self._names:
            raise RequestError(
                ErrorCode.MODEL_NOT_FOUND,
                f"The model {quoted(name)} does not exist or you do not have access to it.",
                "model",
            )

    def card(self, max_model_len: int | None) -> dict[str, Any]:
        """The model as `/v1/models` shows it; its length is unknown until it is loaded."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "transformers-openai-api",
            "max_model_len": max_model_len,
        }
