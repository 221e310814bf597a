"""Model families: each executes a StepPlan in its own way."""
