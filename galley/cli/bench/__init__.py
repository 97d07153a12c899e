"""`galley bench`: load tests for any server, and measurements of this engine.

Each subcommand is a file with `main(argv) -> int`; `main.COMMANDS` lists them. Flags and the fields
of JSON results have vLLM's names. Engines are reached by URL or through `LLM`; only `kernels` and
`host` use engine internals, because they measure them.
"""
