"""A package of vLLM's, run by Galley."""
