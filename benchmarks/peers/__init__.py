"""Galley beside its peers on one machine: the same workloads, in turn, in one run."""
