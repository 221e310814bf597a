"""Which attention backend serves a model: the fastest one that its device has."""

import logging
from pathlib import Path

from gpu_worker.attention.backend import AttentionBackend
from gpu_worker.attention.cpu_paged import CpuPagedAttention, choose_cpu_backend
from gpu_worker.attention.torch_paged import TorchAttention
from gpu_worker.probe import ModelUse
from shared.config import WorkerConfig

logger = logging.getLogger(__name__)


def make_backend(
    use: ModelUse, config: WorkerConfig, *, num_blocks: int, max_model_len: int
) -> AttentionBackend:
    """Allocates the cache of `num_blocks` blocks in the layout of the backend that it is for."""
    if use.device.type == "cuda":
        # Triton comes with CUDA builds of torch alone.
        from gpu_worker.attention.triton_paged import TritonPagedAttention  # noqa: PLC0415

        return TritonPagedAttention(
            use.geometry,
            num_blocks,
            num_rows=config.continuous_batching_batch_size,
            max_model_len=max_model_len,
        )
    if config.cpu_kernels:
        num_heads = [layer.num_heads for layer in use.layers]
        directory = config.cpu_kernels_directory
        native = choose_cpu_backend(
            use.geometry,
            num_heads,
            num_blocks,
            cache_directory=Path(directory).expanduser() if directory else None,
        )
        if native is not None:
            return native
    else:
        logger.info("CPU attention: plain torch, as --no-cpu-kernels says")
    return TorchAttention(use.geometry, num_blocks)


def in_words(backend: AttentionBackend) -> str:
    """What attends, for people."""
    if isinstance(backend, TorchAttention):
        return "plain torch"
    return "native CPU kernels" if isinstance(backend, CpuPagedAttention) else "Triton kernels"
