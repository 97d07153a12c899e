"""Classifiers made of rows of a language model's head: `classifier_from_token` of config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from galley.errors import ModelError
from galley.loader.fields import Fields, read_json


def with_classifier_tokens(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """`config` with the numbers of the tokens that `classifier_from_token` names, in
    `classifier_token_ids`, and the number of labels that they make.

    Two tokens make one label, whose number is that of the second less that of the first, unless
    `method` is "no_post_processing"; otherwise each token is a label.

    Raises ModelError for a token that the vocabulary lacks.
    """
    tokens = config.get("classifier_from_token")
    if not tokens:
        return config
    where = f"{directory}: classifier_from_token"
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ModelError(f"{where} must be a list of tokens")
    usual = "from_2_way_softmax" if len(tokens) == 2 else "no_post_processing"
    method = config.get("method") or usual
    if method not in ("from_2_way_softmax", "no_post_processing"):
        raise ModelError(f"{directory}: method {method!r} is not supported")
    if method == "from_2_way_softmax" and len(tokens) != 2:
        raise ModelError(f"{where}: from_2_way_softmax needs two tokens")
    ids = [_token_id(directory, token, where) for token in tokens]
    labels = 1 if method == "from_2_way_softmax" else len(ids)
    return {**config, "classifier_token_ids": ids, "num_labels": labels}


def _token_id(directory: Path, token: str, where: str) -> int:
    path = directory / "tokenizer.json"
    tokenizer = Fields(read_json(path), str(path))
    vocabulary = Fields(tokenizer.table("model"), str(path)).table("vocab")
    added = {entry["content"]: entry["id"] for entry in tokenizer.values.get("added_tokens") or ()}
    found = added.get(token, vocabulary.get(token))
    if not isinstance(found, int):
        raise ModelError(f"{where}: the vocabulary has no token {token!r}")
    return found
