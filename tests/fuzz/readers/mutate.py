"""Mutations of a seed: flipped bytes, wrong lengths and counts, JSON of wrong types.

Everything follows from the random generator that is handed in.
"""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib
from typing import Any

from tests.fuzz.readers.gguf import ARRAY, STRING, File, Key
from tests.fuzz.readers.seeds import Seed

_INTS = (0, 1, 2, 7, 8, 31, 32, 255, 256, 65_535, 65_536, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
_BIG_INTS = (2**32, 2**40, 2**53, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = ("", " ", "\0", "a" * 70_000, "é", "\ud800", "../x", "/etc/passwd", "<unk>", "(a+)+$", "[")
_NUMBERS = (-1, -1.5, 0.0, 1e-300, 1e300, -0.0, 0.1, float("nan"), float("inf"))


def mutate(seed: Seed, rng: random.Random) -> tuple[str, bytes]:
    """(name of one file of the seed, its new content)."""
    name = rng.choice(seed.hot)
    data = seed.files[name]
    if seed.gguf is not None and rng.random() < 0.6:
        data = _gguf(seed.gguf, rng)
        if rng.random() < 0.7:
            return name, data
    elif name.endswith(".json") and rng.random() < 0.8:
        data = _json(data, rng)
        if rng.random() < 0.9:
            return name, data
    elif name.endswith(".safetensors") and rng.random() < 0.7:
        return name, _safetensors(data, rng)
    elif seed.kind == "packed" and rng.random() < 0.7:
        return name, _packed(data, rng)
    elif name.endswith(".jinja"):
        return name, _template(data, rng)
    return name, _bytes(data, rng, seed.header.get(name, len(data)))


def any_int(rng: random.Random) -> int:
    value = rng.choice(_INTS if rng.random() < 0.6 else _BIG_INTS)
    return value + rng.choice((0, 0, 0, -1, 1, 3))


# ------------------------------------------------------------------------------------------ bytes


def _bytes(data: bytes, rng: random.Random, header: int) -> bytes:
    """One to four changes, most of them within the first `header` bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        end = len(out) if rng.random() < 0.15 else min(header, len(out))
        at = rng.randrange(end) if end else 0
        rng.choice(_BYTE_CHANGES)(out, at, rng)
    return bytes(out)


def _flip(out: bytearray, at: int, rng: random.Random) -> None:
    if out:
        out[at] ^= 1 << rng.randrange(8)


def _set(out: bytearray, at: int, rng: random.Random) -> None:
    if out:
        out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _integer(out: bytearray, at: int, rng: random.Random) -> None:
    """A little-endian number of 2, 4 or 8 bytes in place of what is there."""
    size, form = rng.choice(((2, "<H"), (4, "<I"), (8, "<Q"), (8, "<Q")))
    out[at : at + size] = struct.pack(form, any_int(rng) % (1 << 8 * size))


def _truncate(out: bytearray, at: int, rng: random.Random) -> None:
    del out[rng.choice((at, len(out) - 1, len(out) // 2)) :]


def _extend(out: bytearray, at: int, rng: random.Random) -> None:
    out += bytes(rng.choice((1, 7, 4096)))


def _remove(out: bytearray, at: int, rng: random.Random) -> None:
    del out[at : at + rng.choice((1, 2, 8, 100))]


def _repeat(out: bytearray, at: int, rng: random.Random) -> None:
    piece = bytes(out[at : at + rng.choice((1, 8, 64, 300))])
    out[at:at] = piece * rng.choice((1, 1, 2, 50))


def _swap(out: bytearray, at: int, rng: random.Random) -> None:
    size, other = rng.choice((1, 4, 8, 32)), rng.randrange(len(out) or 1)
    left, right = out[at : at + size], out[other : other + size]
    if len(left) == len(right):
        out[at : at + size], out[other : other + size] = right, left


_BYTE_CHANGES = (
    _flip,
    _flip,
    _set,
    _integer,
    _integer,
    _truncate,
    _extend,
    _remove,
    _repeat,
    _swap,
)


# ------------------------------------------------------------------------------------------- GGUF


def _gguf(file: File, rng: random.Random) -> bytes:
    file = copy.deepcopy(file)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choice(_GGUF_CHANGES if file.tensors else _GGUF_CHANGES[:6])
        change(file, rng)
    try:
        return file.encode()[0]
    except (struct.error, TypeError):  # a text where the new type wants a number
        for key in file.keys:
            key.kind = key.kind if _fits(key) else STRING
            key.value = key.value if _fits(key) else "x"
        return file.encode()[0]


def _fits(key: Key) -> bool:
    try:
        key.encode()
    except (struct.error, TypeError, AttributeError, ValueError):
        return False
    return True


def _key_value(file: File, rng: random.Random) -> None:
    key = rng.choice(file.keys)
    kind = key.kind if rng.random() < 0.6 else rng.choice((0, 4, 5, 6, 7, 8, 9, 10, 11, 12))
    key.kind = kind
    if kind == STRING:
        key.value = rng.choice(_TEXTS)
    elif kind == ARRAY:
        key.value = _array(key.value, rng)
    elif kind in (6, 12):
        key.value = rng.choice(_NUMBERS)
        if kind == 6 and abs(key.value) > 3e38:
            key.value = float("inf")
    elif kind == 7:
        key.value = rng.random() < 0.5
    else:
        bits = {0: 8, 4: 32, 5: 31, 10: 64, 11: 63}[kind]
        key.value = any_int(rng) % (1 << bits)


def _array(value: Any, rng: random.Random) -> tuple[int, list[Any]]:
    if not isinstance(value, tuple) or rng.random() < 0.2:
        return rng.choice(((4, [1, 2]), (STRING, ["a", "b"]), (5, []), (6, [float("nan")])))
    item, items = value
    items = list(items)
    at = rng.randrange(len(items)) if items else 0
    if rng.random() < 0.4:
        del items[at : at + rng.choice((1, 1, 100))]
    elif item == STRING:
        items[at : at + 1] = [rng.choice((*_TEXTS, *items[:5], "a b", "  ", "h e l"))]
    elif item == 6:
        items[at : at + 1] = [rng.choice((float("nan"), float("inf"), -1e38, 0.0))]
    else:
        items[at : at + 1] = [rng.choice((0, 2, 3, 4, 5, 6, 7, -1, 2**31 - 1))]
    return item, items


def _key_gone(file: File, rng: random.Random) -> None:
    del file.keys[rng.randrange(len(file.keys))]
    if not file.keys:
        _counts(file, rng)


def _key_twice(file: File, rng: random.Random) -> None:
    if file.keys:
        file.keys.append(rng.choice(file.keys))


def _key_count(file: File, rng: random.Random) -> None:
    """A string or an array that claims another length."""
    long = [key for key in file.keys if key.kind in (STRING, ARRAY)]
    if long:
        rng.choice(long).count = any_int(rng) % 2**64


def _key_name(file: File, rng: random.Random) -> None:
    if file.keys:
        rng.choice(file.keys).name = rng.choice(_TEXTS)


def _counts(file: File, rng: random.Random) -> None:
    if rng.random() < 0.5:
        file.num_keys = any_int(rng) % 2**64
    else:
        file.num_tensors = any_int(rng) % 2**64
    if rng.random() < 0.1:
        file.version = any_int(rng) % 2**32


def _tensor_dims(file: File, rng: random.Random) -> None:
    dims = rng.choice(file.tensors).dims
    change = rng.randrange(4)
    if change == 0:
        dims[rng.randrange(len(dims)) if dims else 0 :] = [any_int(rng) % 2**64]
    elif change == 1:
        dims.reverse()
    elif change == 2:
        dims += [rng.choice((1, 1, 2, 2**32))] * rng.choice((1, 3, 9))
    else:
        del dims[0:1]


def _tensor_kind(file: File, rng: random.Random) -> None:
    rng.choice(file.tensors).kind = rng.choice((*range(45), 255, 2**32 - 1))


def _tensor_offset(file: File, rng: random.Random) -> None:
    tensor = rng.choice(file.tensors)
    tensor.offset = rng.choice((0, 32, 64, any_int(rng) % 2**64, 2**64 - 32))


def _tensor_name(file: File, rng: random.Random) -> None:
    names = [tensor.name for tensor in file.tensors]
    rng.choice(file.tensors).name = rng.choice((*names, *_TEXTS, "rope_freqs.weight"))


def _tensor_gone(file: File, rng: random.Random) -> None:
    del file.tensors[rng.randrange(len(file.tensors))]
    if not file.tensors:
        file.num_tensors = 1


_GGUF_CHANGES = (
    _key_value,
    _key_value,
    _key_count,
    _key_gone,
    _key_twice,
    _key_name,
    _counts,
    _tensor_dims,
    _tensor_kind,
    _tensor_offset,
    _tensor_name,
    _tensor_gone,
)


# ------------------------------------------------------------------------------------------- JSON


class _Raw(float):
    """A number that is written as the text that it was made of."""

    text: str

    def __repr__(self) -> str:
        return self.text


def _raw(text: str) -> _Raw:
    number = _Raw(0.5)
    number.text = text
    return number


def _json(data: bytes, rng: random.Random) -> bytes:
    try:
        tree = json.loads(data)
    except ValueError:
        return data
    try:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            tree = _change_tree(tree, rng)
        text = json.dumps(tree)
    except RecursionError:  # something deep has been put into something deep
        text = '{"a":' * 1000 + "1" + "}" * 1000
    if rng.random() < 0.05:
        depth = rng.choice((100, 1000, 100_000))
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    return text.encode("utf-8", "surrogatepass")


def _change_tree(tree: Any, rng: random.Random) -> Any:
    """One place of the tree changed; one near the root is as likely as all leaves below."""
    node, path = tree, []
    while isinstance(node, dict | list) and node and (not path or rng.random() < 0.75):
        keys = list(node) if isinstance(node, dict) else range(len(node))
        path.append((node, rng.choice(keys)))
        node = path[-1][0][path[-1][1]]
    if not path:
        return _any_json(rng)
    parent, key = path[-1]
    change = rng.randrange(8)
    if change == 0:
        del parent[key]
    elif change == 1 and isinstance(parent, dict):
        parent[rng.choice((*_TEXTS[:6], *parent))] = parent.pop(key)
    elif change == 2 and isinstance(parent, list):
        parent[key:key] = [copy.deepcopy(parent[key])] * rng.choice((1, 1, 30))
    elif change == 3:
        other = rng.choice(path)
        parent[key] = copy.deepcopy(other[0][other[1]])
    elif change == 4 and isinstance(node, str):
        parent[key] = rng.choice((node + "x", node[:-1], node.upper(), node * 2))
    else:
        parent[key] = _any_json(rng)
    return tree


def _any_json(rng: random.Random) -> Any:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice((None, True, False, {}, [], [[]], {"a": {}}, [None], "null"))
    if kind == 1:
        return rng.choice(_TEXTS)
    if kind == 2:
        return rng.choice(_NUMBERS)
    if kind == 3:
        return _raw(
            rng.choice(("1e999", "-1e999", "1" + "0" * 400, "9" * 5000, "1E+2", "0.5e-9999"))
        )
    if kind == 4:
        depth, tree = rng.choice((2, 50, 130, 900)), None
        for _ in range(depth):
            tree = [tree] if rng.random() < 0.5 else {"a": tree}
        return tree
    return any_int(rng) * rng.choice((1, 1, 1, -1))


def _safetensors(data: bytes, rng: random.Random) -> bytes:
    length = struct.unpack_from("<Q", data)[0]
    header = _json(data[8 : 8 + length], rng)
    if rng.random() < 0.1:  # a name twice
        header = header[:-1] + b"," + header[1 : header.find(b"}") + 1] + b"}"
    claimed = len(header) if rng.random() < 0.9 else any_int(rng) % 2**64
    return struct.pack("<Q", claimed) + header + data[8 + length :]


def _packed(data: bytes, rng: random.Random) -> bytes:
    """A file of packed weights whose header says something else, under a checksum that is right."""
    length = struct.unpack_from("<Q", data, 8)[0]
    header = _json(data[20 : 20 + length], rng)
    head = data[:8] + struct.pack("<QI", len(header), zlib.crc32(header)) + header
    return head.ljust(-(-len(head) // 64) * 64, b"\0") + data[-(-(20 + length) // 64) * 64 :]


# -------------------------------------------------------------------------------------- templates

_WORDS = (
    "{% for a in messages %}",
    "{% for a in range(99999) %}",
    "{% endfor %}",
    "{% if x %}",
    "{% endif %}",
    "{{ messages }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ 'a' * 9999999999 }}",
    "{{ 2 ** 9999999 }}",
    "{{ (['a'] * 60000000) | join }}",
    "{{ 'x' | center(9999999999) }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ messages | tojson(indent=99999999) }}",
    "{{ lipsum(99999) }}",
    "{{ range(99999) | list | map('string') | join | length }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ messages.__class__ }}",
    "{{ self }}",
    "{% set x = [x, x] %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}",
    "{{ f(1) }}",
    "{{ caller() }}",
    "{% include 'x' %}",
    "{% break %}",
    "{% generation %}",
    "{{ 'a'.replace('', 'b' * 9999) }}",
    " | batch(1) ",
    " | slice(99999999) ",
    " | sort ",
    " | tojson ",
    "{{ -1 }}",
    "{{ 9" * 30,
    "((((((((",
)


def _template(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 3))):
        at = rng.randrange(len(out) + 1)
        if rng.random() < 0.6:
            out[at:at] = rng.choice(_WORDS).encode()
        else:
            rng.choice(_BYTE_CHANGES)(out, min(at, len(out) - 1), rng)
    return bytes(out)
