"""Layers: attention, linear, norm, rotary, embedding, gated MLP, and where their weights come from.

Each is built from a `weights.WeightSource` and called with an `Ops`. Knows no model family, no
checkpoint format and no backend.
"""
