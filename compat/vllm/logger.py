"""The logger of a module."""

from logging import getLogger as init_logger

__all__ = ["init_logger"]
