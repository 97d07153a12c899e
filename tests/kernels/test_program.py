"""The program executor: preparation of a step, refusal of bad columns, threads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from enum import IntEnum
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from galley.kernels import _native, weights
from galley.kernels.quantized import QuantizedWeight
from galley.kernels.weights import pack
from tests.kernels.native_harness import TILE_ISAS, Native, aligned, use_isa

ROOT = Path(__file__).parents[2]
TIMEOUT = 120


def adder(native: Native, m: int, n: int = 8, **values: Any) -> tuple[np.ndarray, np.ndarray]:
    """An op that shows how often it ran: x += y on m rows."""
    x, y = aligned((m, n), np.float32), aligned((m, n), np.float32)
    y[:] = 1
    native.add("add", {"x": x, "y": y}, n=n, **values)
    return x, y


class TestPrepare:
    def test_rows_become_tokens_and_logits(self):
        native = Native(slots=4, max_len=16)
        native.num_computed[:] = [0, 3, 5, 9]
        native.run(
            [4, 1, 0, 3], slots=[3, 1, 0, 2], num_logits=[2, 1, 0, 3], num_sampled=[1, 0, 0, 2]
        )
        step = native.program.step()
        history = native.history
        tokens = [*history[3, 9:13], history[1, 3], *history[2, 5:8]]
        assert step == {
            "slots": [3, 1, 0, 2],
            "computed": [9, 3, 0, 5],
            "query_start": [0, 4, 5, 5, 8],
            "token_ids": [int(t) for t in tokens],
            "positions": [9, 10, 11, 12, 3, 5, 6, 7],
            "token_row": [0, 0, 0, 0, 1, 3, 3, 3],
            "logit_index": [2, 3, 4, 5, 6, 7],
            "logit_row": [0, 0, 1, 3, 3, 3],
            "logit_sampled": [0, 1, 0, 0, 1, 1],
        }

    def test_the_table_is_read_at_each_step(self):
        native = Native(max_len=8)
        native.run([2])
        native.num_computed[0] = 2
        native.history[0, 2] = 77
        native.run([1], num_logits=[1])
        step = native.program.step()
        assert step["token_ids"] == [77]
        assert step["positions"] == [2]
        assert step["logit_sampled"] == [1]

    def test_an_empty_step_runs_nothing(self):
        native = Native(max_len=8)
        x, _y = adder(native, 8)
        native.run([])
        assert (x == 0).all()
        assert native.program.step()["query_start"] == [0]

    @pytest.mark.parametrize(
        ("rows", "done"),
        [(("tokens", 1), 8), (("tokens", 3), 24), (("logits", 1), 4), (("sequences", 2), 6)],
    )
    def test_ops_run_on_the_rows_they_name(self, rows, done):
        native = Native(slots=3, max_len=8)
        x, _y = adder(native, 24, rows=rows)
        native.run([5, 2, 1], num_logits=[1, 2, 1])
        assert (x[:done] == 1).all()
        assert (x[done:] == 0).all()

    def test_a_dimension_that_the_program_does_not_count(self):
        native = Native(max_len=8, dims={"patches": 10})
        x, _y = adder(native, 10, rows=("patches", 1))
        for size in (0, 7, 10):
            native.program.resize("patches", size)
            native.run([1])
        assert x[:, 0].tolist() == [2] * 7 + [1] * 3
        assert native.program.sizes() == {"tokens": 1, "sequences": 1, "logits": 0, "patches": 10}
        with pytest.raises(ValueError, match="11 patches: the program was built for 10"):
            native.program.resize("patches", 11)
        with pytest.raises(ValueError, match="tokens are counted by the program"):
            native.program.resize("tokens", 1)
        with pytest.raises(ValueError, match="no dimension is named experts"):
            native.program.resize("experts", 1)


class TestRanges:
    def test_only_the_ops_of_the_range_run(self):
        native = Native(max_len=4)
        arrays = [adder(native, 4)[0] for _ in range(3)]
        columns = [np.array([v], np.int32) for v in (0, 4, 0, 0)]
        addresses = [c.ctypes.data for c in columns]
        native.program.run(*addresses, 1)
        native.program.run(*addresses, 1, 1, 3)
        native.program.run(*addresses, 1, first=1, last=2)
        native.program.run(*addresses, 1, first=2, last=2)
        assert [x[0, 0] for x in arrays] == [1, 3, 2]
        for first, last in ((-1, 2), (2, 1), (0, 4)):
            with pytest.raises(ValueError, match=f"ops {first} to {last} of a program of 3"):
                native.program.run(*addresses, 1, first, last)

    def test_ops_are_numbered_as_they_are_added(self):
        native = Native(max_len=4)
        x = aligned((4, 8), np.float32)
        assert [native.add("add", {"x": x, "y": x}, n=8) for _ in range(3)] == [0, 1, 2]

    def test_profile_counts_runs_and_time(self):
        native = Native(max_len=64)
        adder(native, 64)
        native.run([64])
        assert native.program.timings() == [("add", 0, 0)]
        native.program.profile(True)
        for _ in range(3):
            native.run([64])
        ((name, runs, nanoseconds),) = native.program.timings()
        assert (name, runs) == ("add", 3)
        assert nanoseconds > 0
        native.program.profile(False)
        native.run([64])
        assert native.program.timings() == [("add", 3, nanoseconds)]


class TestColumns:
    """`embedding` reads the column `token_ids`, which a program fills from the history."""

    def embedding(self, native, **columns):
        weight = pack(QuantizedWeight(dense=np.arange(40, dtype=np.float32).reshape(20, 2)), "f32")
        out = aligned((4, 2), np.float32)
        arrays = {"weight": weight.data, "out": out}
        native.add("embedding", arrays, **weight.arguments(), **columns)
        return out

    def test_an_op_reads_the_column_that_it_names(self):
        native = Native(max_len=4, vocab=20)
        own = self.embedding(native)
        drafts = np.array([7, 3, 5, 1], np.int32)
        native.bind(draft_ids=drafts)
        other = self.embedding(native, token_ids="draft_ids")
        native.run([4])
        assert own[:, 0].tolist() == (2 * native.history[0]).tolist()
        assert other[:, 0].tolist() == [14, 6, 10, 2]
        drafts[:] = 9
        native.run([2])
        assert other[:, 0].tolist() == [18, 18, 10, 2]

    def test_a_column_may_be_bound_to_another_array(self):
        native = Native(max_len=4, vocab=20)
        out = self.embedding(native)
        native.bind(token_ids=np.array([4, 4, 2, 2], np.int32))
        native.run([4])
        assert out[:, 0].tolist() == [8, 8, 4, 4]

    def test_the_columns_that_ops_read(self):
        native = Native()
        self.embedding(native)
        columns = native.program.columns()
        assert columns["token_ids"]
        assert not columns["positions"]
        assert not columns["num_prompt"]

    def test_unknown_names_and_wrong_types_are_refused(self):
        native = Native()
        with pytest.raises(ValueError, match="embedding: no column is named drafts"):
            self.embedding(native, token_ids="drafts")
        native.bind(drafts=np.zeros(4, np.float32))
        with pytest.raises(ValueError, match="column drafts has the dtype f4, not i4"):
            self.embedding(native, token_ids="drafts")
        with pytest.raises(ValueError, match="column drafts has the dtype f4, not i4"):
            native.bind(drafts=np.zeros(4, np.int32))
        with pytest.raises(ValueError, match="embedding: unknown arguments: positions"):
            self.embedding(native, positions="drafts")
        with pytest.raises(ValueError, match="stride of column x must be positive"):
            native.program.bind("x", "i4", native.history.ctypes.data, 0)
        with pytest.raises(ValueError, match="no column is named weights"):
            native.program.unbind("weights")


class TestBadColumns:
    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"slots": [2]}, "slot of row 0 is 2, the limit is 1"),
            ({"slots": [-1]}, "slot of row 0 is -1"),
            ({"num_new": [-1]}, "length of row 0"),
            ({"num_new": [17]}, "length of row 0 is 17, the limit is 16"),
            ({"num_new": [2], "num_logits": [3]}, "num_logits of row 0 is 3, the limit is 2"),
            ({"num_logits": [-1]}, "num_logits of row 0 is -1"),
            ({"slots": [0, 1, 0], "num_new": [1, 1, 1]}, "3 sequences: .* built for 2"),
        ],
    )
    def test_are_refused_before_the_first_op(self, columns, message):
        native = Native(slots=2, max_len=16)
        x, _y = adder(native, 32)
        arguments = {"num_new": [1], **columns}
        with pytest.raises(ValueError, match=message):
            native.run(**arguments)
        assert (x == 0).all()

    def test_limits_of_the_buffers(self):
        native = Native(slots=2, max_len=16, dims={"tokens": 5, "logits": 2})
        native.run([3, 2], num_logits=[1, 1])
        with pytest.raises(ValueError, match="6 tokens: the program was built for 5"):
            native.run([3, 3])
        with pytest.raises(ValueError, match="3 logits: the program was built for 2"):
            native.run([3, 2], num_logits=[2, 1])

    def test_a_length_beyond_the_block_table(self):
        """Refused before the first op, as every op plans before any op runs."""
        native = Native(slots=1, max_len=64)
        native.bind(block_table=np.zeros((1, 2), np.int32))
        x, _y = adder(native, 64)
        kv = aligned((3, 32 * 16), np.uint8)
        rows = aligned((64, 16), np.float32)
        arrays = {"k": rows, "v": rows, "kv": kv}
        native.add("write_kv", arrays, kv_heads=1, head_dim=16, kv_block_stride=512)
        with pytest.raises(ValueError, match="length of row 0 is 33, the limit is 32"):
            native.run([33])
        assert (x == 0).all()

    def test_corrupt_num_computed(self):
        native = Native(slots=1, max_len=64)
        native.num_computed[0] = -5
        with pytest.raises(ValueError, match="length of row 0"):
            native.run([1])

    def test_missing_columns(self):
        native = Native()
        with pytest.raises(ValueError, match="needs slots, num_new, num_logits and num_sampled"):
            native.program.run(0, 0, 0, 0, 1)

    def test_run_before_bind(self):
        limits = {"tokens": 1, "sequences": 1, "logits": 1}
        program = _native.Program(_native.Pool(1), 1, limits)
        with pytest.raises(ValueError, match="columns history and num_computed"):
            program.run(0, 0, 0, 0, 0)

    @pytest.mark.parametrize(
        ("slots", "limits", "message"),
        [
            (0, {}, "needs slots"),
            (1, {"tokens": 0}, "positive limit of tokens"),
            (1, {"logits": -1}, "positive limit of logits"),
            (1, {"patches": -1}, "limit of patches"),
        ],
    )
    def test_limits_are_checked(self, slots, limits, message):
        fine = {"tokens": 1, "sequences": 1, "logits": 1}
        with pytest.raises(ValueError, match=message):
            _native.Program(_native.Pool(1), slots, {**fine, **limits})
        for missing in fine:
            rest = {name: limit for name, limit in fine.items() if name != missing}
            with pytest.raises(ValueError, match=f"limit of {missing}"):
                _native.Program(_native.Pool(1), 1, rest)

    def test_block_size(self):
        x = aligned((64, 16), np.float32)
        arrays = {"k": x, "v": x, "kv": x}
        with pytest.raises(ValueError, match="block_size must be 16, 32, 64 or 128, is 24"):
            Native().add(
                "write_kv", arrays, kv_heads=1, head_dim=16, kv_block_stride=512, block_size=24
            )


class TestNames:
    def test_unknown_op(self):
        with pytest.raises(ValueError, match="no op is named convolve"):
            Native().add("convolve", {})

    def test_unknown_and_missing_arguments(self):
        x = np.zeros(8, np.float32)
        with pytest.raises(ValueError, match="add: unknown arguments: z"):
            Native().add("add", {"x": x, "y": x, "z": x}, n=8)
        with pytest.raises(ValueError, match="add: missing pointer argument: y"):
            Native().add("add", {"x": x}, n=8)
        with pytest.raises(ValueError, match="add: missing integer argument: n"):
            Native().add("add", {"x": x, "y": x})

    def test_the_stub_describes_the_whole_module(self):
        stub = (ROOT / "galley" / "kernels" / "_native.pyi").read_text()
        for name in dir(_native):
            if name.startswith("_"):
                continue
            assert re.search(rf"(def|class) {name}\b", stub)
            thing = getattr(_native, name)
            if isinstance(thing, type) and not issubclass(thing, IntEnum):
                methods = [m for m in vars(thing) if not m.startswith("_")]
                assert [m for m in methods if f"def {m}(" not in stub] == []

    def test_numbers_of_enums_are_written_down(self):
        stub = (ROOT / "galley" / "kernels" / "_native.pyi").read_text()
        enums = [
            e for e in vars(_native).values() if isinstance(e, type) and issubclass(e, IntEnum)
        ]
        assert len(enums) >= 7
        for enum in enums:
            body = re.search(rf"class {enum.__name__}\(IntEnum\):\n((?:    .*\n)+)", stub)[1]
            assert body.split("\n")[:-1] == [f"    {m.name} = {m.value}" for m in enum]

    def test_formats_have_the_names_of_the_native_enums(self):
        for names, enum in (
            (weights.FormatName, _native.Format),
            (weights.ScaleName, _native.Scale),
            (weights.OffsetName, _native.Offset),
            (weights.TableName, _native.CodeTable),
        ):
            assert get_args(names) == tuple(member.name for member in enum)


class TestInstructionSets:
    def test_environment_chooses(self):
        for isa in TILE_ISAS:
            with use_isa(isa):
                assert _native.isa() == isa

    def test_unknown_name(self):
        known = "generic, avx2, avx512 or amx"
        with use_isa("sse9"), pytest.raises(ValueError, match=f"{known}, is sse9"):
            _native.isa()

    def test_an_op_keeps_the_set_it_was_made_with(self):
        """Asked once, when the op is made: a change of the environment afterwards is no fault."""
        native = Native(max_len=4)
        x, _y = adder(native, 4)
        with use_isa("sse9"):
            native.run([4])
        assert (x == 1).all()


class TestThreads:
    @pytest.mark.parametrize("threads", [1, 2, 3, 7])
    def test_many_ops_in_order(self, threads):
        """Each op reads what the one before it wrote, on ranges that differ from op to op."""
        native = Native(slots=1, max_len=256, threads=threads)
        x, y = adder(native, 256)
        for _ in range(99):
            native.add("add", {"x": x, "y": y}, n=8)
            native.add("add", {"x": y, "y": x}, n=8)
        x[:], y[:] = np.float32(0), np.float32(2.0**-120)
        want_x, want_y = x.copy(), y.copy()
        want_x += want_y
        for _ in range(99):
            want_x += want_y
            want_y += want_x
        native.run([256])
        assert np.array_equal(x, want_x)
        assert np.array_equal(y, want_y)

    def test_number_of_threads_is_checked(self):
        for wrong in (0, -1, 100_000):
            with pytest.raises(ValueError, match="threads must be 1"):
                _native.Pool(wrong)
        assert _native.Pool(3).threads == 3

    def test_a_forked_child_computes_alone_and_ends(self):
        """The child has no worker threads: it must neither wait for them nor join them."""
        code = """
import os
import numpy as np
from tests.kernels.native_harness import Native
from tests.kernels.test_program import adder
native = Native(max_len=64, threads=3)
x, y = adder(native, 64)
native.run([64])
child = os.fork()
native.run([64])
assert (x == 2).all()
del native
if child:
    assert os.waitpid(child, 0)[1] == 0
print("ended", flush=True)
"""
        done = run_python(code)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("ended") == 2

    def test_exit_with_living_threads(self):
        """A module-level pool that is never closed does not keep the process alive."""
        code = """
from galley.kernels import _native, weights
from galley.kernels.quantized import QuantizedWeight
from galley.kernels.weights import pack
pool = _native.Pool(4)
program = _native.Program(pool, 1, {"tokens": 1, "sequences": 1, "logits": 1})
"""
        assert run_python(code).returncode == 0

    def test_the_gil_is_free_during_a_run(self):
        """While one Python thread is in a long run, another one runs Python."""
        code = """
import threading
import numpy as np
from tests.kernels.native_harness import Native
from tests.kernels.test_program import adder
native = Native(slots=1, max_len=4096)
x, y = adder(native, 4096, n=256)
for _ in range(400):
    native.add("add", {"x": x, "y": y}, n=256)
native.run([4096])
ticks, over = 0, threading.Event()
def compute():
    native.run([4096])
    over.set()
worker = threading.Thread(target=compute)
worker.start()
while not over.is_set():
    ticks += 1
worker.join()
assert ticks > 100, ticks
"""
        done = run_python(code)
        assert done.returncode == 0, done.stderr

    def test_pool_is_free_of_races(self, tmp_path):
        """The stress program under ThreadSanitizer, which ends with 66 where it saw a race."""
        binary = tmp_path / "pool_stress"
        sources = [ROOT / "csrc" / "pool.cpp", Path(__file__).with_name("pool_stress.cpp")]
        build = ["g++", "-std=c++17", "-O1", "-g", "-fsanitize=thread", f"-I{ROOT / 'csrc'}"]
        subprocess.run(
            [*build, *map(str, sources), "-o", str(binary), "-lpthread"],
            check=True,
            timeout=TIMEOUT,
        )
        done = subprocess.run([str(binary)], capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "right\n"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
