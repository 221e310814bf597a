"""Decoder-only models: a step's tokens, flattened to one row, go through the stock forward pass.

Whatever the batch, a step is one forward pass, or a few where it scores much of a prompt, and one
transfer to the host: of sampled ids, and of the logprobs that were asked for.
"""

import torch
from transformers import PreTrainedModel

from gpu_worker.architectures import text_config
from gpu_worker.attention.backend import AttentionBackend
from gpu_worker.batch import Batch, Rows, prepare
from gpu_worker.compiled import CompiledForward
from gpu_worker.cuda_graphs import DecodeGraphs, GraphDevice, padding_row
from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.logprobs import Computed, Scorer, Scores, prompt_tiles, read
from gpu_worker.paged_attention import bind
from gpu_worker.pooling import recorded_states, unit
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
        self.backend = backend
        self._angles = angles or SequenceAngles(model)
        bind(model, backend)
        self._rows = Rows(num_rows)
        self._num_rows = num_rows
        self._compiled: CompiledForward | None = None
        self._graphs: DecodeGraphs | None = None
        self._vocab_size: int = text_config(model.config).vocab_size
        self._padding = padding_row(num_rows, model.device)
        self._sampler = Sampler(num_rows, self._vocab_size, model.device)
        self._scorer = Scorer(self._vocab_size, model.device)

    @torch.inference_mode()
    def compile(self, mode: str) -> None:
        """From now on computes by compiled graphs, if the model can be compiled; before `capture`.

        The mode is one of torch.compile's.
        """
        model = self._model

        def forward(
            token_ids: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor
        ) -> torch.Tensor:
            logits: torch.Tensor = model(
                input_ids=token_ids, position_ids=positions, use_cache=False, logits_to_keep=kept
            ).logits
            return logits

        compiled = CompiledForward(forward, mode, model.device)
        if compiled.warm_up(self._begin, self._padding, self._num_rows):
            self._compiled = compiled

    @torch.inference_mode()
    def capture(self, device: GraphDevice) -> None:
        """From now on decodes by graphs, if the forward pass can be captured.

        For a backend that reads block tables and lengths from the device, with one row more than
        ours for padding.
        """
        graphs = DecodeGraphs(
            self._forward, device, max_batch_size=self._num_rows, padding=self._padding
        )
        graphs.capture()
        self._graphs = graphs

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Computes the plan's tokens, and samples and scores where it asks for it."""
        parts = prompt_tiles(plan, self._vocab_size, BLOCK_SIZE)
        return read([self._compute(part) for part in parts])  # the step's one synchronisation

    def _compute(self, plan: StepPlan) -> Computed:
        self._rows.update(plan)
        for admission in plan.admissions:
            self._sampler.begin(admission)
            self._scorer.begin(admission)
        self._sampler.observe(plan)
        batch = prepare(plan, self._rows, self._model.device)
        host_rows = [chunk.row for chunk in plan.chunks if chunk.samples]
        logits, vectors = self._logits(batch)  # [N + S, V], [P, D]
        prompt_scores: tuple[Scores, ...] = ()
        if len(logits) > len(host_rows):
            logits, to_score = logits.tensor_split([len(host_rows)])
            prompt_scores = self._scorer.score_prompts(to_score, batch.targets, plan.chunks)
        token_ids = self._sampler.sample(
            logits, batch.sampled_rows, batch.output_indices, host_rows
        )
        asking, scores = self._scorer.score_sampled(logits, token_ids, host_rows)
        return Computed(token_ids, asking, scores, prompt_scores, vectors)

    def _logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The logits of what is kept, and the vectors of what is pooled, if anything is."""
        if len(batch.pooled):
            return self._pool(batch)
        if self._graphs is None or not self._graphs.covers(batch):
            return self._forward(batch), None
        self.backend.begin(batch)
        return self._graphs.run(batch), None

    def _pool(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        self._begin(batch)
        with recorded_states(self._model) as recorded:
            logits = self._stock_forward(batch)
        (states,) = recorded
        return logits, unit(states[0].index_select(0, batch.pooled))

    def _begin(self, batch: Batch) -> None:
        self.backend.begin(batch)
        self._angles.begin(batch)

    def _forward(self, batch: Batch) -> torch.Tensor:
        self._begin(batch)
        if self._compiled is not None:
            return self._compiled(batch)
        return self._stock_forward(batch)

    def _stock_forward(self, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = self._model(
            input_ids=batch.token_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=0 if batch.is_decode else batch.kept,  # 0: all
            backend=self.backend,
        ).logits
        return logits[0]
