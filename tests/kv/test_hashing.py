"""Block hashes: test vectors of vLLM's sha256_cbor (from cbor2), chaining, extras, roots."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from galley.errors import ConfigError
from galley.kv.hashing import BlockHasher, ExtraKeys, HashChain, cbor

ROOT_OF_SEED_0 = "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e"


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (255, "18ff"),
        (256, "190100"),
        (65535, "19ffff"),
        (65536, "1a00010000"),
        (2**32 - 1, "1affffffff"),
        (2**32, "1b0000000100000000"),
        (-1, "20"),
        (-24, "37"),
        (-25, "3818"),
        (None, "f6"),
        (True, "f5"),
        (False, "f4"),
        (b"\x00" * 32, "5820" + "00" * 32),
        ("", "60"),
        ("0", "6130"),
        ("ü" * 30, "783c" + "c3bc" * 30),
        ((), "80"),
        ([1, (2, "a"), None], "830182026161f6"),
    ],
)
def test_canonical_cbor(value: object, encoded: str) -> None:
    assert cbor(value).hex() == encoded


def test_cbor_refuses_other_types() -> None:
    with pytest.raises(TypeError, match="float"):
        cbor(1.5)
    with pytest.raises(OverflowError):
        cbor(2**64)


def chain_of(hasher: BlockHasher, tokens: list[int], extras: ExtraKeys | None = None) -> list[str]:
    chain = HashChain(extras)
    hasher.extend(chain, np.array(tokens, np.int32), len(tokens) // hasher.block_size)
    return [h.hex() for h in chain.hashes]


def test_sha256_cbor_is_vllms() -> None:
    hasher = BlockHasher("sha256_cbor", 16, seed="0")
    assert hasher.root.hex() == ROOT_OF_SEED_0
    tokens = [*range(16), *range(16000, 32000, 1000)]
    assert chain_of(hasher, tokens) == [
        "d830de3d42c00f25a2949b5d12d98642664a44872c1614c5b0147556276afc9c",
        "c655c0036cc8764c80c7f78ba4b74bc500fb15a306cb10ad6e1e1a4087cf1020",
    ]
    edges = [0, 23, 24, 255, 256, 65535, 65536, 2**31 - 1, *range(8)]
    assert chain_of(hasher, edges, ExtraKeys(at={0: ("sält",)})) == [
        "7ec23347a1a8e41c07d61d21488f2752ab94b73ca1723b4675ca78086a56d80b"
    ]


@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor"])
def test_the_seed_comes_from_pythonhashseed(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "42")
    first = BlockHasher.from_environment(algorithm, 16)
    assert first.root == BlockHasher(algorithm, 16, seed="42").root
    monkeypatch.delenv("PYTHONHASHSEED")
    roots = {BlockHasher.from_environment(algorithm, 16).root for _ in range(3)}
    assert len(roots) == 3
    assert all(len(root) == 32 for root in roots)


@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor"])
def test_a_hash_covers_parent_tokens_and_extras(algorithm: str) -> None:
    hasher = BlockHasher(algorithm, 4, seed="0")
    base = chain_of(hasher, [1, 2, 3, 4, 5, 6, 7, 8])
    assert base == chain_of(hasher, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert chain_of(hasher, [1, 2, 3, 4, 5, 6, 7, 9])[0] == base[0]
    other = chain_of(hasher, [0, 2, 3, 4, 5, 6, 7, 8])
    assert not set(other) & set(base)
    salted = chain_of(hasher, [1, 2, 3, 4, 5, 6, 7, 8], ExtraKeys(at={0: ("s",)}))
    assert not set(salted) & set(base)
    lora = chain_of(hasher, [1, 2, 3, 4, 5, 6, 7, 8], ExtraKeys(every=("adapter",)))
    assert not set(lora) & set(base + salted)
    media = chain_of(hasher, [1, 2, 3, 4, 5, 6, 7, 8], ExtraKeys(at={1: (b"image",)}))
    assert media[0] == base[0]
    assert media[1] != base[1]


@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor"])
@pytest.mark.parametrize("extras", [None, ExtraKeys(at={0: ("s",)})])
def test_extending_step_by_step_equals_at_once(algorithm: str, extras: ExtraKeys | None) -> None:
    hasher = BlockHasher(algorithm, 4, seed="0")
    tokens = np.arange(40, dtype=np.int32)
    at_once, by_steps = HashChain(extras), HashChain(extras)
    hasher.extend(at_once, tokens, 10)
    for n in (1, 1, 4, 9, 3, 10):
        hasher.extend(by_steps, tokens, n)
    assert by_steps.hashes == at_once.hashes
    assert len(at_once.hashes) == 10


def test_cbor_hashes_without_a_seed_log_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    BlockHasher.from_environment("sha256", 16)
    assert not caplog.messages
    BlockHasher.from_environment("sha256_cbor", 16)
    assert "PYTHONHASHSEED" in caplog.messages[0]


def test_xxhash_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    for algorithm in ("xxhash", "xxhash_cbor"):
        with pytest.raises(ConfigError, match="pip install xxhash"):
            BlockHasher(algorithm, 16, seed="0")


def test_xxhash_uses_the_128_bit_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("xxhash")
    package.xxh3_128_digest = lambda data: bytes([len(data) % 256]) * 16
    monkeypatch.setitem(sys.modules, "xxhash", package)
    plain = BlockHasher("xxhash", 4, seed="0")
    assert chain_of(plain, [1, 2, 3, 4]) == ["20" * 16]  # root of 16 bytes and 4 tokens of 4
    packed = BlockHasher("xxhash_cbor", 4, seed="0")
    assert chain_of(packed, [1, 2, 3, 4]) == [f"{1 + 17 + 5 + 1:02x}" * 16]


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ConfigError, match="md5") as error:
        BlockHasher("md5", 16, seed=None)
    assert error.value.field == "prefix_caching_hash_algo"
