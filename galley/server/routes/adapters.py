"""Loading and unloading adapters at run time, with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from galley.server.adapters import ServedAdapters
from galley.server.context import Context
from galley.server.protocol.adapters import load_reader, register_reader, unload_reader
from galley.server.router import MODEL_ERRORS, Router

#: Header of SageMaker's with the name of an adapter that answers are to use.
ALIAS = "x-amzn-sagemaker-adapter-alias"


def routes(ctx: Context) -> Router:
    router = Router()
    if ctx.adapters is not None and ctx.update_adapters:
        _vllm(router, ctx, ctx.adapters)
        _sagemaker(router, ctx, ctx.adapters)
    return router


def _vllm(router: Router, ctx: Context, adapters: ServedAdapters) -> None:
    @router.post("/v1/load_lora_adapter", load_reader, response=str, errors=MODEL_ERRORS)
    async def load_lora_adapter(raw: Request) -> Response:
        """Offer an adapter under a name, or with `load_inplace` another one under the same name."""
        request = await ctx.read(raw, load_reader)
        await adapters.load(request.lora_name, request.lora_path, request.load_inplace)
        return _success(request.lora_name, "added")

    @router.post("/v1/unload_lora_adapter", unload_reader, response=str, errors=MODEL_ERRORS)
    async def unload_lora_adapter(raw: Request) -> Response:
        """Offer an adapter no more. Requests in flight finish with it."""
        request = await ctx.read(raw, unload_reader)
        await adapters.unload(request.lora_name)
        return _success(request.lora_name, "removed")


def _sagemaker(router: Router, ctx: Context, adapters: ServedAdapters) -> None:
    @router.post("/adapters", register_reader, response=str, errors=MODEL_ERRORS)
    async def register_adapter(raw: Request) -> Response:
        """As /v1/load_lora_adapter."""
        request = await ctx.read(raw, register_reader)
        await adapters.load(request.name, request.src, request.load_inplace)
        return PlainTextResponse(f"Adapter {raw.headers.get(ALIAS) or request.name} registered")

    @router.delete("/adapters/{adapter_name}", response=str, errors=MODEL_ERRORS)
    async def unregister_adapter(raw: Request) -> Response:
        """As /v1/unload_lora_adapter."""
        name = raw.path_params["adapter_name"]
        await adapters.unload(name)
        return PlainTextResponse(f"Adapter {raw.headers.get(ALIAS) or name} unregistered")


def _success(name: str, done: str) -> Response:
    return PlainTextResponse(f"Success: LoRA adapter '{name}' {done} successfully.")
