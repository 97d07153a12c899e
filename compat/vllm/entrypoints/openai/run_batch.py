"""`python -m vllm.entrypoints.openai.run_batch`, the older name of `vllm run-batch`."""

from __future__ import annotations

import sys

from vllm.entrypoints.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run-batch", *sys.argv[1:]]))
