"""The stages of `bench_gpu`: each module yields the rows of one."""
