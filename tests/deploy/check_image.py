"""The image, built from deploy/docker/Dockerfile by buildah and run.

Its base is Debian's own Python, because that can be made without a registry of images.

Not a part of the gate: `make check-image` (root, Debian's packages, minutes of compilation).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.deploy.tools import ROOT, free_port, run
from tests.server.test_tls import CERT, KEY

pytestmark = pytest.mark.timeout(3600)

SECONDS = 1800
BASE, IMAGE = "localhost/galley-base", "localhost/galley"
#: Nothing but what a chroot gives: containers in containers have no namespaces of their own.
CHROOT = ("--isolation", "chroot")
#: Those of this process: buildah asks for more than a sandbox may give.
LIMITS = [
    word
    for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))
    for word in ("--ulimit", "{}={}:{}".format(name, *resource.getrlimit(number)))
]


def buildah(*words: str | Path) -> str:
    return run("buildah", "--storage-driver", "vfs", *words, timeout=SECONDS)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    packages = "--include=python3,python3-venv,python3-dev,ca-certificates"
    tar = folder / "root.tar"
    run("mmdebstrap", "--variant=minbase", packages, "trixie", tar, timeout=SECONDS)
    base = buildah("from", *LIMITS, "scratch").strip()
    buildah("add", base, tar, "/")
    buildah("run", *CHROOT, base, "--", "ln", "-s", "python3", "/usr/bin/python")
    certificate = os.environ.get("PIP_CERT")
    if certificate:  # of the proxy that this machine reaches the package index through
        buildah("copy", base, certificate, "/etc/ssl/builder.pem")
        buildah("config", "--env", "PIP_CERT=/etc/ssl/builder.pem", base)
    buildah("commit", base, BASE)
    done = subprocess.run(
        [
            *("buildah", "--storage-driver", "vfs", "build", *CHROOT, *LIMITS, "--network", "host"),
            *("--format", "docker", "--build-arg", f"BASE={BASE}"),
            *("-f", "deploy/docker/Dockerfile", "-t", IMAGE, "."),
        ],
        cwd=ROOT,
    )
    assert done.returncode == 0
    return IMAGE


@contextmanager
def container(image: str, *arguments: str) -> Iterator[str]:
    """A container whose server runs as a user id without an entry in its passwd file."""
    name = buildah("from", *LIMITS, image).strip()
    process = subprocess.Popen(
        [
            *("buildah", "--storage-driver", "vfs", "run", *CHROOT, "--network", "host"),
            *("--user", "123456:0", name, "--", "galley", "serve", *arguments),
        ]
    )
    try:
        yield name
    finally:
        process.terminate()
        process.wait(30)
        buildah("rm", name)


def test_what_the_image_says(image: str) -> None:
    """Checklist 245: entry point, user, volume and health check."""
    said = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
    assert said["Entrypoint"] == ["galley", "serve"]
    assert said["User"] == "10001:0"
    assert "/data" in said["Volumes"]
    assert said["Healthcheck"]["Test"] == ["CMD", "python", "/opt/galley/healthcheck.py"]


@pytest.mark.parametrize("tls", [False, True])
def test_any_user_serves_and_is_healthy(image: str, tls: bool) -> None:
    """Checklist 247: a user without a name writes to /data, and the check follows port and TLS."""
    port = free_port()
    flags = ["--port", str(port), "--kv-cache-memory-bytes", "64M", "--max-model-len", "512"]
    name = buildah("from", *LIMITS, image).strip()
    buildah("copy", name, CERT, "/tmp/cert.pem")
    buildah("copy", "--chmod", "644", name, KEY, "/tmp/key.pem")
    buildah("commit", name, f"{IMAGE}-tls")
    buildah("rm", name)
    if tls:
        flags += ["--ssl-certfile", "/tmp/cert.pem", "--ssl-keyfile", "/tmp/key.pem"]
    url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
    with container(f"{IMAGE}-tls", *flags) as name:
        deadline = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"{url}/health", verify=False).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline
            time.sleep(1)
        question = {"role": "user", "content": "What is the capital of France?"}
        body = {"messages": [question], "temperature": 0}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, verify=False, timeout=60)
        assert "Paris" in reply.json()["choices"][0]["message"]["content"]
        check = ("python", "/opt/galley/healthcheck.py")
        buildah("run", *CHROOT, "--user", "123456:0", name, "--", *check)
