"""Tools of benchmarks: `galley bench` has its own."""
