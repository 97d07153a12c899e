"""Tests of the distribution in compat/."""
