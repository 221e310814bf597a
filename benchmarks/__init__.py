"""Measurements: each file says what it measures and against which ceiling."""
