"""The parts of `load_test`: prompts, arrivals, the client, statistics, report and plots."""
