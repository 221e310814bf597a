"""Decoder-only models: a step's tokens, flattened to one row, go through the stock forward pass.

Whatever the batch, a step is one forward pass, or a few where it scores much of a prompt, and one
transfer to the host: of sampled ids, and of the logprobs that were asked for. The ids stay on the
device, too, so that the next forward pass can be launched before the host knows them. Sampling is a
launch of its own, which comes once the host knows all that the settings ask it for.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from gpu_worker.architectures import text_config
from gpu_worker.attention.backend import AttentionBackend
from gpu_worker.batch import Batch, Rows, prepare
from gpu_worker.compiled import CompiledForward, Report, batch_of
from gpu_worker.cuda_graphs import DecodeGraphs, GraphDevice, padding_row
from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.linears.lazy_logits import LazyLogits
from gpu_worker.linears.native import NativeLinear
from gpu_worker.logprobs import Computed, Results, Scorer, Scores, prompt_tiles
from gpu_worker.paged_attention import bind
from gpu_worker.pooling import recorded_states, unit
from gpu_worker.rope import SequenceAngles
from gpu_worker.sampler import Sampler
from gpu_worker.step_times import FORWARD, PREPARE, SAMPLE, StepTimes
from scheduler.plan import StepPlan, StepResult


class _Forward(NamedTuple):
    """A forward pass that has been launched."""

    plan: StepPlan
    batch: Batch
    logits: torch.Tensor  # [N + S, V]
    vectors: torch.Tensor | None  # [P, D]


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
        self.times = StepTimes()  # the step loop's, too
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
        self._last_ids = torch.zeros(num_rows, dtype=torch.long, device=model.device)  # by row

    @torch.inference_mode()
    def compile(self, mode: str, report: Report) -> None:
        """From now on computes by compiled graphs, if the model can be compiled; before `capture`.

        The mode is one of torch.compile's; `report` is told of each graph.
        """
        model = self._model

        def forward(
            token_ids: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor
        ) -> torch.Tensor:
            logits: torch.Tensor = model(
                input_ids=token_ids, position_ids=positions, use_cache=False, logits_to_keep=kept
            ).logits
            return logits

        compiled = CompiledForward(forward, mode, model.device, self._lazy_head())
        if compiled.warm_up(self._begin, self._padding, self._num_rows, report):
            self._compiled = compiled

    def _lazy_head(self) -> NativeLinear | None:
        """The output layer, if it is lazy and stock code gives its logits on as they are."""
        head = self._model.get_output_embeddings()
        if not isinstance(head, NativeLinear):
            return None
        logits = self._forward(batch_of(self._padding, 1))
        return head if isinstance(logits, LazyLogits) else None

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

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes the plan's tokens, and samples and scores where it asks for it."""
        flight = self.launch(plan)
        flight.sample({})
        return flight.result()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> "CausalFlight":
        """See `LaunchingRunner`."""
        *parts, last = prompt_tiles(plan, self._vocab_size, BLOCK_SIZE)
        computed = [self.sample(self.forward(part), {}) for part in parts]
        return CausalFlight(self, computed, self.forward(last))

    def forward(self, plan: StepPlan) -> _Forward:
        """Launches a forward pass of the plan's tokens, up to the logits."""
        self._rows.update(plan)
        for admission in plan.admissions:
            self._sampler.begin(admission)
            self._scorer.begin(admission)
        batch = prepare(plan, self._rows, self._model.device)
        if plan.is_ahead:
            self._feed(batch)
        self.times.mark(PREPARE)
        logits, vectors = self._logits(batch)
        self.times.mark(FORWARD)
        return _Forward(plan, batch, logits, vectors)

    def _feed(self, batch: Batch) -> None:
        """Puts what the step before sampled in the place of PENDING."""
        token_ids = batch.token_ids[0, : batch.num_decodes]
        last = self._last_ids.index_select(0, batch.span_rows[: batch.num_decodes])
        token_ids.copy_(torch.where(token_ids < 0, last, token_ids))

    @torch.inference_mode()
    def sample(self, forward: _Forward, fed: Mapping[int, int]) -> Computed:
        """Launches the sampling; `fed` is what the step before sampled, by row, if that is fed."""
        plan, batch, logits, vectors = forward
        self._sampler.observe(plan.fed(fed))
        host_rows = [chunk.row for chunk in plan.chunks if chunk.samples]
        prompt_scores: tuple[Scores, ...] = ()
        if len(logits) > len(host_rows):
            logits, to_score = logits.tensor_split([len(host_rows)])
            prompt_scores = self._scorer.score_prompts(to_score, batch.targets, plan.chunks)
        token_ids = self._sampler.sample(
            logits, batch.sampled_rows, batch.output_indices, host_rows
        )
        self._last_ids.index_copy_(0, batch.sampled_rows, token_ids.clamp(min=0))
        asking, scores = self._scorer.score_sampled(logits, token_ids, host_rows)
        self.times.mark(SAMPLE)
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
        return logits.first() if isinstance(logits, LazyLogits) else logits[0]


class CausalFlight:
    """A step that has been launched; see `Flight`."""

    def __init__(self, runner: CausalLM, computed: list[Computed], last: _Forward) -> None:
        self._runner = runner
        self._computed = computed  # all passes of the step but the last
        self._last: _Forward | None = last  # until it is sampled: its logits are large
        self._results: Results | None = None

    @torch.inference_mode()
    def sample(self, fed: Mapping[int, int]) -> None:
        """See `Flight`; the ids are on their way to the host before anything else is launched."""
        last, self._last = self._last, None
        assert last is not None, "a step is sampled once"
        self._results = Results([*self._computed, self._runner.sample(last, fed)])

    def result(self) -> StepResult:
        """See `Flight`: the step's one synchronisation."""
        assert self._results is not None, "sample comes first"
        return self._results.read()
