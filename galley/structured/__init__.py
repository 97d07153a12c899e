"""Structured output: what an answer's text must be, as masks of the tokens that may come next.

    StructuredOutputsParams ── check ──▶ Constraint ── compile ──▶ Grammar ──▶ Matcher per sequence
         (front end: normalised, or refused)         (engine: a thread, cached)

The libraries that make masks are backends (`backend.py`, an open set), imported when a request
needs one.
"""
