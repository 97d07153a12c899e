"""Runs steps: loads a model, sizes its KV cache, executes plans and samples.

Knows one device and no request policy: what to compute is in the plan, and what the runner keeps
between plans is its own `RequestTable`, kept equal to the scheduler's by plans and results alone.
"""
