"""A runner that fails as planned: behind the seam where a real one raises, hangs or says NaN."""

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer as Vocabulary

from gpu_worker.runner import Runner
from scheduler.plan import NO_TOKEN, StepPlan, StepResult
from shared.config import WorkerConfig
from tests.reliability.faults import At, Do, FaultPlan, perform


def vocabulary_of(config: WorkerConfig) -> Vocabulary:
    """What the served model's tokens say."""
    return Vocabulary.from_file(str(Path(config.model.path) / "tokenizer.json"))


class FaultyRunner:
    """Knows each sequence by the text of its prompt."""

    def __init__(self, runner: Runner, plan: FaultPlan, vocabulary: Vocabulary) -> None:
        self._runner = runner
        self._plan = plan
        self._vocabulary = vocabulary
        self._prompts: dict[int, str] = {}  # by row

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step, or does what is planned for one of its sequences."""
        for admission in plan.admissions:
            prompt = admission.token_ids[: admission.num_prompt_tokens]
            self._prompts[admission.row] = self._vocabulary.decode(list(prompt))
        for chunk in plan.chunks:
            self._plan.strike(At.STEP, self._prompts[chunk.row], chunk.output_index)
        return self._sampled(plan, self._runner.execute(plan))

    def _sampled(self, plan: StepPlan, result: StepResult) -> StepResult:
        token_ids = list(result.token_ids)
        for number, chunk in enumerate(chunk for chunk in plan.chunks if chunk.samples):
            fault = self._plan.due(At.SAMPLE, self._prompts[chunk.row], chunk.output_index)
            if fault is not None and fault.do is Do.NAN:
                token_ids[number] = NO_TOKEN
            elif fault is not None:
                perform(fault)
        return replace(result, token_ids=tuple(token_ids))
