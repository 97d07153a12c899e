"""One model per arrangement of attention that model families use, on weights of any backend.

arrangement            used by                       q, k and v
plain                  Llama                         split of one value, rotated
qk_norm                Qwen 3                        q and k normed per head, then rotated
no_rope                Llama 4, SmolLM3, Cohere 2    not rotated
separate               MLA, cross attention          of three products
v_norm                 Gemma 4                       v normed as well
q_norm_only            several                       only q normed
two_eps                several                       q and k normed with different eps
norm_after_rope        Llama 4, Hunyuan              rotated, then normed
shared_kv              Gemma 3n, CLA                 second layer: q only, KV of the first
other_order            fused checkpoints             split in the order k, q, v
bidirectional          BERT                          every token sees the whole sequence
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from galley.kernels.backend import Backend
from galley.kernels.ops import KVLayer, RotaryTable
from galley.kernels.quantized import QuantizedWeight

VOCAB, HIDDEN, HEADS, KV_HEADS, DIM = 131, 64, 4, 2, 32
Q, KV = HEADS * DIM, KV_HEADS * DIM
SIZES = {"embed": (VOCAB, HIDDEN), "qkv": (Q + 2 * KV, HIDDEN), "q": (Q, HIDDEN)}
SIZES |= {"k": (KV, HIDDEN), "v": (KV, HIDDEN), "out": (HIDDEN, Q), "head": (VOCAB, HIDDEN)}


def arrays() -> dict[str, np.ndarray]:
    """Random matrices, [N, K] float32 on values of bfloat16."""
    rng = np.random.default_rng(11)
    made = {}
    for name, (n, k) in SIZES.items():
        raw = (rng.standard_normal((n, k)) * 2 / np.sqrt(k)).astype(np.float32)
        made[name] = (raw.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return made


class Arrangement:
    """Two layers of attention on a residual stream (`backend.Model`)."""

    vocab_size = VOCAB

    def __init__(self, name: str, backend: Backend) -> None:
        self.attend = ARRANGEMENTS[name]
        causal = name != "bidirectional"
        self.kv_layers = [KVLayer(i, KV_HEADS, DIM, causal=causal) for i in range(2)]
        self.w = {
            key: backend.weight(QuantizedWeight(dense=array)) for key, array in arrays().items()
        }
        angles = np.outer(np.arange(256), 100.0 ** (-np.arange(12) / 12))
        table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        self.table = RotaryTable(backend.constant(table))
        rng = np.random.default_rng(12)
        self.norms = {
            key: backend.constant(rng.uniform(0.5, 1.5, DIM).astype(np.float32)) for key in "qkv"
        }
        self.stream_norm = backend.constant(np.ones(HIDDEN, np.float32))

    def embed(self, ops, ctx):
        return ops.embedding(self.w["embed"], ctx.token_ids)

    def forward(self, ops, h, ctx):
        for layer in self.kv_layers:
            x = ops.rms_norm(h, self.stream_norm, 1e-5)
            q, layer = self.attend(self, ops, x, layer, ctx)
            out = ops.attention(q, layer, DIM**-0.5, ctx)
            h = ops.add(h, ops.linear(out, [self.w["out"]]))
        return h

    def logits(self, ops, h, ctx):
        return ops.linear(ops.select_rows(h, ctx.logit_index), [self.w["head"]])

    def split(self, ops, x):
        return ops.split(ops.linear(x, [self.w["qkv"]]), (Q, KV, KV))

    def rope(self, ops, x, ctx):
        return ops.rope(x, ctx.positions, self.table, DIM)

    def norm(self, ops, x, name, eps=1e-5):
        return ops.head_norm(x, self.norms[name], eps)


def plain(m, ops, x, layer, ctx):
    q, k, v = m.split(ops, x)
    q, k = m.rope(ops, q, ctx), m.rope(ops, k, ctx)
    ops.write_kv(k, v, layer, ctx)
    return q, layer


def qk_norm(m, ops, x, layer, ctx):
    q, k, v = m.split(ops, x)
    q, k = m.norm(ops, q, "q"), m.norm(ops, k, "k")
    q, k = m.rope(ops, q, ctx), m.rope(ops, k, ctx)
    ops.write_kv(k, v, layer, ctx)
    return q, layer


def no_rope(m, ops, x, layer, ctx):
    q, k, v = m.split(ops, x)
    ops.write_kv(k, v, layer, ctx)
    return q, layer


def separate(m, ops, x, layer, ctx):
    q, k, v = (ops.linear(x, [m.w[name]]) for name in "qkv")
    q, k = m.rope(ops, q, ctx), m.rope(ops, k, ctx)
    ops.write_kv(k, v, layer, ctx)
    return q, layer


def v_norm(m, ops, x, layer, ctx):
    q, k, v = m.split(ops, x)
    q, k, v = m.norm(ops, q, "q"), m.norm(ops, k, "k"), m.norm(ops, v, "v")
    q, k = m.rope(ops, q, ctx), m.rope(ops, k, ctx)
    ops.write_kv(k, v, layer, ctx)
    return q, layer


def q_norm_only(m, ops, x, layer, ctx):
    q, k, v = m.split(ops, x)
    q = m.norm(ops, q, "q")
    q, k = m.rope(ops, q, ctx), m.rope(ops, k, ctx)
    ops.write_kv(k, v, layer, ctx)
    return q, layer


def two_eps(m, ops, x, layer, ctx):
    q, k, v = m.split(ops, x)
    q, k = m.norm(ops, q, "q", 1e-5), m.norm(ops, k, "k", 0.3)
    q, k = m.rope(ops, q, ctx), m.rope(ops, k, ctx)
    ops.write_kv(k, v, layer, ctx)
    return q, layer


def norm_after_rope(m, ops, x, layer, ctx):
    q, k, v = m.split(ops, x)
    q, k = m.rope(ops, q, ctx), m.rope(ops, k, ctx)
    q, k = m.norm(ops, q, "q"), m.norm(ops, k, "k")
    ops.write_kv(k, v, layer, ctx)
    return q, layer


def shared_kv(m, ops, x, layer, ctx):
    if layer.index == 0:
        return plain(m, ops, x, layer, ctx)
    return m.rope(ops, ops.linear(x, [m.w["q"]]), ctx), m.kv_layers[0]


def other_order(m, ops, x, layer, ctx):
    k, q, v = ops.split(ops.linear(x, [m.w["qkv"]]), (KV, Q, KV))
    q, k = m.rope(ops, q, ctx), m.rope(ops, k, ctx)
    ops.write_kv(k, v, layer, ctx)
    return q, layer


ARRANGEMENTS: dict[str, Callable] = {
    f.__name__: f
    for f in (
        *(plain, qk_norm, no_rope, separate, v_norm, q_norm_only, two_eps, norm_after_rope),
        *(shared_kv, other_order),
    )
} | {"bidirectional": plain}
#: Layers whose q, k and v one rope_kv computes.
FUSED = {"plain": 2, "qk_norm": 2, "q_norm_only": 2, "shared_kv": 1, "bidirectional": 2}
