"""The machine that is measured: what it is, what it could do at best, and the model it is given."""

import gc
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.gpu.record import Unavailable, Values

ROOT = Path(__file__).resolve().parents[2]
H200_BYTES_PER_SECOND = 4.8e12  # by its data sheet
GIBIBYTE = 2**30
# The shape of Llama 3.1 8B: what is measured does not depend on what its weights are.
EIGHT_BILLION: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "eos_token_id": None,
    "pad_token_id": 0,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
TINY = {
    **EIGHT_BILLION,
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Machine:
    """A device, or a rehearsal of it: everything small and on the CPU, to test the benchmark."""

    device: torch.device
    is_rehearsal: bool = False

    def require(self) -> None:
        """Raises Unavailable where there is no such device."""
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise Unavailable("no CUDA device")

    @property
    def dtype(self) -> torch.dtype:
        """Of the large model."""
        return torch.float32 if self.is_rehearsal else torch.bfloat16

    def model(self, attn_implementation: str) -> PreTrainedModel:
        """A new random model of 8 billion parameters (a rehearsal: of few), made on the device."""
        self.require()
        self.free()
        config = LlamaConfig(**(TINY if self.is_rehearsal else EIGHT_BILLION))
        auto_model: Any = AutoModelForCausalLM  # transformers leaves `from_config` untyped
        torch.manual_seed(0)
        with self.device:
            model: PreTrainedModel = auto_model.from_config(
                config, dtype=self.dtype, attn_implementation=attn_implementation
            )
        model.eval()
        return model

    @cached_property
    def bytes_per_second(self) -> float:
        """Of a large copy, bytes read and bytes written counted: what memory does at best."""
        self.require()
        num_bytes = GIBIBYTE // 64 if self.is_rehearsal else 4 * GIBIBYTE
        source = torch.randint(0, 127, (num_bytes,), dtype=torch.int8, device=self.device)
        target = torch.empty_like(source)
        seconds = self.seconds(lambda: target.copy_(source))
        return 2 * num_bytes / seconds

    @cached_property
    def flops_per_second(self) -> float:
        """Of a large matrix product in the model's precision."""
        self.require()
        size = 256 if self.is_rehearsal else 8192
        left, right = torch.randn(2, size, size, device=self.device).to(self.dtype)
        return 2 * size**3 / self.seconds(lambda: left @ right)

    def seconds(self, action: Callable[[], object], repeats: int = 10) -> float:
        """Median seconds of something that runs on the device, after three runs to warm up."""
        times = []
        for _ in range(3 + repeats):
            self.synchronize()
            start = time.perf_counter()
            action()
            self.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times[3:])

    def synchronize(self) -> None:
        """Waits until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Gives back the memory of what nobody needs any more; engines are cycles of references."""
        gc.collect()
        if self.device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def name(self) -> str:
        """As the driver calls it."""
        if self.is_rehearsal:
            return "rehearsal on the CPU"
        if not torch.cuda.is_available():
            return "no CUDA device"
        return torch.cuda.get_device_name(self.device)

    @property
    def data_sheet_bytes_per_second(self) -> float | None:
        """Of a device whose data sheet is known."""
        return H200_BYTES_PER_SECOND if "H200" in self.name else None

    def facts(self, commit: str) -> Values:
        """What a reader needs to know of the machine and of what ran on it."""
        has_gpu = torch.cuda.is_available() and not self.is_rehearsal
        properties: Any = torch.cuda.get_device_properties(self.device) if has_gpu else None
        return {
            "commit": commit or _commit(),
            "device": self.name,
            "memory_bytes": properties.total_memory if has_gpu else 0,
            "driver": _driver() if has_gpu else "",
            "cuda": torch.version.cuda or "",
            "torch": torch.__version__,
            "triton": _triton_version(),
            "transformers": transformers.__version__,
            "data_sheet_bytes_per_second": self.data_sheet_bytes_per_second,
        }


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights that a step reads: all but the table of embeddings, unless tied."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    if model.config.tie_word_embeddings:
        return total
    embedding: Any = model.get_input_embeddings()
    return int(total - embedding.weight.numel() * embedding.weight.element_size())


def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of one token's keys and values in all layers of a Llama."""
    config = model.config
    head_size = config.hidden_size // config.num_attention_heads
    elements = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size
    return int(elements * model.dtype.itemsize)


def _output_of(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _commit() -> str:
    commit = _output_of("git", "rev-parse", "--short", "HEAD")
    changed = "+changes" if commit and _output_of("git", "status", "--porcelain") else ""
    return f"{commit}{changed}" or "unknown"


def _driver() -> str:
    return _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _triton_version() -> str:
    try:
        import triton  # noqa: PLC0415 — CPU builds of torch come without
    except ImportError:
        return ""
    return str(triton.__version__)
