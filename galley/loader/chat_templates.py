"""The chat templates of a checkpoint: named jinja sources, unparsed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from galley.errors import ModelError
from galley.loader.fields import read_json
from galley.loader.gguf import GGUFFile

MAX_TEMPLATE_BYTES = 4 << 20


def templates_of_gguf(file: GGUFFile) -> dict[str, str]:
    """name → jinja source; "default" is `tokenizer.chat_template`."""
    prefix = "tokenizer.chat_template."
    templates = {
        key.removeprefix(prefix): file.get(key) for key in file.keys if key.startswith(prefix)
    }
    default = file.get("tokenizer.chat_template")
    if default is not None:
        templates["default"] = default
    for name, source in templates.items():
        if not isinstance(source, str):
            raise ModelError(f"{file.path}: chat template {name} is not text")
    return templates


def templates_of_directory(directory: Path) -> dict[str, str]:
    """name → jinja source, from tokenizer_config.json, chat_template.json, chat_template.jinja and
    additional_chat_templates/*.jinja; later ones win, as in Hugging Face's loader."""
    templates: dict[str, str] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = directory / name
        if path.is_file():
            templates |= parse_templates(read_json(path).get("chat_template"), str(path))
    single = directory / "chat_template.jinja"
    if single.is_file():
        templates["default"] = _read(single)
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = _read(path)
    return templates


def parse_templates(value: Any, where: str) -> dict[str, str]:
    """A `chat_template` entry: null, one source, or a list of {"name", "template"}."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
        return dict(value)
    try:
        named = {item["name"]: item["template"] for item in value}
    except (TypeError, KeyError):
        named = {"": None}
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in named.items()):
        raise ModelError(f"{where}: chat_template is neither text nor a list of named templates")
    return named


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise ModelError(f"{path}: larger than {MAX_TEMPLATE_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None
