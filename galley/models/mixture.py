"""Code shared by the families with experts: names of their tensors, routing, dense layers."""

from __future__ import annotations

import msgspec

from galley.kernels.ops.route import Routing, Score
from galley.layers.mlp import MLPSpec
from galley.layers.moe import MoESpec
from galley.layers.weight_specs import Part, Stack
from galley.models.config import ModelFields

#: Most experts that a config may ask for, against nonsense.
MAX_EXPERTS = 4096
#: Keys of the number of experts.
COUNT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")

#: Keys of the number of experts that a token chooses.
TOP_KEYS = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")


class Experts(msgspec.Struct, frozen=True):
    """Projections of the experts of a layer; "{}" in a name stands for the expert's number."""

    gate: Part
    up: Part
    down: Part


def experts(
    prefix: str,
    count: int,
    hidden: int,
    intermediate: int,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    transposed: bool = False,
) -> Experts:
    """Modules `prefix.{}.gate_proj` and so on, or the stacked tensors `prefix.gate_up_proj` and
    `prefix.down_proj` that transformers has in memory.

    Args:
        names: of gate, up and down.
        transposed: the stacked tensors hold the transpose of each matrix.
    """
    i, (gate, up, down) = intermediate, names

    def part(name: str, n: int, k: int, stack: str, first: int, outputs: int) -> Part:
        shape = (count, k, outputs) if transposed else (count, outputs, k)
        rows = (first, first + n, 1)
        stacked = Stack(f"{prefix}.{stack}", shape, rows, transposed)
        return Part(f"{prefix}.{{}}.{name}", (n, k), stack=stacked)

    return Experts(
        part(gate, i, hidden, "gate_up_proj", 0, 2 * i),
        part(up, i, hidden, "gate_up_proj", i, 2 * i),
        part(down, hidden, i, "down_proj", 0, hidden),
    )


def read_routing(
    config: ModelFields,
    *,
    score: Score = Score.softmax,
    renormalise: bool = True,
    groups: bool = False,
    group_top: int = 1,
    scale: float = 1.0,
) -> Routing:
    """How many experts there are (under the names that families and versions of transformers have
    for it), and num_experts_per_tok.

    Args:
        groups: the config has n_group and topk_group.

    Raises ModelError naming a key that is missing or out of range.
    """
    key = next((key for key in COUNT_KEYS if config.has(key)), COUNT_KEYS[0])
    count = config.integer(key, least=1, most=MAX_EXPERTS)
    chosen = next((key for key in TOP_KEYS if config.has(key)), TOP_KEYS[0])
    top_k = config.integer(chosen, least=1)
    num_groups = config.integer("n_group", 1, least=1) if groups else 1
    top_groups = config.integer("topk_group", 1, least=1) if groups else 1
    if count % num_groups or count // num_groups < group_top:
        raise config.wrong("n_group", f"such that {count} experts form groups of equal size")
    if top_groups > num_groups:
        raise config.wrong("topk_group", f"at most {num_groups}, the number of groups")
    if top_k > count // num_groups * top_groups:
        raise config.wrong(chosen, "at most the experts that can be chosen")
    return Routing(
        experts=count,
        top_k=top_k,
        score=score,
        renormalise=renormalise,
        scale=scale,
        groups=num_groups,
        top_groups=top_groups,
        group_top=group_top if num_groups > 1 else 1,
    )


def deepseek_routing(config: ModelFields) -> Routing:
    """The routing of DeepSeek V3, GLM-4-MoE and dots: sigmoid scores, the groups whose two best
    experts have the largest sum, and a scaling factor."""
    return read_routing(
        config,
        score=Score.sigmoid,
        renormalise=config.flag("norm_topk_prob", True),
        groups=True,
        group_top=2,
        scale=config.number("routed_scaling_factor", 1.0),
    )


def deepseek_mixture(
    config: ModelFields, prefix: str, hidden: int, routing: Routing, choice_bias: bool = True
) -> MoESpec:
    """A mixture with DeepSeek's tensor names: routed experts and shared ones, which are one wide
    MLP."""
    intermediate = config.integer("moe_intermediate_size", least=1)
    key = "num_shared_experts" if config.has("num_shared_experts") else "n_shared_experts"
    shared = config.integer(key, 0)
    bias = Part(f"{prefix}.gate.e_score_correction_bias", (routing.experts,))
    return mixture(
        prefix,
        hidden,
        routing,
        experts(f"{prefix}.experts", routing.experts, hidden, intermediate),
        choice_bias=bias if choice_bias else None,
        shared=gated(f"{prefix}.shared_experts", hidden, shared * intermediate) if shared else None,
    )


def is_dense(config: ModelFields, index: int) -> bool:
    """Whether a layer of DeepSeek's config has an MLP without experts."""
    kinds = config.values.get("mlp_layer_types")
    if isinstance(kinds, list) and index < len(kinds):
        return bool(kinds[index] == "dense")
    if index < config.integer("first_k_dense_replace", 0):
        return True
    return index % config.integer("moe_layer_freq", 1, least=1) != 0


def mixture(
    prefix: str,
    hidden: int,
    routing: Routing,
    parts: Experts,
    router: str = "gate",
    **others: object,
) -> MoESpec:
    """A mixture whose router is the tensor `prefix.router`; `others` as in `MoESpec`."""
    return MoESpec(
        router=Part(f"{prefix}.{router}", (routing.experts, hidden)),
        routing=routing,
        gate=parts.gate,
        up=parts.up,
        down=parts.down,
        **others,  # type: ignore[arg-type]
    )


def gated(prefix: str, hidden: int, intermediate: int, bias: bool = False) -> MLPSpec:
    """A gated MLP of another size than the model's: a shared expert, or a dense layer."""
    return MLPSpec(
        gate=Part(f"{prefix}.gate_proj", (intermediate, hidden)),
        up=Part(f"{prefix}.up_proj", (intermediate, hidden)),
        down=Part(f"{prefix}.down_proj", (hidden, intermediate)),
        bias=bias,
    )
