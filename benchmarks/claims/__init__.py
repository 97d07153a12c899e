"""A measurement for each thing that Galley claims: `make bench-claims`."""
