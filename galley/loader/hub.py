"""Downloads from the Hugging Face hub; `huggingface_hub` is imported only when a name needs it.

A repository is listed once and only the files that serve it are fetched (with the library's own
progress bars). Without a network, or with HF_HUB_OFFLINE=1, what is already in the cache serves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from galley.config import LoadConfig
from galley.errors import ModelError

#: Side files of a Hugging Face checkpoint: configs, tokenizers, templates.
SIDE_FILES = ("*.json", "tokenizer.model", "*.jinja", "merges.txt")
#: Other forms of the same weights, which some repositories carry beside them.
_OTHER_FORMS = ("original/*", "consolidated*", "onnx/*", "*/*.safetensors")
_PART = r"(?:-\d{5}-of-\d{5})?"


Token = str | bool | None


def download_model(name: str, revision: str | None, load: LoadConfig, token: Token = None) -> Path:
    """The local directory of `org/name`, or the local .gguf file of `org/name:quant`.

    Args:
        token: whose access it is; None or True = HF_TOKEN's or that of `hf auth login`, False =
            nobody's.

    Raises ModelError: no such repository, quantisation or revision; no access; no network and not
    in the cache. The message says what to do.
    """
    repo, _, quant = name.partition(":")
    hub = _Hub(repo, revision, load.download_dir, token)
    files = hub.list_files()
    if quant:
        return hub.fetch_gguf(quantised_files(name, files, quant))
    if not any(file.endswith(".safetensors") for file in files):
        ggufs = [file for file in files if file.endswith(".gguf")]
        if ggufs:
            return hub.fetch_gguf(_only_model(name, ggufs))
    wanted = checkpoint_files(files)
    if load.load_format == "dummy":
        wanted = [file for file in wanted if not file.endswith(".safetensors")]
    return hub.fetch(wanted)


def download_side_files(
    name: str, revision: str | None, load: LoadConfig, token: Token = None
) -> Path:
    """The local directory with the configs and tokenizer files of a hub repository."""
    hub = _Hub(name, revision, load.download_dir, token)
    return hub.fetch([file for file in hub.list_files() if _matches(file, SIDE_FILES)])


def checkpoint_files(files: list[str]) -> list[str]:
    """The files of a repository that make a Hugging Face checkpoint."""
    wanted = [file for file in files if _matches(file, (*SIDE_FILES, "*.safetensors"))]
    return [file for file in wanted if not _matches(file, _OTHER_FORMS)]


def quantised_files(name: str, files: list[str], quant: str) -> list[str]:
    """The GGUF files of one quantisation: one, or the parts of one model.

    The quantisation is the end of a file's name (`model-Q4_K_M.gguf`, in parts
    `model-Q4_K_M-00001-of-00002.gguf`) or the folder it lies in; upper and lower case are alike.
    """
    ggufs = [file for file in files if file.endswith(".gguf")]
    ends = re.compile(rf"(^|.*[-._]){re.escape(quant)}{_PART}\.gguf", re.IGNORECASE)
    found = [file for file in ggufs if ends.fullmatch(PurePosixPath(file).name)]
    if not found:
        found = [f for f in ggufs if PurePosixPath(f).parent.name.lower() == quant.lower()]
    if not found:
        listed = ", ".join(ggufs[:12]) or "none"
        raise ModelError(f"{name}: no GGUF file of {quant}; the repository has: {listed}")
    return _only_model(name, found)


def _only_model(name: str, ggufs: list[str]) -> list[str]:
    """`ggufs` without projectors, if they are one model; ModelError if they are several."""
    files = [file for file in ggufs if not PurePosixPath(file).name.startswith("mmproj")]
    if len({re.sub(r"-\d{5}-of-", "-of-", file) for file in files}) != 1:
        listed = ", ".join(PurePosixPath(file).name for file in files[:12])
        raise ModelError(f"{name}: several GGUF files; name one as NAME:QUANT, from: {listed}")
    return sorted(files)


def _matches(file: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(file, pattern) for pattern in patterns)


class _Hub:
    """One repository at one revision."""

    def __init__(self, repo: str, revision: str | None, cache: str | None, token: Token) -> None:
        self.repo = repo
        self.revision = revision
        self.cache = cache
        self.token = token

    def list_files(self) -> list[str]:
        """Names of the repository's files; of its cached copy where there is no network."""
        from huggingface_hub import HfApi, constants

        if constants.HF_HUB_OFFLINE:
            return self._cached_files("HF_HUB_OFFLINE is set")
        answer, error = self._ask(
            lambda: HfApi(token=self.token).model_info(self.repo, revision=self.revision)
        )
        if error is None:
            return [entry.rfilename for entry in answer.siblings or ()]
        return self._cached_files(f"the hub cannot be reached: {error}")

    def fetch(self, files: list[str]) -> Path:
        """Download `files`, or find them in the cache; the snapshot's directory."""
        from huggingface_hub import snapshot_download

        found, error = self._ask(
            lambda: snapshot_download(
                self.repo,
                revision=self.revision,
                cache_dir=self.cache,
                allow_patterns=files,
                token=self.token,
            )
        )
        if error is not None:
            raise ModelError(f"{self.repo}: the download failed: {error}", field="model")
        return Path(found)

    def fetch_gguf(self, files: list[str]) -> Path:
        """The local path of the model's file, or of its first part."""
        return self.fetch(files) / files[0]

    def _cached_files(self, reason: str) -> list[str]:
        from huggingface_hub import snapshot_download

        # No patterns, no demands: the folder is wanted however little of it is there.
        found, error = self._ask(
            lambda: snapshot_download(
                self.repo,
                revision=self.revision,
                cache_dir=self.cache,
                local_files_only=True,
                allow_patterns=[],
            )
        )
        if error is not None:
            raise ModelError(
                f"{self.repo}: neither a local path nor in the download cache, and {reason}. "
                "Name a local directory or .gguf file, or download it once with a network.",
                field="model",
            )
        root = Path(found)
        return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]

    def _ask(self, call: Callable[[], Any]) -> tuple[Any, str | None]:
        """(answer, None) or (None, why the hub cannot answer). Raises ModelError for a definite no:
        no such repository or revision, no access."""
        from huggingface_hub import errors

        try:
            return call(), None
        except errors.GatedRepoError:
            raise ModelError(
                f"{self.repo}: access is restricted; accept its terms on the hub and give a token "
                "(--hf-token or HF_TOKEN).",
                field="model",
            ) from None
        except errors.RevisionNotFoundError:
            raise ModelError(
                f"{self.repo}: no revision {self.revision!r}", field="revision"
            ) from None
        except errors.RepositoryNotFoundError:
            raise ModelError(
                f"{self.repo}: no such file or directory here and no such model on the hub "
                "(a private one needs --hf-token or HF_TOKEN).",
                field="model",
            ) from None
        except errors.HFValidationError as error:
            raise ModelError(f"{self.repo}: not a model name: {error}", field="model") from None
        except Exception as error:  # noqa: BLE001 - each hub version has its own transport's errors
            return None, str(error).partition("\n")[0] or type(error).__name__
