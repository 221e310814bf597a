"""A Whisper of random weights over slots, as it is served, and what its work amounts to."""

import time
from typing import Any

import torch
from transformers import AutoModelForSpeechSeq2Seq, WhisperConfig

from benchmarks.gpu.machine import Machine
from gpu_worker.families import whisper
from gpu_worker.families.encoder_decoder import EncoderDecoder
from gpu_worker.families.whisper import Whisper
from gpu_worker.slot_cache import SlotCache
from gpu_worker.transcription import Transcripts
from scheduler.plan import EncoderInput, StepPlan
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from shared.sampling import SamplingParams, TranscriptRules
from shared.windows import FRAMES_PER_POSITION

END, START, ENGLISH, TRANSCRIBE, NO_SPEECH, FIRST_TIME = 50257, 50258, 50259, 50360, 50363, 50365
# The end is suppressed: every answer has its full length.
RULES = TranscriptRules(
    heads=((ENGLISH,), (TRANSCRIBE,)),
    end_token_id=END,
    suppressed=tuple(range(END, FIRST_TIME)),
    suppressed_at_first=(220, END),
    no_speech_id=NO_SPEECH,
    first_time_id=FIRST_TIME,
    max_first_time=50,
)
SERVED = SamplingParams(seed=0, temperature=0.0, transcript=RULES)
LARGE_V3: dict[str, Any] = {
    "vocab_size": 51866,
    "num_mel_bins": 128,
    "d_model": 1280,
    "encoder_layers": 32,
    "decoder_layers": 32,
    "encoder_attention_heads": 20,
    "decoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "decoder_ffn_dim": 5120,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "pad_token_id": END,
    "bos_token_id": END,
    "eos_token_id": END,
    "decoder_start_token_id": START,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
SMALL = {
    **LARGE_V3,
    "num_mel_bins": 8,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_source_positions": 20,
}


class Slots:
    """A model's runner behind a scheduler, as it is served."""

    def __init__(self, model: Any, *, num_rows: int, most_encoded: int) -> None:
        self.cache = SlotCache(whisper.geometry(model), num_rows)
        self.adapter = Whisper(model, self.cache)
        transcripts = Transcripts(num_rows, model.config.vocab_size, model.device)
        self._runner = EncoderDecoder(self.adapter, self.cache, num_rows, transcripts)
        self._most_encoded = most_encoded
        self._num_rows = num_rows
        self.scheduler = self._new_scheduler()

    def restart(self) -> None:
        """Forgets everybody."""
        self.scheduler = self._new_scheduler()

    def add(self, request_id: str, sound: EncoderInput, num_tokens: int) -> None:
        """Queues a window whose answer has so many tokens after its heads."""
        max_tokens = len(RULES.heads) + num_tokens
        sequence = Sequence(
            request_id, (START,), max_tokens, frozenset(), SERVED, encoder_input=sound
        )
        self.scheduler.add(sequence)

    def step(self) -> tuple[StepPlan, float]:
        """Plans and computes one step; its seconds."""
        start = time.perf_counter()
        plan = self.scheduler.schedule()
        self.scheduler.apply(plan, self._runner.execute(plan))
        return plan, time.perf_counter() - start

    def run(self) -> None:
        """Steps until every window has its answer."""
        while not self.scheduler.is_idle:
            self.step()

    def _new_scheduler(self) -> Scheduler:
        """A step's budget takes the most windows that are encoded together."""
        geometry = self.cache.geometry
        return Scheduler(
            num_blocks=self._num_rows,
            block_size=geometry.max_decoder_len,
            max_sequences=self._num_rows,
            max_tokens_per_step=self._most_encoded * (geometry.max_encoder_len + 4)
            + self._num_rows,
            prefix_caching=False,
            rows_are_slots=True,
        )


def make_model(machine: Machine, config: WhisperConfig, dtype: torch.dtype) -> Any:
    """With random weights, made on the device."""
    machine.require()
    machine.free()
    auto_model: Any = AutoModelForSpeechSeq2Seq  # transformers leaves `from_config` untyped
    torch.manual_seed(0)
    with machine.device:
        model = auto_model.from_config(config, dtype=dtype)
    return model.eval()


def make_sounds(config: WhisperConfig, count: int) -> list[EncoderInput]:
    """Spectrograms of noise."""
    generator = torch.Generator().manual_seed(1)
    num_positions = whisper.num_positions(config)
    shape = (config.num_mel_bins, FRAMES_PER_POSITION * num_positions)
    noise = [torch.randn(shape, generator=generator) for _ in range(count)]
    return [EncoderInput(num_positions, features=n.numpy().tobytes()) for n in noise]


def encoder_flops(model: Any) -> float:
    """Of one window: matrices and attention."""
    config = model.config
    length = config.max_source_positions
    parameters = sum(p.numel() for layer in model.model.encoder.layers for p in layer.parameters())
    attention = 4 * config.encoder_layers * length**2 * config.d_model
    return float(2 * parameters * length + attention)


def decoder_bytes(model: Any) -> int:
    """Of the weights that a decode step reads: the sounds' keys and values are there already."""
    decoder = model.model.decoder
    modules = [*decoder.layers, decoder.layer_norm, model.proj_out]
    unread = [p for layer in decoder.layers for p in _projections(layer.encoder_attn)]
    total = sum(p.numel() for module in modules for p in module.parameters())
    return int((total - sum(p.numel() for p in unread)) * model.dtype.itemsize)


def _projections(attention: Any) -> list[torch.Tensor]:
    return [*attention.k_proj.parameters(), *attention.v_proj.parameters()]
