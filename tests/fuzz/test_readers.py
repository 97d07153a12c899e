"""Hostile model files: a thousand of the million that `readers` reads, and what has failed."""

from __future__ import annotations

import copy
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from galley.errors import GalleyError, InvalidRequest, ModelError
from galley.loader.ggml_types import GGML_TYPES
from galley.loader.safetensors import DTYPES
from galley.runner.packed_file import PackedFile
from galley.text import load_tokenizer
from tests.fuzz.readers.run import Bench
from tests.fuzz.readers.seeds import FAMILIES, GGUF_FAMILIES, W8A8, all_seeds
from tests.fuzz.readers.targets import TARGETS

ROOT = Path(__file__).parents[2]
INPUTS = 1000
HUGE = 2**53
DEEP: Any = 1
for _ in range(900):
    DEEP = [DEEP]

#: Values of config.json that readers have failed at.
CONFIGS: dict[str, dict[str, Any]] = {
    "layers without number": {"num_hidden_layers": HUGE},
    "positions without number": {"max_position_embeddings": HUGE},
    "a table of all positions there are": {"max_position_embeddings": 2**31 - 1},
    "positions times a huge factor": {"rope_scaling": {"rope_type": "linear", "factor": 1e300}},
    "a number that no float can be": {"rope_theta": 10**400},
    "a number that cannot be shown": {"vocab_size": -(10**4000)},
    "a base of one": {"rope_theta": 1.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "a base that grows beyond all": {"rope_scaling": {"type": "dynamic", "factor": 1e200}},
    "a division by zero": {"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "groups that are no objects": {"quantization_config": W8A8 | {"config_groups": {"a": [1]}}},
    "a group's part that is none": {
        "quantization_config": W8A8 | {"config_groups": {"a": {"weights": "int"}}}
    },
    "deep values": {"hidden_size": DEEP},
}
#: Keys of a GGUF file, without the architecture's name.
KEYS: dict[str, dict[str, int]] = {
    "layers": {"block_count": 2**32 - 1},
    "heads": {"attention.head_count": 2**32 - 1, "attention.head_count_kv": 2**32 - 1},
    "long heads": {"attention.key_length": 2**32 - 2, "attention.value_length": 2**32 - 2},
    "odd heads": {"attention.key_length": 17, "attention.value_length": 17},
    "positions": {"context_length": 2**32 - 1},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(all_seeds(), tmp_path_factory.mktemp("seeds"))


def test_every_family_type_and_reader_has_a_seed(bench: Bench) -> None:
    names = {seed.name for seed in bench.seeds}
    words = {word for name in names for word in name.split()}
    assert words >= set(GGUF_FAMILIES) | set(FAMILIES) | set(DTYPES)
    assert words >= {kind.name for kind in GGML_TYPES.values()}
    assert all(bench.by_kind.values())
    for seed in bench.seeds:
        said = "is not supported"
        try:
            TARGETS[seed.kind](bench.folders[id(seed)])
        except GalleyError as error:
            said = str(error)
        assert re.search(r"is not supported|weight_scale|g_idx does not", said), seed.name


@pytest.mark.parametrize("case", CONFIGS)
def test_configs(bench: Bench, case: str) -> None:
    seed = next(s for s in bench.seeds if s.name == "LlamaForCausalLM BF16")
    config = json.loads(seed.files["config.json"]) | CONFIGS[case]
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        data = json.dumps(config).encode()
    finally:
        sys.set_int_max_str_digits(limit)
    with bench.laid_out(seed, "config.json", data) as folder, pytest.raises(ModelError):
        TARGETS["directory"](folder)


@pytest.mark.parametrize("case", KEYS)
def test_gguf_sizes(bench: Bench, case: str) -> None:
    seed = next(s for s in bench.seeds if s.name == "llama Q4_0")
    assert seed.gguf is not None
    file = copy.deepcopy(seed.gguf)
    for key in file.keys:
        key.value = KEYS[case].get(key.name.removeprefix("llama."), key.value)
    with bench.laid_out(seed, "m.gguf", file.encode()[0]) as folder, pytest.raises(ModelError):
        TARGETS["gguf"](folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("wordpiece", {"model": {"unk_token": "none"}}),
        ("words", {"model": {"unk_token": "none"}}),
        ("byte-level", {"post_processor": {"special_tokens": {}}}),
    ],
)
def test_a_text_that_a_broken_tokenizer_cannot_take(
    bench: Bench, name: str, change: dict[str, dict[str, Any]]
) -> None:
    seed = next(s for s in bench.seeds if s.name == name)
    spec = json.loads(seed.files["tokenizer.json"])
    for part, values in change.items():
        spec[part] |= values
    data = json.dumps(spec).encode()
    with bench.laid_out(seed, "tokenizer.json", data) as folder:
        loaded = load_tokenizer(folder)
        with pytest.raises(InvalidRequest, match="cannot encode this text"):
            loaded.encode("a text")


@pytest.mark.parametrize("wrong", [8.0, float("inf"), True, DEEP, None, -1])
def test_a_cache_file_of_wrong_sizes_is_rebuilt(bench: Bench, wrong: Any) -> None:
    seed = next(s for s in bench.seeds if s.kind == "packed")
    data = seed.files["w"]
    length = struct.unpack_from("<Q", data, 8)[0]
    header = json.loads(data[20 : 20 + length])
    header["matrices"][0][1][0]["shape"] = [wrong, 32]
    text = json.dumps(header).encode()
    head = data[:8] + struct.pack("<QI", len(text), zlib.crc32(text)) + text
    rest = data[-(-(20 + length) // 64) * 64 :]
    with bench.laid_out(seed, "w", head.ljust(-(-len(head) // 64) * 64, b"\0") + rest) as folder:
        assert PackedFile.open(folder / "w") is None


def test_thousands_of_hostile_files() -> None:
    """In a process of its own, which has limits. Each reader says no, and each says yes."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.readers.run", "--inputs", str(INPUTS)],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = Counter({m[2]: int(m[1]) for m in re.finditer(r"(?m)^ *(\d+)  (.+)$", done.stdout)})
    assert counts.total() == INPUTS
    assert set(counts) == {f"{kind} {end}" for kind in TARGETS for end in ("loaded", "refused")}
