"""Clients of embeddings and reranking as their users use them:
python embeddings_client.py EMBEDDER RERANKER MODEL"""

import sys

import cohere
import litellm
import numpy as np
import openai
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

EMBEDDER, RERANKER, MODEL = sys.argv[1:4]
TEXTS = ["the quick fox runs", "the lazy dog sleeps"]
QUERY = "what does the fox do"

client = openai.OpenAI(base_url=f"{EMBEDDER}/v1", api_key="none")
answer = client.embeddings.create(model=MODEL, input=TEXTS)
vectors = np.array([entry.embedding for entry in answer.data])
floats = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
assert [entry.embedding for entry in floats.data] == vectors.tolist()
assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0, answer.usage
np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
assert abs(vectors[0] @ vectors[1]) < 0.999


def same(got: list[list[float]]) -> None:
    np.testing.assert_allclose(got, vectors, atol=1e-6)


chain = OpenAIEmbeddings(
    model=MODEL, base_url=f"{EMBEDDER}/v1", api_key="none", check_embedding_ctx_length=False
)
same(chain.embed_documents(TEXTS))
same([chain.embed_query(text) for text in TEXTS])

index = OpenAILikeEmbedding(model_name=MODEL, api_base=f"{EMBEDDER}/v1", api_key="none")
same(index.get_text_embedding_batch(TEXTS))
same([index.get_query_embedding(text) for text in TEXTS])

light = litellm.embedding(model=f"hosted_vllm/{MODEL}", input=TEXTS, api_base=f"{EMBEDDER}/v1")
same([entry["embedding"] for entry in light.data])

co = cohere.ClientV2(api_key="none", base_url=EMBEDDER)
embedded = co.embed(
    model=MODEL, texts=TEXTS, input_type="search_document", embedding_types=["float"]
)
same(embedded.embeddings.float_)

ranker = cohere.ClientV2(api_key="none", base_url=RERANKER)
ranked = ranker.rerank(model=MODEL, query=QUERY, documents=TEXTS, top_n=2)
scores = {result.index: result.relevance_score for result in ranked.results}
assert set(scores) == {0, 1}, ranked
assert [r.relevance_score for r in ranked.results] == sorted(scores.values(), reverse=True)

other = litellm.rerank(
    model=f"hosted_vllm/{MODEL}", query=QUERY, documents=TEXTS, top_n=1, api_base=RERANKER
)
best = other.results[0]
assert len(other.results) == 1, other
assert abs(best["relevance_score"] - scores[best["index"]]) < 1e-6, other
assert best["relevance_score"] == max(scores.values()), other
print("embeddings: fine")
