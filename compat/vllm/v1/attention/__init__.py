"""The model on the processor."""
