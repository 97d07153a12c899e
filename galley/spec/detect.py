"""The method that a drafter is made for, as vLLM finds it: by its name, then by its config."""

from __future__ import annotations

import dataclasses

from galley.config import EngineConfig
from galley.config.speculative import Method, SpeculativeSettings
from galley.loader import resolve_source
from galley.loader.fields import Fields, read_json

#: In the name of a drafter → method, the first that is found.
_IN_NAMES: dict[str, Method] = {"eagle-": "eagle", "eagle3": "eagle3"}
#: model_type of a drafter's config → method.
_TYPES: dict[str, Method] = {"medusa": "medusa", "mlp_speculator": "mlp_speculator"}


def find_method(settings: SpeculativeSettings, config: EngineConfig) -> Method:
    """The method of `settings.model`. Raises ModelError if there is no such model."""
    assert settings.model is not None
    for part, method in _IN_NAMES.items():
        if part in settings.model.lower():
            return method
    model = dataclasses.replace(config.model, model=settings.model, revision=settings.revision)
    path = resolve_source(model, config.load).path / "config.json"
    if not path.is_file():  # a GGUF file
        return "draft_model"
    return _TYPES.get(Fields(read_json(path), str(path)).text("model_type", ""), "draft_model")
