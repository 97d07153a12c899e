"""HTTP routes, one file per API family: each has `routes(ctx) -> APIRouter`."""
