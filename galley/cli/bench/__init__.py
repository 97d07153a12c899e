"""`galley bench`: load for servers of any engine, and measurements of this one.

Each subcommand is a file with `main(argv) -> int`; `main.COMMANDS` lists them. Flags and the fields
of JSON results have vLLM's names. Knows engines by URL or through `LLM`, never their insides
(`kernels` and `host` excepted, which measure exactly those).
"""
