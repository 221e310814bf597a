"""A form with a sound to what the rooms behind need, or `BadRequest`. Pure."""

import math
from dataclasses import dataclass
from typing import Any

from frontend import chunking, decoding, fields
from frontend.forms import Form
from frontend.sampling_fields import MANY
from frontend.schemas import MIN_TEMPERATURE_STEP, SoundRequest
from frontend.served_model import ServedModel
from frontend.submission import Transcription
from frontend.transcript_shapes import SEGMENT, WORD
from shared.errors import BadRequest, ErrorCode
from shared.parts import TranscriptOptions
from shared.sampling import NUM_SEEDS, SamplingParams

TRANSCRIBE, TRANSLATE = "transcribe", "translate"
_LISTS = ("timestamp_granularities", "include")
_NOTHING = frozenset({"", "null", "none"})  # a language as some clients leave it out
_TEMPERATURE_STEP = 0.2  # of further tries, where the first is at 0 (Whisper's reference)
_MAX_TEMPERATURE = 1.0  # of further tries


@dataclass(frozen=True)
class SoundAsk:
    """One validated request, and how its transcript is written."""

    wanted: Transcription
    response_format: str
    stream: bool
    has_logprobs: bool
    granularities: frozenset[str]  # what is told with its times: segments, words or both
    ignored_fields: str

    @property
    def task(self) -> str:
        """What the words are: those that were said, or in English."""
        return self.wanted.options.task


def sound(form: Form, model: ServedModel, task: str, random_seed: int) -> SoundAsk:
    """The request in this form; `random_seed` is for one with a temperature and no seed."""
    given = _given(form)
    fields.SOUND.refuse_unsupported(given)
    request = decoding.convert(given, SoundRequest, is_form=True)
    if request.model is not None:
        model.require(request.model)
    _check(request)
    seed = _seed(request, random_seed)
    language = (request.language or "").strip()
    options = TranscriptOptions(
        task=task,
        language=None if language.lower() in _NOTHING else language,
        prompt=request.prompt,
        times_words=WORD in request.timestamp_granularities,
        is_sequential=request.chunking_strategy == "sequential",
        temperatures=_temperatures(request),
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
        frozenset(request.timestamp_granularities or (SEGMENT,)),
        fields.SOUND.ignored_names(given),
    )


def _given(form: Form) -> dict[str, Any]:
    """The fields by name; of values that are no list the last one counts.

    A list's name may have brackets, and its items may be in one text, with commas between them.
    """
    _require_one_temperature(form)
    given: dict[str, Any] = {}
    for name, values in form.fields.items():
        plain = name.partition("[")[0]  # also of the members of an object
        if plain in _LISTS:
            items = [item.strip() for value in values for item in value.split(",")]
            given.setdefault(plain, []).extend(filter(None, items))
        else:
            given[plain] = values[-1]
    given[chunking.NAME] = chunking.chunking_strategy(form.fields)
    return given


def _require_one_temperature(form: Form) -> None:
    """A list is what Whisper's own command and some servers take."""
    given = {name: v for name, v in form.fields.items() if name.partition("[")[0] == "temperature"}
    texts = [text for values in given.values() for text in values]
    if len(texts) > 1 or any("[" in text or "," in text for text in (*given, *texts)):
        sentence = "'temperature' must be one number: that of further tries is higher by"
        raise BadRequest(f"{sentence} 'temperature_inc' each.", "temperature")


def _seed(request: SoundRequest, random_seed: int) -> int:
    """Further tries at a sound are the same whenever it comes, unless the first is random too."""
    if request.seed is not None:
        return request.seed
    return random_seed if request.temperature else 0


def _temperatures(request: SoundRequest) -> tuple[float, ...]:
    """That of the first try, and those of further ones."""
    first, step = request.temperature, request.temperature_inc
    if step is None:
        step = 0.0 if first else _TEMPERATURE_STEP
    if not step or first >= _MAX_TEMPERATURE:
        return (first,)
    num_further = math.floor((_MAX_TEMPERATURE - first) / step + 1e-6)
    return (first, *(round(first + number * step, 6) for number in range(1, num_further + 1)))


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
    if 0 < (request.temperature_inc or 0) < MIN_TEMPERATURE_STEP:
        sentence = f"'temperature_inc' must be 0 or at least {MIN_TEMPERATURE_STEP}."
        raise BadRequest(sentence, "temperature_inc")
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
