"""Compares Galley with other engines on one machine: same workloads, alternating, in one run."""
