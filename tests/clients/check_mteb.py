"""An mteb task over the real all-MiniLM-L6-v2 gives the score of sentence-transformers, to the
third digit (`make check-mteb`, which installs both and the model in build/mteb)."""

from __future__ import annotations

import os
import subprocess

from benchmarks.served import ROOT, serve

MTEB = ROOT / "build" / "mteb"
PROGRAM = ROOT / "tests" / "clients" / "programs" / "mteb_client.py"
TEXT = ROOT / "docs" / "architecture.md"


def test_score_of_a_task() -> None:
    model = str(MTEB / "minilm")
    with serve(model, "--served-model-name", "m", "--kv-cache-memory-bytes", "64m") as server:
        done = subprocess.run(
            [MTEB / "bin" / "python", PROGRAM, server.url, "m", model, TEXT],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.rstrip().endswith("mteb: fine"), done.stdout
    print(done.stdout)
