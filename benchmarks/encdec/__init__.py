"""The parts of `bench_encdec`: each model's sides, and the turns that they take."""
