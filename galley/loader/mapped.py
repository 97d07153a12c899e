"""Read-only mappings of checkpoint files."""

from __future__ import annotations

import mmap
from pathlib import Path

from galley.errors import ModelError


def mapped(path: Path) -> mmap.mmap:
    """Map a whole file. Raises ModelError if it is empty or cannot be read."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise ModelError(f"{path}: the file is empty") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
