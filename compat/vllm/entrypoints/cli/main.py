"""The command `vllm`: Galley's commands under vLLM's name."""

from __future__ import annotations

import sys

from galley.cli.main import main as galley


def main(argv: list[str] | None = None) -> int:
    return galley(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
