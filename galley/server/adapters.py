"""The adapters that a server offers by name, alike in all its API servers.

    adapters/registry.json      name → path, load number, base model; replaced as a whole
    adapters/registry.lock      held while it is changed
    adapters/12345…             a packed adapter (`lora.store`); each process that offers it or has
                                a request with it holds a shared lock

An adapter that is loaded, replaced or unloaded by one process is so for the next request to any.
A process closes a packed adapter when it offers it no more and its last request has ended. The next
time that it looks an adapter up, it removes the file, under the lock, unless another process has it
locked.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from galley.config.server import LoRAModule
from galley.errors import ConfigError, InvalidRequest, ModelError, NotFound
from galley.request import Adapter, LoRARequest

if TYPE_CHECKING:
    from galley.frontend.adapters import AdapterLoader

log = logging.getLogger(__name__)

#: Longest name of an adapter.
MAX_NAME = 256
#: Most adapters that are offered at once.
MAX_ADAPTERS = 10_000


class Entry(msgspec.Struct, frozen=True):
    """An adapter of the registry.

    Attributes:
        number: of its name, from 1 (`lora_int_id`).
        base: --lora-modules' base_model_name.
    """

    path: str
    load: int
    number: int
    base: str | None = None


class Registry(msgspec.Struct):
    """All adapters by name, in the order in which they were first loaded."""

    entries: dict[str, Entry] = {}
    last_number: int = 0


class Resolver(Protocol):
    """Finds adapters that have not been loaded."""

    async def find(self, name: str) -> Path | None:
        """The folder of the adapter with this name; None if this one knows none."""


class ServedAdapters:
    """See the module.

    Args:
        loader: reads adapters into the folder.
        reserved: names that no adapter may have: those of the model.
        resolvers: are asked, in order, for names that are not loaded.
    """

    def __init__(
        self, loader: AdapterLoader, reserved: Sequence[str], resolvers: Sequence[Resolver] = ()
    ) -> None:
        self._loader = loader
        self._folder = loader.folder.path
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._reserved = frozenset(reserved)
        self._resolvers = tuple(resolvers)
        self._path = self._folder / "registry.json"
        self._seen: tuple[int, int, int] | None = None
        self._registry = Registry()
        self._adapters: dict[str, Adapter] = {}
        self._by_load: weakref.WeakValueDictionary[int, Adapter] = weakref.WeakValueDictionary()
        self._released: list[int] = []  # loads that are needed no more
        self._resolving: dict[str, asyncio.Task[bool]] = {}

    # ------------------------------------------------------------------ by name

    def find(self, name: str) -> Adapter | None:
        """The adapter with this name, as it is loaded now."""
        self._refresh()
        return self._adapters.get(name)

    def name_of(self, load: int) -> str:
        """The name of an adapter in use; of one that has two, either."""
        adapter = self._by_load.get(load)
        return "" if adapter is None else adapter.lora_request.lora_name

    @property
    def entries(self) -> dict[str, Entry]:
        """All adapters by name."""
        self._refresh()
        return self._registry.entries

    async def resolve(self, name: str) -> bool:
        """Load the adapter with this name if a resolver finds it; requests for one name wait for
        the same attempt. Raises InvalidRequest for one that is found and cannot be used."""
        if not self._resolvers or _wrong_name(name):
            return False
        task = self._resolving.get(name)
        if task is None:
            task = self._resolving[name] = asyncio.ensure_future(self._resolve(name))
            task.add_done_callback(lambda _: self._resolving.pop(name, None))
        return await asyncio.shield(task)

    async def _resolve(self, name: str) -> bool:
        for resolver in self._resolvers:
            path = await resolver.find(name)
            if path is not None:
                await self.load(name, str(path), inplace=True)
                return True
        return False

    # ------------------------------------------------------------------ changes

    async def load(
        self, name: str, path: str, inplace: bool = False, base: str | None = None
    ) -> None:
        """Offer an adapter. Requests in flight keep the weights that they began with.

        Args:
            inplace: replace the one with this name.

        Raises:
            InvalidRequest: the name is taken or not allowed, or the adapter cannot be used.
            NotFound: there is no such folder or file.
        """
        if wrong := _wrong_name(name):
            raise InvalidRequest(wrong, field="lora_name")
        if name in self._reserved:
            raise InvalidRequest(f"The model itself is called '{name}'.", field="lora_name")
        if self.find(name) is not None and not inplace:
            raise _taken(name)
        await asyncio.to_thread(self._load, name, path, inplace, base)
        self._refresh()

    def load_static(self, module: LoRAModule) -> None:
        """Offer an adapter of --lora-modules, unless another process has done so.

        Raises ConfigError for one that cannot be used.
        """
        name = module.name
        if self.find(name) is not None:
            return
        if wrong := _wrong_name(name):
            raise ConfigError(f"--lora-modules: {wrong}", field="lora_modules")
        if name in self._reserved:
            raise ConfigError(
                f"--lora-modules: the model itself is called {name!r}.", field="lora_modules"
            )
        try:
            self._load(name, module.path, True, module.base_model_name)
        except (InvalidRequest, NotFound) as error:
            raise ConfigError(
                f"--lora-modules {name}: {error.message}", field="lora_modules"
            ) from None
        self._refresh()

    async def unload(self, name: str) -> None:
        """Offer an adapter no more. Raises NotFound."""
        with self._changing() as registry:
            if name not in registry.entries:
                raise NotFound(
                    f"The lora adapter '{name:.256}' cannot be found.", field="lora_name"
                )
            del registry.entries[name]
        self._refresh()

    def _load(self, name: str, path: str, inplace: bool, base: str | None) -> None:
        """Read the adapter and write it to the registry. In a thread."""
        place = Path(path).expanduser()
        if not (place.is_dir() or place.is_file()):
            raise NotFound(f"No adapter found for '{path:.500}'.", field="lora_path")
        try:
            adapter = self._loader.read(place)
        except ModelError as error:
            raise InvalidRequest(error.message, field="lora_path") from None
        # The event loop may wait for the lock, so the file is written before.
        with self._loader.folder.written(adapter) as add, self._changing() as registry:
            known = registry.entries.get(name)
            if known is not None and not inplace:
                raise _taken(name)
            if len(registry.entries) >= MAX_ADAPTERS:
                raise InvalidRequest(f"{MAX_ADAPTERS} adapters are loaded already.")
            number = registry.last_number + 1 if known is None else known.number
            registry.last_number = max(registry.last_number, number)
            registry.entries[name] = Entry(path, add(), number, base)

    # ------------------------------------------------------------------ files

    @contextmanager
    def _changing(self) -> Iterator[Registry]:
        """The registry as it is, which is written back unless the block raises."""
        with self._locked():
            registry = self._read()
            yield registry
            fd, part = tempfile.mkstemp(dir=self._folder, suffix=".part")
            with os.fdopen(fd, "wb") as file:
                file.write(msgspec.json.encode(registry))
            Path(part).rename(self._path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "registry.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> Registry:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Registry)
        except FileNotFoundError:
            return Registry()

    def _refresh(self) -> None:
        """Take over what other processes have changed. In the thread of the event loop."""
        if self._released:
            self._sweep()
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return
        state = stat.st_ino, stat.st_mtime_ns, stat.st_size
        if state == self._seen:
            return
        with self._locked():
            self._registry = self._read()
            entries = self._registry.entries
            before, self._adapters = self._adapters, {}
            for name, entry in entries.items():
                self._adapters[name] = self._adapter_of(name, entry, before.get(name))
        self._seen = state

    def _adapter_of(self, name: str, entry: Entry, before: Adapter | None) -> Adapter:
        request = LoRARequest(name, entry.number, entry.path, entry.base)
        if before is not None and (before.load, before.lora_request) == (entry.load, request):
            return before
        adapter = Adapter(entry.load, request)
        self._by_load[entry.load] = adapter
        lease = _lease(self._folder / str(entry.load))
        weakref.finalize(adapter, _release, lease, entry.load, self._released)
        return adapter

    def _sweep(self) -> None:
        """Remove the files of adapters that are offered no more and whose requests have ended."""
        with self._locked():
            offered = {entry.load for entry in self._read().entries.values()}
            while self._released:
                load = self._released.pop()
                if load not in offered:
                    _remove_unlocked(self._folder / str(load))


def _taken(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in "
        "place, set 'load_inplace' to True.",
        field="lora_name",
    )


def _lease(path: Path) -> int:
    """A file that is open and locked, so that no other process removes it."""
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def _release(lease: int, load: int, released: list[int]) -> None:
    """Close an adapter's file. It is removed later: the registry may be locked by the caller."""
    os.close(lease)
    released.append(load)


def _remove_unlocked(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _wrong_name(name: str) -> str | None:
    """The reason why a text cannot be an adapter's name."""
    if not name:
        return "an adapter needs a name."
    if len(name) > MAX_NAME or not name.isprintable():
        return f"an adapter's name has at most {MAX_NAME} printable characters."
    return None
