"""The names under which the one model is served, and its card in `/v1/models`. Pure."""

from collections.abc import Callable
from typing import Any

from frontend.decoding import quoted
from shared.config import FrontendConfig, is_local_path
from shared.errors import ErrorCode, RequestError
from shared.parts import ModelFacts

# What the predecessor and fine-tuning tutorials call the only model of a server.
_GENERIC_NAMES = frozenset({"model", "base"})
_WHISPER_NAMES = frozenset({"whisper", "whisper-1"})  # OpenAI's name for its own, and its beginning


class ServedModel:
    """One model: its id in the API and its aliases; `facts` tells what is known of it by now."""

    def __init__(
        self,
        config: FrontendConfig,
        created: int,
        facts: Callable[[], ModelFacts | None] = lambda: None,
    ) -> None:
        self.name = config.model_name
        id_or_path = config.model.hf_model.strip("/")
        last_part = id_or_path.rpartition("/")[2]
        given = {name.strip("/") for name in (self.name, *config.model_aliases)}
        self._names = _GENERIC_NAMES | given | {id_or_path, last_part}
        self._secret_names = {id_or_path} if is_local_path(config.model.hf_model) else set()
        self._accepts_any = config.accept_any_model
        self._created = created
        self._facts = facts

    @property
    def aliases(self) -> frozenset[str]:
        """Every other name that means this model, but not where it lies on this machine."""
        return self._known_names() - {self.name} - self._secret_names

    @property
    def max_prompt_len(self) -> int | None:
        """The most tokens of a prompt alone; None until the model is loaded."""
        facts = self._facts()
        return (facts.max_encoder_len or facts.max_model_len) if facts else None

    def require(self, name: str) -> None:
        """Raises RequestError when the caller means another model."""
        # A path in a URL loses slashes at its ends, so they make no difference.
        if not self._accepts_any and name.strip("/") not in self._known_names():
            raise RequestError(
                ErrorCode.MODEL_NOT_FOUND,
                f"The model {quoted(name)} does not exist or you do not have access to it.",
                "model",
            )

    def card(self) -> dict[str, Any]:
        """The model as `/v1/models` shows it; its lengths are unknown until it is loaded."""
        facts = self._facts()
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "transformers-openai-api",
            "max_model_len": facts.max_model_len if facts else None,
            "max_prompt_len": self.max_prompt_len,
        }

    def _known_names(self) -> frozenset[str]:
        facts = self._facts()
        is_whisper = facts is not None and facts.details.get("model_type") == "whisper"
        return self._names | _WHISPER_NAMES if is_whisper else self._names
