"""A form with a sound to what the rooms behind need, or `BadRequest`. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frontend import decoding, fields
from frontend.forms import Form
from frontend.sampling_fields import MANY
from frontend.schemas import SoundRequest
from frontend.served_model import ServedModel
from frontend.submission import Transcription
from shared.errors import BadRequest, ErrorCode
from shared.parts import TranscriptOptions
from shared.sampling import NUM_SEEDS, SamplingParams

TRANSCRIBE, TRANSLATE = "transcribe", "translate"
_LISTS = ("timestamp_granularities", "include")
_NOTHING = frozenset({"", "null", "none"})  # a language as some clients leave it out


@dataclass(frozen=True)
class SoundAsk:
    """One validated request, and how its transcript is written."""

    wanted: Transcription
    response_format: str
    stream: bool
    has_logprobs: bool
    ignored_fields: str

    @property
    def task(self) -> str:
        """What the words are: those that were said, or in English."""
        return self.wanted.options.task


def sound(form: Form, model: ServedModel, task: str, random_seed: int) -> SoundAsk:
    """The request in this form; `random_seed` is for one without a seed."""
    given = _given(form)
    fields.SOUND.refuse_unsupported(given)
    request = decoding.convert(given, SoundRequest, is_form=True)
    if request.model is not None:
        model.require(request.model)
    _check(request)
    seed = random_seed if request.seed is None else request.seed
    language = (request.language or "").strip()
    options = TranscriptOptions(
        task=task,
        language=None if language.lower() in _NOTHING else language,
        prompt=request.prompt,
    )
    sampling = SamplingParams(
        seed=seed % NUM_SEEDS,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=min(max(request.top_k, 0), MANY),
        repetition_penalty=request.repetition_penalty,
    )
    return SoundAsk(
        Transcription(_file(form), options, sampling),
        request.response_format,
        request.stream,
        "logprobs" in request.include,
        fields.SOUND.ignored_names(given),
    )


def _given(form: Form) -> dict[str, Any]:
    """The fields by name: a list's name may have brackets; of others the last one counts."""
    given: dict[str, Any] = {}
    for name, values in form.fields.items():
        plain = name.partition("[")[0]  # also of the parts of an object
        given[plain] = values if plain in _LISTS else values[-1]
    return given


def _file(form: Form) -> bytes:
    if "file" in form.fields:
        raise BadRequest("'file' must be a file, not a text: give it a file name.", "file")
    others = [name for name in form.files if name != "file"]
    if others:
        raise BadRequest(f"'{others[0][:64]}' must be a text, not a file.", others[0][:64])
    data = form.files.get("file")
    if data is None:
        sentence = "Missing required parameter: 'file'."
        raise BadRequest(sentence, "file", ErrorCode.MISSING_PARAMETER)
    if not data:
        raise BadRequest("'file' is empty.", "file")
    return data


def _check(request: SoundRequest) -> None:
    refusals: Mapping[str, bool] = {
        "timestamp_granularities": "word" in request.timestamp_granularities,
        "chunking_strategy": request.chunking_strategy not in (None, "", "auto", "null"),
    }
    for name, is_refused in refusals.items():
        if is_refused:
            sentence = f"'{name}' with this value is not supported by this server."
            raise BadRequest(sentence, name, ErrorCode.UNSUPPORTED_PARAMETER)
    if request.timestamp_granularities and request.response_format != "verbose_json":
        sentence = "'timestamp_granularities' needs 'response_format' verbose_json."
        raise BadRequest(sentence, "timestamp_granularities")
    if request.include and request.response_format != "json":
        raise BadRequest("'include' needs 'response_format' json.", "include")
    if request.include and request.stream:
        raise BadRequest("'include' cannot be obeyed with 'stream'.", "include")
    if request.stream and request.response_format == "verbose_json":
        sentence = "'verbose_json' cannot be streamed: choose json, text, srt or vtt."
        raise BadRequest(sentence, "response_format")
