"""A server whose model is a formula: every room is real but the mathematics of the worker."""
