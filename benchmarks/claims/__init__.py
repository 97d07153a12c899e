"""Measurements for each performance claim: `make bench-claims`."""
