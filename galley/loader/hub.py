"""Downloads from the Hugging Face hub; `huggingface_hub` is imported only when a name needs it.

A repository is listed once and only the files that are needed are fetched (with the library's own
progress bars). Without a network, or with HF_HUB_OFFLINE=1, the local cache is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from galley.config import LoadConfig
from galley.config.registries import LOAD_FORMAT_ALIASES
from galley.errors import ModelError

#: Side files of a Hugging Face checkpoint: configs, tokenizers, templates.
SIDE_FILES = ("*.json", "tokenizer.model", "*.jinja", "merges.txt")
#: Other formats of the same weights that some repositories contain.
_MISTRAL = "consolidated*"
_OTHER_FORMS = ("original/*", _MISTRAL, "onnx/*", "*/*.safetensors")
#: Weights of PyTorch, whole or in parts.
_TORCH = "pytorch_model*.bin"
_PART = r"(?:-\d{5}-of-\d{5})?"


Token = str | bool | None


def download_model(name: str, revision: str | None, load: LoadConfig, token: Token = None) -> Path:
    """The local directory of `org/name`, or the local .gguf file of `org/name:quant`.

    Args:
        token: access token; None or True = HF_TOKEN or the one of `hf auth login`, False = none.

    Raises ModelError: no such repository, quantisation or revision; no access; no network and not
    in the cache. The message says how to fix it.
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
    needed = checkpoint_files(files, LOAD_FORMAT_ALIASES.get(load.load_format, load.load_format))
    if load.load_format == "dummy":
        needed = [file for file in needed if not _matches(file, ("*.safetensors", _TORCH))]
    return hub.fetch(needed)


def download_side_files(
    name: str, revision: str | None, load: LoadConfig, token: Token = None
) -> Path:
    """The local directory with the configs and tokenizer files of a hub repository."""
    hub = _Hub(name, revision, load.download_dir, token)
    return hub.fetch([file for file in hub.list_files() if _matches(file, SIDE_FILES)])


def checkpoint_files(files: list[str], load_format: str = "auto") -> list[str]:
    """The files of a repository that belong to a checkpoint: weights of Hugging Face; Mistral's or
    PyTorch's where they are asked for or there are no others."""
    others = tuple(form for form in _OTHER_FORMS if form != _MISTRAL)
    top = [file for file in files if not _matches(file, others)]
    has_mistral = any(_matches(file, (_MISTRAL,)) for file in top)
    has_hugging_face = any(_matches(file, ("*.safetensors",)) for file in files)
    if has_mistral:
        has_hugging_face = any(
            f.endswith(".safetensors") and not _matches(f, (_MISTRAL,)) for f in top
        )
    if has_mistral and (load_format == "mistral" or not has_hugging_face):
        return [file for file in top if _matches(file, (*SIDE_FILES, _MISTRAL))]
    weights = _TORCH if load_format == "pt" or not has_hugging_face else "*.safetensors"
    matches = [file for file in files if _matches(file, (*SIDE_FILES, weights))]
    return [file for file in matches if not _matches(file, _OTHER_FORMS)]


def quantised_files(name: str, files: list[str], quant: str) -> list[str]:
    """The GGUF files of one quantisation: one, or the parts of one model.

    The quantisation is the end of a file's name (`model-Q4_K_M.gguf`, in parts
    `model-Q4_K_M-00001-of-00002.gguf`) or its folder. Case is ignored.
    """
    ggufs = [file for file in files if file.endswith(".gguf")]
    ends = re.compile(rf"(^|.*[-._]){re.escape(quant)}{_PART}\.gguf", re.IGNORECASE)
    matches = [file for file in ggufs if ends.fullmatch(PurePosixPath(file).name)]
    if not matches:
        matches = [f for f in ggufs if PurePosixPath(f).parent.name.lower() == quant.lower()]
    if not matches:
        names = ", ".join(ggufs[:12]) or "none"
        raise ModelError(f"{name}: no GGUF file of {quant}; the repository has: {names}")
    return _only_model(name, matches)


def _only_model(name: str, ggufs: list[str]) -> list[str]:
    """`ggufs` without projectors, if they are one model; ModelError if they are several."""
    files = [file for file in ggufs if not PurePosixPath(file).name.startswith("mmproj")]
    if len({re.sub(r"-\d{5}-of-", "-of-", file) for file in files}) != 1:
        names = ", ".join(PurePosixPath(file).name for file in files[:12])
        raise ModelError(f"{name}: several GGUF files; name one as NAME:QUANT, from: {names}")
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

    def _form(self) -> str:
        """A hint for a name that is no hub name of today."""
        if "/" in self.repo:
            return ""
        return " Hub names are org/name, for example Qwen/Qwen3-0.6B-GGUF:Q8_0."

    def list_files(self) -> list[str]:
        """Names of the repository's files, or of its cached copy if there is no network."""
        from huggingface_hub import HfApi, constants

        if constants.HF_HUB_OFFLINE:
            return self._cached_files("HF_HUB_OFFLINE is set")
        info, error = self._call(
            lambda: HfApi(token=self.token).model_info(self.repo, revision=self.revision)
        )
        if error is None:
            return [entry.rfilename for entry in info.siblings or ()]
        return self._cached_files(f"the hub cannot be reached: {error}")

    def fetch(self, files: list[str]) -> Path:
        """Download `files` unless they are cached; the snapshot's directory."""
        from huggingface_hub import snapshot_download

        folder, error = self._call(
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
        return Path(folder)

    def fetch_gguf(self, files: list[str]) -> Path:
        """The local path of the model's file, or of its first part."""
        return self.fetch(files) / files[0]

    def _cached_files(self, reason: str) -> list[str]:
        from huggingface_hub import snapshot_download

        # Without patterns, an incomplete snapshot is accepted too.
        folder, error = self._call(
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
                f"Name a local directory or .gguf file, or download it once with a network."
                f"{self._form()}",
                field="model",
            )
        root = Path(folder)
        return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]

    def _call(self, call: Callable[[], Any]) -> tuple[Any, str | None]:
        """(result, None), or (None, reason) if the hub cannot be reached. Raises ModelError if it
        refuses: no such repository or revision, no access."""
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
                f"(a private one needs --hf-token or HF_TOKEN).{self._form()}",
                field="model",
            ) from None
        except errors.HFValidationError as error:
            raise ModelError(f"{self.repo}: not a model name: {error}", field="model") from None
        except Exception as error:  # noqa: BLE001 - transport errors differ between hub versions
            return None, str(error).partition("\n")[0] or type(error).__name__
