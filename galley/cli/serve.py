"""`galley serve`: reads the flags and starts the launcher."""

from __future__ import annotations

import os

from galley.cli.parser import CommandParser, engine_flags, make
from galley.config import ModelConfig
from galley.config.resolve import SECTIONS, from_kwargs
from galley.config.server import ServerConfig

#: As `galley.frontend.input_processor` has it, which this command does not import.
BUILT_IN_SAMPLING = (
    "; unless a request says otherwise with temperature 0.2 and top_p 0.5 "
    "(--generation-config vllm: 1 and 1)"
)


def parser() -> CommandParser:
    return serving_parser(
        "serve",
        "Serve a model over an OpenAI-compatible HTTP API. Without MODEL, the built-in "
        "SmolLM2-135M-Instruct is served.",
        (
            "galley serve",
            "galley serve ./Qwen2.5-0.5B-Instruct --port 8080 --api-key secret",
            "galley serve model.gguf --max-model-len 4k --max-num-seqs 32",
            "galley serve --config serve.yaml",
        ),
    )


def serving_parser(command: str, summary: str, examples: tuple[str, ...]) -> CommandParser:
    """The parser of a command that takes the flags of `galley serve`."""
    return CommandParser(
        command,
        summary,
        [ServerConfig, *SECTIONS.values()],
        positionals=(("MODEL", "directory, FILE.gguf, or hub name (org/name, org/name:quant)"),),
        examples=examples,
        first=(
            *("host", "port", "api_key", "served_model_name", "max_model_len", "max_num_seqs"),
            *(
                "kv_cache_memory_bytes",
                "num_threads",
                "enable_auto_tool_choice",
                "tool_call_parser",
            ),
        ),
    )


def main(argv: list[str]) -> int:
    reader = parser()
    given = reader.read(argv)
    server = make(ServerConfig, given)
    if server.tokens_only:
        given[ModelConfig]["skip_tokenizer_init"] = True
    config = from_kwargs(engine_flags(given), "server")
    if not config.model.model:
        sampling = "" if config.model.generation_config != "auto" else BUILT_IN_SAMPLING
        from galley.launcher.supervisor import say

        os.environ.update(server.logging_environment())
        say(f"no model given: serving the built-in SmolLM2-135M-Instruct{sampling}")
    from galley.launcher.main import launch

    return launch(config, server, reader.sources)
