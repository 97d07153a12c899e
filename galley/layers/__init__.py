"""Layers: attention, linear, norm, rotary, embedding, gated MLP, and the source of their weights.

A layer is described by a frozen spec, built from a `weights.WeightSource` and called with an
`Ops`. Knows no model family, no checkpoint format and no backend.
"""
