"""Measurements of a running program: `python -m benchmarks.NAME`."""
