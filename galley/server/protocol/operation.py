"""Wire types of probes and of the routes for development and profiles."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from galley.server.protocol.base import BodyReader

Steps = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Version(msgspec.Struct):
    """The program's version, and whether answers do not depend on what else is computed."""

    version: str
    batch_invariant: bool | None


class ServerLoad(msgspec.Struct):
    """Requests under way."""

    server_load: int


class ServerInfoQuery(msgspec.Struct):
    config_format: Literal["text", "json"] = "text"


class ResetPrefixCacheQuery(msgspec.Struct):
    reset_running_requests: bool = False
    reset_external: bool = False


Mode = Literal["abort", "wait", "keep"]


class PauseQuery(msgspec.Struct):
    mode: Mode = "abort"
    clear_cache: bool = True


class SleepQuery(msgspec.Struct):
    level: Annotated[int, msgspec.Meta(ge=0, le=2)] = 1
    mode: Mode = "abort"


class WakeQuery(msgspec.Struct):
    tags: list[str] | None = None


class CollectiveRpc(msgspec.Struct, kw_only=True):
    """A method to run on all workers."""

    method: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    timeout: float | None = None


class RpcResults(msgspec.Struct):
    """The answer of each worker."""

    results: list[Any]


class AbortRequests(msgspec.Struct, kw_only=True):
    """Ids of requests to end; without any, all are ended."""

    request_ids: list[str] | None = None


class ServerInfo(msgspec.Struct):
    """The configuration as a text or an object, the variables that were read, and the machine."""

    vllm_config: str | dict[str, Any]
    vllm_env: dict[str, str]
    system_env: dict[str, str]


class CacheReset(msgspec.Struct):
    """Whether the prefix cache is empty now."""

    success: bool


class WorldSize(msgspec.Struct):
    """Ranks that compute a step."""

    world_size: int


class PauseStatus(msgspec.Struct):
    """The state of the engines."""

    status: Literal["paused", "resumed", "kv_cache_released"]


class AbortStatus(msgspec.Struct):
    """The number of names, or without names of the sequences that were ended."""

    aborted: int
    status: Literal["aborted"] = "aborted"


class SleepStatus(msgspec.Struct):
    """The level of a sleep."""

    level: int
    status: Literal["sleeping"] = "sleeping"


class WakeStatus(msgspec.Struct):
    """Awake, or still asleep because not all has been woken up."""

    status: Literal["awake", "sleeping"]
    tags: list[str] | None


class IsSleeping(msgspec.Struct):
    is_sleeping: bool


class IsPaused(msgspec.Struct):
    is_paused: bool


class StartProfile(msgspec.Struct, kw_only=True):
    """Steps to record: those after the first `delay_iterations`, at most `max_iterations`."""

    profile_prefix: Annotated[str, msgspec.Meta(max_length=48)] | None = None
    delay_iterations: Steps | None = None
    max_iterations: Steps | None = None


class ProfileFiles(msgspec.Struct):
    """One path for each engine."""

    files: list[str]


rpc_reader = BodyReader(CollectiveRpc, {})
abort_reader = BodyReader(AbortRequests, {})
profile_reader = BodyReader(StartProfile, {})
