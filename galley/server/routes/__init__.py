"""HTTP routes, one file for each API family: `routes(ctx) -> Router`."""
