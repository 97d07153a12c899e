"""How the examples show vectors."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["print_embeddings"]


def print_embeddings(embeds: Sequence[float], prefix: str = "Embeddings") -> None:
    """Print the first numbers of a vector and their count."""
    shown = f"{str(list(embeds[:4]))[:-1]}, ...]" if len(embeds) > 4 else embeds
    print(f"{prefix}: {shown} (size={len(embeds)})")
