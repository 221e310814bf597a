"""Decoder-only models: a step's tokens, flattened to one row, go through the stock forward pass.

Whatever the batch, a step is one forward pass and one transfer of sampled ids to the host.
"""

import torch
from transformers import PreTrainedModel

from gpu_worker.architectures import text_config
from gpu_worker.attention.backend import AttentionBackend
from gpu_worker.batch import Batch, Rows, prepare
from gpu_worker.cuda_graphs import DecodeGraphs, GraphDevice, padding_row
from gpu_worker.paged_attention import bind
from gpu_worker.rope import SequenceAngles
from gpu_worker.sampler import Sampler
from scheduler.plan import StepPlan, StepResult


class CausalLM:
    """Runs plans on one decoder model, its paged cache and the sampler's rows."""

    def __init__(
        self,
        model: PreTrainedModel,
        backend: AttentionBackend,
        num_rows: int,
        angles: SequenceAngles | None = None,
    ) -> None:
        self._model = model
        self._backend = backend
        self._angles = angles or SequenceAngles(model)
        bind(model, backend)
        self._rows = Rows(num_rows)
        self._num_rows = num_rows
        self._graphs: DecodeGraphs | None = None
        self._sampler = Sampler(num_rows, text_config(model.config).vocab_size, model.device)

    @torch.inference_mode()
    def capture(self, device: GraphDevice) -> None:
        """From now on decodes by graphs, if the forward pass can be captured.

        For a backend that reads block tables and lengths from the device, with one row more than
        ours for padding.
        """
        padding = padding_row(self._num_rows, self._model.device)
        graphs = DecodeGraphs(self._forward, device, max_batch_size=self._num_rows, padding=padding)
        graphs.capture()
        self._graphs = graphs

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Computes the plan's tokens in one forward pass and samples where it asks for it."""
        self._rows.update(plan)
        for admission in plan.admissions:
            self._sampler.begin(admission)
        self._sampler.observe(plan)
        batch = prepare(plan, self._rows, self._model.device)
        logits = self._logits(batch)  # [N, V]
        host_rows = [chunk.row for chunk in plan.chunks if chunk.samples]
        token_ids = self._sampler.sample(
            logits, batch.sampled_rows, batch.output_indices, host_rows
        )
        return StepResult(tuple(token_ids.tolist()))  # the step's one synchronisation

    def _logits(self, batch: Batch) -> torch.Tensor:
        if self._graphs is None or not self._graphs.covers(batch):
            return self._forward(batch)
        self._backend.begin(batch)
        return self._graphs.run(batch)

    def _forward(self, batch: Batch) -> torch.Tensor:
        self._backend.begin(batch)
        self._angles.begin(batch)
        logits: torch.Tensor = self._model(
            input_ids=batch.token_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=0 if batch.is_decode else batch.sampled,  # 0: all
            backend=self._backend,
        ).logits
        return logits[0]
