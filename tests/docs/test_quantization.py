"""docs/quantization.md lists the methods and GGUF types that run, and no method that does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from galley.config.registries import ONLINE_METHODS
from galley.errors import ModelError
from galley.quant import FORMATS, scheme_of
from galley.quant.schemes import METHODS
from galley.runner.kv_format import FORMATS as KV_FORMATS
from tests.quant.twins import model_info

PAGE = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")}
ROWS = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]*) \|", PAGE.partition("\n## ")[0], re.MULTILINE))


def test_every_method_has_a_row():
    assert set(ROWS) == set(METHODS)


def test_every_gguf_type_is_named():
    types = {"BF16"} | {name for name in FORMATS if name.isupper()}
    assert set(ROWS["gguf"].split()) == types


def test_online_methods_and_kv_formats_are_named():
    named = set(re.findall(r"`(\w+)`", SECTIONS["Online quantisation"]))
    assert set(ONLINE_METHODS) <= named
    named = set(re.findall(r"`(\w+)`", SECTIONS["KV cache"]))
    assert {"auto", *KV_FORMATS} <= named


def test_methods_that_are_named_as_refused_are():
    sentence = re.search(r"Checkpoints of other methods \(([^)]*)\)", PAGE)
    methods = re.findall(r"`([\w-]+)`", sentence[1])
    assert len(methods) > 4
    for method in methods:
        with pytest.raises(
            ModelError, match=f"quantized by {method} are not supported; auto-round, "
        ):
            scheme_of(model_info({"quant_method": method}))
