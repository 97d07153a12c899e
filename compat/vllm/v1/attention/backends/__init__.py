"""Attention has one backend, the native kernels."""
