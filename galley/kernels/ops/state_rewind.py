"""Takes rejected drafts back from a recurrent state. Native only: it runs after the sampler."""

from __future__ import annotations

from galley.kernels.ops.definition import NativeOp
from galley.kernels.ops.state_op import STATE_INTS, STATE_POINTERS

#: The column of how many drafts each row of the step keeps.
NUM_KEPT = "num_kept"

STATE_REWIND = NativeOp(
    "state_rewind",
    pointers=STATE_POINTERS,
    ints={"units": "of the state", "unit_size": "numbers of a unit", **STATE_INTS},
    columns=("block_table", NUM_KEPT),
)
