"""llama.cpp as a library: the logits of a file, by its C functions.

Structures are passed as blocks of bytes that are larger than they are, of which only the first
fields are set here; so one file serves many releases (include/llama.h, first releases of 2026).
"""

from __future__ import annotations

import ctypes
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class _Parameters(ctypes.Structure):
    """Of a model or a context. Of a context, the first are: tokens of the context, of a batch and
    of a part of it."""

    _fields_ = [("numbers", ctypes.c_uint32 * 128)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def logits_of(
    library: Path, path: Path, ids: NDArray[np.integer], vocab: int
) -> NDArray[np.float32]:
    """[n, vocab] of one sequence, computed by a child process: an assertion of llama.cpp ends it.

    Raises:
        ValueError: a file that it cannot run.
    """
    context = multiprocessing.get_context("spawn")  # OpenMP does not survive a fork
    here, there = context.Pipe()
    child = context.Process(target=_answer, args=(there, library, path, ids, vocab))
    child.start()
    there.close()
    try:
        answer = here.recv()
    except EOFError:
        answer = f"llama.cpp cannot load {path.name}: it aborts"
    child.join()
    if isinstance(answer, str):
        raise ValueError(answer)
    return answer


def _answer(
    pipe: Connection, library: Path, path: Path, ids: NDArray[np.integer], vocab: int
) -> None:
    try:
        pipe.send(LlamaCpp(library).logits(path, ids, vocab))
    except ValueError as error:
        pipe.send(str(error))


class LlamaCpp:
    """The functions of a `libllama.so`."""

    def __init__(self, library: Path) -> None:
        self._lib = lib = ctypes.CDLL(str(library))
        for name, result, arguments in (
            ("llama_model_default_params", _Parameters, []),
            ("llama_context_default_params", _Parameters, []),
            ("llama_model_load_from_file", ctypes.c_void_p, [ctypes.c_char_p, _Parameters]),
            ("llama_init_from_model", ctypes.c_void_p, [ctypes.c_void_p, _Parameters]),
            ("llama_batch_init", _Batch, [ctypes.c_int32] * 3),
            ("llama_batch_free", None, [_Batch]),
            ("llama_decode", ctypes.c_int32, [ctypes.c_void_p, _Batch]),
            ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p]),
            ("llama_free", None, [ctypes.c_void_p]),
            ("llama_model_free", None, [ctypes.c_void_p]),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        lib.llama_backend_init()

    def logits(self, path: Path, ids: NDArray[np.integer], vocab: int) -> NDArray[np.float32]:
        """[n, vocab] of one sequence. Raises ValueError for a file that it cannot run."""
        lib, n = self._lib, len(ids)
        model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not model:
            raise ValueError(f"llama.cpp cannot load {path.name}")
        parameters = lib.llama_context_default_params()
        parameters.numbers[0:3] = [max(256, n)] * 3
        context = lib.llama_init_from_model(model, parameters)
        if not context:
            raise ValueError(f"llama.cpp cannot run {path.name}")
        batch = lib.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        if lib.llama_decode(context, batch):
            raise ValueError(f"llama.cpp fails on {path.name}")
        flat = np.ctypeslib.as_array(lib.llama_get_logits(context), (n * vocab,))
        result = flat.reshape(n, vocab).copy()
        lib.llama_batch_free(batch)
        lib.llama_free(context)
        lib.llama_model_free(model)
        return result
