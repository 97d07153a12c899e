"""`galley bench sweep`: runs servers, loads and starts over lists of settings, and plots them.

    galley bench sweep serve --serve-cmd 'galley serve' --bench-cmd 'galley bench serve …' \\
        --serve-params '{"max_num_batched_tokens": [256, 2048]}' \\
        --bench-params '{"max_concurrency": [1, 8, 32]}'

Flags, files and names are those of vLLM's `bench sweep`. Every combination of server settings gets
a server of its own; each of the load's settings runs against it `--num-runs` times:

    OUTPUT_DIR/EXPERIMENT/SERVE--a=1-BENCH--b=2/run=0.json …     results of `bench serve`
                                               /summary.json     all runs, with the settings
    OUTPUT_DIR/EXPERIMENT/summary.csv                            all combinations
"""

from __future__ import annotations

import importlib

#: name → (module with `main(argv) -> int`, one line).
COMMANDS = {
    "serve": ("galley.cli.bench.sweep.serve", "servers and loads over lists of settings"),
    "serve_workload": (
        "galley.cli.bench.sweep.workload",
        "from one request at a time to all at once: latency over throughput",
    ),
    "startup": ("galley.cli.bench.sweep.startup", "starts over lists of settings"),
    "plot": ("galley.cli.bench.sweep.plot", "curves of a sweep's results"),
    "plot_pareto": (
        "galley.cli.bench.sweep.pareto",
        "what each user gets over what the machine gives, and the best of both",
    ),
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: galley bench sweep {{{','.join(COMMANDS)}}} [options]\n")
        for name, (_, text) in COMMANDS.items():
            print(f"  {name:<16}{text}")
        print("\n" + (__doc__ or "").strip())
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    result: int = importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    return result
