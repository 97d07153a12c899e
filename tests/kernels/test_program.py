"""The program executor: preparation of a step, refusal of bad columns, threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from galley.kernels import _native
from tests.kernels.native_harness import ISAS, Native, aligned, use_isa

ROOT = Path(__file__).parents[2]
TIMEOUT = 120


def adder(native: Native, m: int, n: int = 8, **numbers: int) -> tuple[np.ndarray, np.ndarray]:
    """An op that shows how often it ran: x += y on m rows."""
    x, y = aligned((m, n), np.float32), aligned((m, n), np.float32)
    y[:] = 1
    native.add("add", {"x": x, "y": y}, n=n, **numbers)
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
            "logit_samples": [0, 1, 0, 0, 1, 1],
        }

    def test_reads_the_table_anew_each_step(self):
        native = Native(max_len=8)
        native.run([2])
        native.num_computed[0] = 2
        native.history[0, 2] = 77
        native.run([1], num_logits=[1])
        step = native.program.step()
        assert step["token_ids"] == [77]
        assert step["positions"] == [2]
        assert step["logit_samples"] == [1]

    def test_an_empty_step_runs_nothing(self):
        native = Native(max_len=8)
        x, _y = adder(native, 8)
        native.run([])
        assert (x == 0).all()
        assert native.program.step()["query_start"] == [0]

    @pytest.mark.parametrize("rows", [0, 1, 2])
    def test_ops_run_on_the_rows_they_name(self, rows):
        native = Native(slots=3, max_len=8)
        x, _y = adder(native, 24, rows=rows)
        native.run([5, 2, 1], num_logits=[1, 2, 1])
        done = {0: 8, 1: 4, 2: 3}[rows]
        assert (x[:done] == 1).all()
        assert (x[done:] == 0).all()


class TestSections:
    def test_only_the_sections_asked_for_run(self):
        native = Native(max_len=4)
        arrays = []
        for section in range(3):
            x, y = aligned((4, 8), np.float32), np.ones((4, 8), np.float32)
            native.keep.append((x, y))
            addresses = {"x": x.ctypes.data, "y": y.ctypes.data}
            native.program.add("add", addresses, {"n": 8}, section=section)
            arrays.append(x)
        columns = [np.array([v], np.int32) for v in (0, 4, 0, 0)]
        addresses = [c.ctypes.data for c in columns]
        native.program.run(*addresses, 1)
        native.program.run(*addresses, 1, 1, 2)
        native.program.run(*addresses, 1, first_section=2, last_section=2)
        assert [x[0, 0] for x in arrays] == [1, 1, 2]

    def test_profile_counts_runs_and_time(self):
        native = Native(max_len=64)
        adder(native, 64)
        native.run([64])
        assert native.program.timings() == [("add", 0, 0, 0)]
        native.program.profile(True)
        for _ in range(3):
            native.run([64])
        ((name, section, runs, nanoseconds),) = native.program.timings()
        assert (name, section, runs) == ("add", 0, 3)
        assert nanoseconds > 0
        native.program.profile(False)
        native.run([64])
        assert native.program.timings() == [("add", 0, 3, nanoseconds)]


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
            ({"slots": [0, 1, 0], "num_new": [1, 1, 1]}, "3 rows: the program was built for 2"),
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
        native = Native(slots=2, max_len=16)
        bind(native, max_tokens=5, max_logits=2)
        native.run([3, 2], num_logits=[1, 1])
        with pytest.raises(ValueError, match="6 tokens: the program was built for 5"):
            native.run([3, 3])
        with pytest.raises(ValueError, match="3 logit rows: the program was built for 2"):
            native.run([3, 2], num_logits=[2, 1])

    def test_a_length_beyond_the_block_table(self):
        native = Native(slots=1, max_len=64)
        bind(native, table_stride=2)
        with pytest.raises(ValueError, match="length of row 0 is 33, the limit is 32"):
            native.run([33])

    def test_corrupt_num_computed(self):
        native = Native(slots=1, max_len=64)
        native.num_computed[0] = -5
        with pytest.raises(ValueError, match="length of row 0"):
            native.run([1])

    def test_missing_columns(self):
        native = Native()
        with pytest.raises(ValueError, match="all four columns"):
            native.program.run(0, 0, 0, 0, 1)

    def test_run_before_bind(self):
        program = _native.Program(_native.Pool(1))
        assert program.step() == {}
        with pytest.raises(ValueError, match="before bind"):
            program.run(0, 0, 0, 0, 0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"block_size": 24}, "block_size must be 16, 32, 64 or 128, is 24"),
            ({"num_slots": 0}, "positive sizes"),
            ({"history": 0}, "needs history"),
            ({"max_tokens": 0}, "positive limits"),
            ({"sampling": {"warmth": 1}}, "no sampling column is named warmth"),
        ],
    )
    def test_bind(self, change, message):
        with pytest.raises(ValueError, match=message):
            bind(Native(), **change)


def bind(native: Native, **change: object) -> None:
    """Bind again, with some arguments changed."""
    slots, max_len = native.history.shape
    arguments: dict[str, object] = {
        "num_slots": slots,
        "max_tokens": slots * max_len,
        "max_rows": slots,
        "max_logits": slots * max_len,
        "history": native.history.ctypes.data,
        "history_stride": max_len,
        "num_tokens": native.num_tokens.ctypes.data,
        "num_prompt": native.num_prompt.ctypes.data,
        "num_computed": native.num_computed.ctypes.data,
        "block_table": native.block_table.ctypes.data,
        "table_stride": native.block_table.shape[1],
        "block_size": native.block_size,
    }
    native.program.bind(**{**arguments, **change})  # type: ignore[arg-type]


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

    def test_types_of_the_module_are_written_down(self):
        stub = (ROOT / "galley" / "kernels" / "_native.pyi").read_text()
        for name in dir(_native):
            if name.startswith("_"):
                continue
            assert f"def {name}(" in stub or f"class {name}:" in stub
            thing = getattr(_native, name)
            if isinstance(thing, type):
                methods = [m for m in vars(thing) if not m.startswith("_")]
                assert [m for m in methods if f"def {m}(" not in stub] == []


class TestInstructionSets:
    def test_environment_chooses(self):
        for isa in ISAS:
            with use_isa(isa):
                assert _native.isa() == isa

    def test_unknown_name(self):
        with use_isa("sse9"), pytest.raises(ValueError, match="generic, avx2 or avx512, is sse9"):
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
        """A module-level pool that nobody closes does not keep the process alive."""
        code = """
from galley.kernels import _native
pool = _native.Pool(4)
program = _native.Program(pool)
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
