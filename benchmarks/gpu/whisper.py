"""Whisper in the shapes of large-v3 and turbo: encoder, decode steps and sound a second, saturated.

Random bfloat16 weights; windows of 30 seconds, as spectrograms in the host's memory. The ceiling of
a decode step is memory: it reads the decoder's weights, every window's encoded sound, and every
key and value of the answers so far. The ceiling of the encoder is a large matrix product.
"""

import statistics
import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from transformers import GenerationMixin, WhisperConfig

from benchmarks.engine import GREEDY
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.record import Row, Stage, Unavailable, Values, Wrong
from benchmarks.gpu.whisper_slots import (
    LARGE_V3,
    SERVED,
    SMALL,
    START,
    Slots,
    decoder_bytes,
    encoder_flops,
    make_model,
    make_sounds,
)
from scheduler.plan import Admission, EncoderInput
from scheduler.sequence import Sequence
from tests.gpu_worker.encoder_decoders import compared

WINDOW_SECONDS = 30
WARM_STEPS, TIMED_STEPS = 3, 20
SHAPES: dict[str, dict[str, Any]] = {"large-v3": {}, "turbo": {"decoder_layers": 4}}
SMALL_SHAPES: dict[str, dict[str, Any]] = {"large-v3": {}, "turbo": {"decoder_layers": 1}}


@dataclass(frozen=True)
class _Sizes:
    """How much is measured."""

    encoded: tuple[int, ...]  # windows at a time; a step never encodes more than the last
    decoded: tuple[int, ...]  # windows in a step, from the most to the fewest
    num_windows: int  # of the saturated run
    num_tokens: int  # of each of their answers


FULL = _Sizes((1, 8, 16), (64, 16, 1), 192, 100)
REHEARSED = _Sizes((1, 2), (4, 2, 1), 6, 8)


def stage(machine: Machine) -> Stage:
    """Equality on a small model, then the rows of each shape."""
    return Stage("whisper", 150.0, partial(_rows, machine))


def _rows(machine: Machine) -> Rows[Row]:
    rows = [Row("equality of windows", partial(compare, machine))]
    for name in SHAPES:
        run = _Run(machine, name)
        rows += [Row(f"{name}, encode {n}", partial(run.encode, n)) for n in run.sizes.encoded]
        rows += [Row(f"{name}, decode {n}", partial(run.decode, n)) for n in run.sizes.decoded]
        rows += [Row(f"{name}, saturated", run.serve)]
    return rows


# ── equality ─────────────────────────────────────────────────────────────────────────────────────


def compare(machine: Machine) -> Values:
    """Windows that come and go get the tokens of `generate()`, in float32 without TF32."""
    machine.require()
    torch.set_float32_matmul_precision("highest")
    config = WhisperConfig(**{**SMALL, "vocab_size": 90, **dict.fromkeys(_TOKENS, 1)})
    model = make_model(machine, config, torch.float32)
    for name, parameter in model.named_parameters():
        if "layer_norm" not in name:
            parameter.data.normal_(0, 1.0 if "embed_positions" in name else 0.25)
    slots = Slots(model, num_rows=5, most_encoded=2)
    sounds = make_sounds(model.config, 16)
    sequences = [
        Sequence(str(n), (2, *range(10, 10 + n % 5)), 5 + 3 * n % 23, frozenset({1}), GREEDY,
                 encoder_input=sound)
        for n, sound in enumerate(sounds)
    ]  # fmt: skip
    for sequence in sequences:
        slots.scheduler.add(sequence)
        slots.step()
    slots.run()
    model.set_attn_implementation("sdpa")
    for sequence in sequences:
        if found := _difference(model, sequence):
            raise Wrong(found)
    return {"equal_answers": len(sequences)}


_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def _difference(model: Any, sequence: Sequence) -> str:
    sound = torch.frombuffer(bytearray(sequence.encoder_input.features), dtype=torch.float32)
    prompt = sequence.token_ids[: sequence.num_prompt_tokens]
    generate: Any = GenerationMixin.generate
    generated = generate(
        model,
        sound.view(1, model.config.num_mel_bins, -1).to(model.device),
        decoder_input_ids=torch.tensor([prompt], device=model.device),
        max_new_tokens=sequence.max_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return compared(generated, sequence)


# ── speed ────────────────────────────────────────────────────────────────────────────────────────


class _Run:
    """The rows of one shape, on a model that the first of them makes."""

    def __init__(self, machine: Machine, name: str) -> None:
        self._machine = machine
        small, full = {**SMALL, **SMALL_SHAPES[name]}, {**LARGE_V3, **SHAPES[name]}
        self._config = WhisperConfig(**(small if machine.is_rehearsal else full))
        self.sizes = REHEARSED if machine.is_rehearsal else FULL
        self._is_filled = False

    def encode(self, num_windows: int) -> Values:
        """Windows a second from the host's memory to states, and the share of the peak."""
        slots = self._slots
        admissions = [
            Admission(row, SERVED, (START,), 1, frozenset(), (), sound)
            for row, sound in enumerate(self._sounds[:num_windows])
        ]
        with torch.inference_mode():
            seconds = self._machine.seconds(lambda: slots.adapter.encode(admissions))
        flops = num_windows * encoder_flops(self._model)
        return {
            "ms": seconds * 1e3,
            "windows_per_second": num_windows / seconds,
            "share_of_measured_flops": flops / seconds / self._machine.flops_per_second,
        }

    def decode(self, num_windows: int) -> Values:
        """Median step at a batch size, and its share of what memory allows."""
        slots = self._slots
        self._fill()
        if slots.scheduler.num_running < num_windows:
            raise Unavailable("fewer windows have begun")
        for number in range(num_windows, self.sizes.decoded[0]):
            if slots.scheduler.holds(str(number)):
                slots.scheduler.abort(str(number))
        for _ in range(WARM_STEPS):
            slots.step()
        steps = [slots.step() for _ in range(TIMED_STEPS)]
        assert all(len(plan.chunks) == plan.num_decodes == num_windows for plan, _ in steps)
        contexts = sum(chunk.start + 1 for chunk in steps[TIMED_STEPS // 2][0].chunks)
        return self._decode_values(num_windows, contexts, [seconds for _, seconds in steps])

    def serve(self) -> Values:
        """Seconds of sound a second, from the first window to the last answer."""
        slots, sizes = self._slots, self.sizes
        slots.restart()
        for number in range(sizes.num_windows):
            sound = self._sounds[number % len(self._sounds)]
            slots.add(str(number), sound, sizes.num_tokens)
        start = time.perf_counter()
        slots.run()
        seconds = time.perf_counter() - start
        return {
            "windows": sizes.num_windows,
            "tokens_each": sizes.num_tokens,
            "sound_seconds_per_second": WINDOW_SECONDS * sizes.num_windows / seconds,
        }

    def _fill(self) -> None:
        """Lets the largest batch begin, once."""
        if self._is_filled:
            return
        self._is_filled = True
        slots = self._slots
        for number in range(self.sizes.decoded[0]):
            sound = self._sounds[number % len(self._sounds)]
            slots.add(str(number), sound, self._config.max_target_positions - 10)
        while slots.scheduler.num_waiting:
            slots.step()
        slots.step()  # the last to come decode from here on

    def _decode_values(self, num_windows: int, contexts: int, times: list[float]) -> Values:
        seconds = statistics.median(times)
        num_bytes = decoder_bytes(self._model) + self._kv_bytes(num_windows, contexts)
        values = {
            "ms_per_step": seconds * 1e3,
            "slowest_ms": max(times) * 1e3,
            "mean_context": contexts / num_windows,
            "gigabytes_per_step": num_bytes / 1e9,
            "share_of_measured_bandwidth": num_bytes / seconds / self._machine.bytes_per_second,
        }
        if self._machine.data_sheet_bytes_per_second:
            share = num_bytes / seconds / self._machine.data_sheet_bytes_per_second
            values["share_of_data_sheet"] = share
        return values

    def _kv_bytes(self, num_windows: int, contexts: int) -> int:
        """Keys and values of the sounds and of the answers so far."""
        config = self._config
        per_position = 2 * config.decoder_layers * config.d_model * self._model.dtype.itemsize
        num_positions = num_windows * config.max_source_positions + contexts
        return int(per_position * num_positions)

    @cached_property
    def _model(self) -> Any:
        return make_model(self._machine, self._config, self._machine.dtype)

    @cached_property
    def _slots(self) -> Slots:
        sizes = self.sizes
        return Slots(self._model, num_rows=sizes.decoded[0], most_encoded=sizes.encoded[-1])

    @cached_property
    def _sounds(self) -> list[EncoderInput]:
        return make_sounds(self._config, self.sizes.encoded[-1])
