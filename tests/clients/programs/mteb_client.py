"""An mteb task of data made here, by sentence-transformers and by a server of the same model:
python mteb_client.py EMBEDDER MODEL FOLDER TEXT_FILE

Pairs are sentences of the file, and the same with some of their words taken from another one; their
score is the share of words that are left.
"""

import random
import re
import sys
from pathlib import Path

import datasets
import mteb
import numpy as np
import openai
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers import SentenceTransformer

EMBEDDER, MODEL, FOLDER, TEXT = sys.argv[1:5]
PAIRS = 400


def pairs() -> dict[str, list]:
    text = re.sub(r"[`*|#\[\]()]", " ", Path(TEXT).read_text())
    sentences = [s.split() for s in re.split(r"(?<=[.:])\s", text) if 6 <= len(s.split()) <= 40]
    rng = random.Random(0)
    rows: dict[str, list] = {"sentence1": [], "sentence2": [], "score": []}
    for _ in range(PAIRS):
        words, other = rng.choice(sentences), rng.choice(sentences)
        kept = rng.random()
        mixed = [word if rng.random() < kept else rng.choice(other) for word in words]
        rows["sentence1"].append(" ".join(words))
        rows["sentence2"].append(" ".join(mixed))
        rows["score"].append(5 * sum(map(str.__eq__, words, mixed)) / len(words))
    return rows


class MixedSentences(AbsTaskSTS):
    metadata = TaskMetadata(
        name="MixedSentences",
        description="Sentences with words of others",
        dataset={"path": "made/here", "revision": "1"},
        type="STS",
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="cosine_spearman",
    )

    def load_data(self, *args: object, **kwargs: object) -> None:
        self.dataset = datasets.DatasetDict(test=datasets.Dataset.from_dict(pairs()))
        self.data_loaded = True


class Served(SentenceTransformer):
    """The model, with vectors of the server."""

    def encode(self, sentences, **kwargs):  # type: ignore[no-untyped-def]
        client = openai.OpenAI(base_url=f"{EMBEDDER}/v1", api_key="none")
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        found: list[list[float]] = []
        for at in range(0, len(texts), 64):
            answer = client.embeddings.create(model=MODEL, input=texts[at : at + 64])
            found += [entry.embedding for entry in answer.data]
        return np.array(found, np.float32)


def score(model: SentenceTransformer) -> float:
    result = mteb.evaluate(model, MixedSentences(), cache=None, co2_tracker=False)
    return float(result.task_results[0].get_score())


theirs = score(SentenceTransformer(FOLDER, device="cpu"))
ours = score(Served(FOLDER, device="cpu"))
print(f"sentence-transformers {theirs:.5f}, served {ours:.5f}")
assert 0.3 < theirs < 0.999, theirs
assert abs(theirs - ours) < 0.0005, (theirs, ours)
print("mteb: fine")
