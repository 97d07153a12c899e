"""The `galley` command line: one file per command."""
