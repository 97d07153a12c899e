"""Functions that scripts call to free a model. Galley frees it with its object."""

import gc


def cleanup_dist_env_and_memory(shutdown_ray: bool = False) -> None:
    gc.collect()


def destroy_model_parallel() -> None:
    """There is one rank: nothing to do."""


def destroy_distributed_environment() -> None:
    """There is one rank: nothing to do."""
