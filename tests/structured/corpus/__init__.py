"""JSON schemas: written by hand for each feature, and real ones from installed packages."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pydantic

_FOLDER = Path(__file__).parent
#: Package → files with schemas that it ships.
_PACKAGES = {
    "check_jsonschema": "builtin_schemas/**/*.json",
    "cmake": "data/share/**/*schema*.json",
    "jsonschema_specifications": "schemas/draft[467]/metaschema.json",
    "schemathesis": "**/schema.json",
    "scikit_build_core": "resources/*.schema.json",
    "setuptools": "config/*.schema.json",
}
#: Modules with Pydantic models, which SDKs generate from their OpenAPI documents.
_MODELS = ("openai.types.chat", "openai.types.responses", "anthropic.types")
#: Definitions that are taken from one document, beside the document itself.
_DEFINITIONS = 4


@dataclass(frozen=True)
class Case:
    """A schema.

    Attributes:
        refused: the keyword that is not supported; None if the schema must be accepted.
        invalid: whether it is malformed or allows no value, so that it cannot be supported.
    """

    name: str
    schema: Any
    refused: str | None = None
    invalid: bool = False


def hand_written() -> list[Case]:
    """The schemas of the JSON files beside this module."""
    cases = []
    for path in sorted(_FOLDER.glob("*.json")):
        for i, entry in enumerate(json.loads(path.read_text())):
            name = f"{path.stem}[{i}]"
            if isinstance(entry, dict) and entry.keys() & {"refused", "invalid"}:
                keyword = entry.get("refused", entry.get("invalid"))
                cases.append(Case(name, entry["schema"], keyword, "invalid" in entry))
            else:
                cases.append(Case(name, entry))
    return cases


def real() -> list[Case]:
    """Schemas of packages that the tests install: documents, some of their definitions, models."""
    return [*_documents(), *_models()]


def _documents() -> Iterator[Case]:
    for package, pattern in _PACKAGES.items():
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        folder = Path(spec.submodule_search_locations[0])
        for path in sorted(folder.glob(pattern)):
            schema = json.loads(path.read_text())
            name = f"{package}/{path.relative_to(folder)}"
            yield Case(name, schema)
            if '"$ref": "#"' in json.dumps(schema):
                continue  # Its definitions mean the document around them.
            for keyword in ("$defs", "definitions"):
                names = sorted(schema.get(keyword, {}))
                for key in names[:: max(1, len(names) // _DEFINITIONS)][:_DEFINITIONS]:
                    pointer = key.replace("~", "~0").replace("/", "~1").replace(" ", "%20")
                    part = {"$ref": f"#/{keyword}/{pointer}", keyword: schema[keyword]}
                    if "$schema" in schema:
                        part["$schema"] = schema["$schema"]
                    yield Case(f"{name}#{key}", part)


def _models() -> Iterator[Case]:
    for name in _MODELS:
        module = importlib.import_module(name)
        models = [
            (key, value)
            for key, value in sorted(vars(module).items())
            if isinstance(value, type) and issubclass(value, pydantic.BaseModel)
        ]
        for key, model in models[:: max(1, len(models) // 30)]:
            yield Case(f"{name}.{key}", model.model_json_schema())
