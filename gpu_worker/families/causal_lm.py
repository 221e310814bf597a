"""Decoder-only models: a step's tokens, flattened to one row, go through the stock forward pass.

Whatever the batch, a step is one forward pass and one transfer of sampled ids to the host.
"""

import torch
from transformers import PreTrainedModel

from gpu_worker.batch import BlockTables, prepare
from gpu_worker.kv_cache import PagedKVCache
from gpu_worker.paged_attention import AttentionStep
from gpu_worker.sampler import Sampler
from scheduler.plan import StepPlan, StepResult


class CausalLM:
    """Runs plans on one decoder model, its paged cache and the sampler's rows."""

    def __init__(self, model: PreTrainedModel, cache: PagedKVCache, num_rows: int) -> None:
        self._model = model
        self._cache = cache
        self._tables = BlockTables(num_rows, model.device)
        self._sampler = Sampler(num_rows, model.config.vocab_size, model.device)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Computes the plan's tokens in one forward pass and samples where it asks for it."""
        for admission in plan.admissions:
            self._sampler.begin(admission)
        batch = prepare(plan, self._tables, self._model.device)
        logits = self._model(
            input_ids=batch.token_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.sampled,
            step=AttentionStep(self._cache, batch),
        ).logits[0]  # [N, V]
        host_rows = [chunk.row for chunk in plan.chunks if chunk.samples]
        token_ids = self._sampler.sample(
            logits, batch.sampled_rows, batch.output_indices, host_rows
        )
        return StepResult(tuple(token_ids.tolist()))  # the step's one synchronisation
