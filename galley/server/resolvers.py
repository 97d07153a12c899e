"""Adapters that are loaded when a request first names them (vLLM's resolvers).

With VLLM_ALLOW_RUNTIME_LORA_UPDATING=1: folders of VLLM_LORA_RESOLVER_CACHE_DIR by name, and
plugins: entry points of the group `galley.lora_resolvers` are called without arguments and give an
object with `async find(name) -> Path | None`. VLLM_PLUGINS, a list with commas, names those that
are used; the folders' one is called lora_filesystem_resolver.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path

from galley.errors import ConfigError
from galley.server.adapters import Resolver

GROUP = "galley.lora_resolvers"
FILESYSTEM = "lora_filesystem_resolver"


class FolderResolver:
    """Subfolders of a folder, by name, or its files NAME.gguf.

    Raises ConfigError where there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"VLLM_LORA_RESOLVER_CACHE_DIR: {folder} is not a folder.")
        self._folder = folder

    async def find(self, name: str) -> Path | None:
        # A name is that of a folder, never a path that leads out of it.
        if name in (".", "..") or Path(name).name != name or "\\" in name:
            return None
        path = self._folder / name
        if (path / "adapter_config.json").is_file():
            return path
        file = self._folder / f"{name}.gguf"
        return file if file.is_file() else None


def open_resolvers(env: Mapping[str, str]) -> list[Resolver]:
    """The resolvers that the environment asks for. Raises ConfigError."""
    return list(_resolvers(env))


def _resolvers(env: Mapping[str, str]) -> Iterator[Resolver]:
    wanted = env.get("VLLM_PLUGINS")
    names = None if wanted is None else {name.strip() for name in wanted.split(",")}

    def is_used(name: str) -> bool:
        return names is None or name in names

    folder = env.get("VLLM_LORA_RESOLVER_CACHE_DIR")
    if folder and is_used(FILESYSTEM):
        yield FolderResolver(Path(folder).expanduser())
    for point in entry_points(group=GROUP):
        if is_used(point.name):
            try:
                resolver: Resolver = point.load()()
            except Exception as error:
                raise ConfigError(f"the LoRA resolver {point.name}: {error}") from error
            yield resolver
