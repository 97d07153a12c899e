"""Prompts that are rendered before they are generated from: `LLM.renderer`."""
