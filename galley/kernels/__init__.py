"""Kernels: the ops that models call (`ops`), their backends, and packed weights.

    reference     the definitions, in PyTorch
    cpu           native code: record → passes → arena → one call a step (docs/native_ops.md)

A backend (`backend`) holds weights its own way and makes a model executable. Knows no model,
no checkpoint and no request.
"""
