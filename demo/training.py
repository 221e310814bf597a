"""What both trainings share: the plan and the optimizers."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train."""

    seed: int
    num_steps: int
    num_threads: int
    examples_per_step: int = 32
    num_warmup_steps: int = 60
    peak_learning_rate: float = 3e-3


class Optimizers:
    """Muon for the layers' matrices, AdamW for the rest."""

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        matrices: list[torch.nn.Parameter],
        others: list[torch.nn.Parameter],
        plan: TrainingPlan,
    ) -> None:
        """`parameters` are all of the model's, in its order."""
        self._plan = plan
        self._parameters = parameters
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def step(self, index: int) -> None:
        """Follow the gradients, at the rate of this step of the plan."""
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._plan.peak_learning_rate * rate_factor(index, self._plan)
            optimizer.step()


def rate_factor(index: int, plan: TrainingPlan) -> float:
    """Of the peak rate: up over the warm-up, then straight down to nothing at the end."""
    warmup = (index + 1) / plan.num_warmup_steps
    remaining = (plan.num_steps - index) / (plan.num_steps - plan.num_warmup_steps)
    return min(warmup, remaining, 1.0)
