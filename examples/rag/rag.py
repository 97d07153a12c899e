"""Answers a question from documents: embeds, retrieves, reranks and chats, with Galley alone.

    pip install openai qdrant-client
    galley serve EMBEDDER --port 8001 &       # all-MiniLM-L6-v2, bge …
    galley serve RERANKER --port 8002 &       # a cross-encoder; left out: no reranking
    galley serve --port 8000 &                # a model that chats
    python rag.py --documents notes.txt "What does the fox do?"

The documents are the paragraphs of text files. Their vectors are kept in a
local Qdrant collection, in memory or in a folder.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path

import openai
from qdrant_client import QdrantClient, models

PROMPT = """Answer the question from these passages alone.

{passages}

Question: {question}"""


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none")


def model_of(url: str) -> str:
    """The first model of a server."""
    return next(iter(client(url).models.list())).id


def embed(url: str, texts: list[str]) -> list[list[float]]:
    """A vector of each text."""
    answer = client(url).embeddings.create(model=model_of(url), input=texts)
    return [entry.embedding for entry in answer.data]


def open_store(path: str | None) -> QdrantClient:
    return QdrantClient(":memory:") if path is None else QdrantClient(path=path)


def fill(store: QdrantClient, url: str, passages: list[str]) -> None:
    """Embed the passages and keep them."""
    vectors = embed(url, passages)
    size = models.VectorParams(size=len(vectors[0]), distance=models.Distance.COSINE)
    store.create_collection("passages", vectors_config=size)
    points = [
        models.PointStruct(id=i, vector=vector, payload={"text": text})
        for i, (vector, text) in enumerate(zip(vectors, passages, strict=True))
    ]
    store.upsert("passages", points)


def retrieve(store: QdrantClient, url: str, question: str, count: int) -> list[str]:
    """The passages nearest to the question."""
    (vector,) = embed(url, [question])
    found = store.query_points("passages", query=vector, limit=count)
    return [point.payload["text"] for point in found.points if point.payload]


def rerank(url: str, question: str, passages: list[str], count: int) -> list[str]:
    """The passages that answer the question best."""
    body = json.dumps({"query": question, "documents": passages, "top_n": count}).encode()
    request = urllib.request.Request(f"{url}/rerank", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return [result["document"]["text"] for result in json.load(reply)["results"]]


def answer(url: str, question: str, passages: list[str]) -> str:
    content = PROMPT.format(passages="\n\n".join(passages), question=question)
    completion = client(url).chat.completions.create(
        model=model_of(url),
        messages=[{"role": "user", "content": content}],
        temperature=0,
        max_tokens=100,
    )
    return completion.choices[0].message.content or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--documents", type=Path, action="append", required=True)
    parser.add_argument("--embedder", default="http://localhost:8001")
    parser.add_argument("--reranker", help="for instance http://localhost:8002")
    parser.add_argument("--chat", default="http://localhost:8000")
    parser.add_argument("--database", help="a folder; otherwise vectors are kept in memory")
    args = parser.parse_args()
    texts = (path.read_text() for path in args.documents)
    passages = [part.strip() for text in texts for part in text.split("\n\n") if part.strip()]
    store = open_store(args.database)
    fill(store, args.embedder, passages)
    found = retrieve(store, args.embedder, args.question, 20)
    if args.reranker:
        found = rerank(args.reranker, args.question, found, 3)
    found = found[:3]
    print("\n".join(f"- {passage}" for passage in found))
    print(answer(args.chat, args.question, found))


if __name__ == "__main__":
    main()
