"""Pooling and lengths of checkpoints for sentence-transformers."""

from __future__ import annotations

import json

import pytest

from galley.config.pooling import PoolingSettings
from galley.errors import ModelError
from galley.loader.sentence_transformers import read_longest_text, read_pooling


def write(folder, modules, pooling):
    kinds = [{"idx": i, "path": path, "type": f"st.{kind}"} for i, (kind, path) in modules]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


POOL = (1, ("Pooling", "1_Pooling"))
BODY = (0, ("Transformer", ""))
UNIT = (2, ("Normalize", "2_Normalize"))


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "MEAN"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "CLS"),
        ({"pooling_mode_lasttoken": True}, "LAST"),
        ({"pooling_mode": "cls"}, "CLS"),
        ({}, "MEAN"),
    ],
)
def test_pooling_and_normalisation(tmp_path, config, want) -> None:
    write(tmp_path, [BODY, POOL], config)
    assert read_pooling(tmp_path) == PoolingSettings(want, activate=False)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    (tmp_path / "1_Pooling").rmdir()
    write(tmp_path, [BODY, POOL, UNIT], config)
    assert read_pooling(tmp_path) == PoolingSettings(want, activate=True)


def test_a_checkpoint_without_modules_says_nothing(tmp_path) -> None:
    assert read_pooling(tmp_path) is None
    assert read_longest_text(tmp_path) is None


def test_what_is_not_supported_is_refused(tmp_path) -> None:
    both = {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}
    write(tmp_path, [BODY, POOL, (2, ("LSTM", "2"))], both)
    with pytest.raises(ModelError, match="pooling cls with max is not supported"):
        read_pooling(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"module 2: type is 'st\.LSTM'"):
        read_pooling(tmp_path)
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(ModelError, match="not a JSON list"):
        read_pooling(tmp_path)


def test_longest_text(tmp_path) -> None:
    file = tmp_path / "sentence_bert_config.json"
    file.write_text('{"max_seq_length": 256, "do_lower_case": false}')
    assert read_longest_text(tmp_path) == 256
    file.write_text('{"max_seq_length": null}')
    assert read_longest_text(tmp_path) is None
    file.write_text('{"max_seq_length": 0}')
    with pytest.raises(ModelError, match="max_seq_length is 0"):
        read_longest_text(tmp_path)
