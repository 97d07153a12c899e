"""The native module (csrc/binding.cpp). Addresses are integers; the caller keeps memory alive."""

def isa() -> str: ...
def ops() -> list[str]: ...
def activation_bytes(kind: int, k: int) -> int: ...

class WeightLayout:
    def __init__(
        self, format: int, n: int, k: int, group: int = 0, scale: int = 0, has_min: bool = False
    ) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def panel_bytes(self) -> int: ...
    @property
    def zero(self) -> int: ...

def pack_dense(layout: WeightLayout, values: int, bf16: bool, stride: int, out: int) -> None: ...
def pack_codes(
    layout: WeightLayout,
    q: int,
    q_stride: int,
    zero: int,
    scale: int,
    min: int,
    scale_stride: int,
    out: int,
) -> None: ...
def unpack_rows(layout: WeightLayout, panels: int, first: int, last: int, out: int) -> None: ...
def unpack_codes(layout: WeightLayout, panels: int, q: int, scale: int, min: int) -> None: ...

class Pool:
    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class Program:
    def __init__(self, pool: Pool) -> None: ...
    def add(
        self,
        name: str,
        pointers: dict[str, int],
        ints: dict[str, int],
        floats: dict[str, float] = {},
        section: int = 0,
    ) -> None: ...
    def bind(
        self,
        *,
        num_slots: int,
        max_tokens: int,
        max_rows: int,
        max_logits: int,
        history: int,
        history_stride: int,
        num_tokens: int,
        num_prompt: int,
        num_computed: int,
        block_table: int,
        table_stride: int,
        block_size: int,
        sampling: dict[str, int] = {},
    ) -> None: ...
    def set_logit_masks(
        self, mask: int = 0, bias_indptr: int = 0, bias_ids: int = 0, bias_values: int = 0
    ) -> None: ...
    def run(
        self,
        slots: int,
        num_new: int,
        num_logits: int,
        samples: int,
        n: int,
        first_section: int = 0,
        last_section: int = 0,
    ) -> None: ...
    def step(self) -> dict[str, list[int]]: ...
    def set_heartbeat(self, heartbeat: int) -> None: ...
    def profile(self, on: bool) -> None: ...
    def timings(self) -> list[tuple[str, int, int, int]]: ...
