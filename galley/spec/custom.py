"""custom_class: a proposer of the user's own, named module.Class.

The class is made with the settings and the number of slots, and has what `Proposer` says.
"""

from __future__ import annotations

from importlib import import_module

from galley.config.speculative import SpeculativeSettings
from galley.errors import ConfigError
from galley.spec.proposer import Proposer, Target


def make(settings: SpeculativeSettings, target: Target) -> Proposer:
    """Raises ConfigError where there is no such class, or it is no proposer."""
    assert settings.model is not None
    module, _, name = settings.model.rpartition(".")
    try:
        proposer = getattr(import_module(module), name)(settings, target.num_slots)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"--speculative-config.model {settings.model!r} cannot be loaded: {error}",
            field="speculative_config",
        ) from error
    parts = ("width", "memory", "is_free", "enter", "leave", "propose", "stepped")
    missing = [part for part in parts if not hasattr(proposer, part)]
    if missing:
        raise ConfigError(
            f"--speculative-config.model {settings.model!r} has no {', '.join(missing)}.",
            field="speculative_config",
        )
    made: Proposer = proposer
    return made
