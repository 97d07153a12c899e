"""Reading an adapter's files as a whole."""

from __future__ import annotations

from pathlib import Path

from galley.errors import ModelError

#: Headers and padding.
_SPARE_BYTES = 16 * 2**20


def read_whole(path: Path, most_bytes: int) -> bytes:
    """The contents of a file; one that is written to later changes nothing.

    Args:
        most_bytes: of an adapter of the model in float32.

    Raises:
        ModelError: it is larger, or cannot be read.
    """
    try:
        check_size(path, path.stat().st_size, most_bytes)
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None


def check_size(path: Path, size: int, most_bytes: int) -> None:
    """Raises ModelError for an adapter of more bytes than one of the model has."""
    if size > most_bytes + _SPARE_BYTES:
        raise ModelError(
            f"{path}: has {size} bytes; an adapter of this model has at most "
            f"{most_bytes} with this --max-lora-rank"
        )
