"""The recipe of docs/evaluation.md: lm-eval runs a task of one's own against a server and finds the
accuracy that the server's log-probabilities give (`make check-lm-eval`, which installs it in
build/lm-eval; checklist 85)."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx

from benchmarks.served import MODEL, ROOT, SMALL, Server, serve

PROGRAM = ROOT / "build" / "lm-eval" / "bin" / "lm_eval"
PAGE = (ROOT / "docs" / "evaluation.md").read_text()
#: A question, the choice that counts as right, another one. The last two are for mistakes.
TEXTS = (
    ("Water is", "wet", "seven"),
    ("The capital of France is", "Paris", "purple"),
    ("Two and two are", "four", "clouds"),
    ("Grass is", "green", "Monday"),
    ("The opposite of hot is", "cold", "spoon"),
    ("Cats and", "dogs", "therefore"),
    ("Once upon a", "sulphur", "time"),
    ("A week has seven", "oceans", "days"),
)
ROWS = [{"question": text, "choices": choices, "answer": 0} for text, *choices in TEXTS]


def loglikelihood(server: Server, question: str, choice: str) -> float:
    """Of the choice after the question."""

    def asked(prompt: str) -> Any:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        return answer.json()["choices"][0]["logprobs"]["token_logprobs"]

    return float(sum(asked(f"{question} {choice}")[len(asked(question)) :]))


def test_the_recipe(tmp_path: Path) -> None:
    [task] = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
    [command] = re.findall(r"^lm_eval (.*?)\n```", PAGE, re.M | re.S)
    (tmp_path / "local_choice.yaml").write_text(task)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with serve("--enable-tokenizer-info-endpoint", *SMALL) as server:
        words = command.replace("\\\n", " ").replace("http://localhost:8000", server.url)
        given = words.replace("model=NAME", f"model={MODEL}").split()
        done = subprocess.run(
            [PROGRAM, *given, "--output_path", tmp_path / "out"],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        right = 0
        for row in ROWS:
            scores = [loglikelihood(server, row["question"], c) for c in row["choices"]]
            right += scores.index(max(scores)) == row["answer"]
    [found] = (tmp_path / "out").rglob("results*.json")
    accuracy = json.loads(found.read_text())["results"]["local_choice"]["acc,none"]
    assert 0 < right < len(ROWS)
    assert accuracy == right / len(ROWS)
