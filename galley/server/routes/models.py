"""/v1/models."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from galley.server.context import Context
from galley.server.errors import json_response
from galley.server.protocol.models import ModelCard, ModelList, ModelPermission
from galley.server.response_builder import to_json
from galley.server.router import Router


def routes(ctx: Context) -> Router:
    router = Router()

    @router.get("/v1/models", response=ModelList)
    async def show_available_models(raw: Request) -> Response:
        """The names under which the model is served, and its adapters."""
        cards = [
            ModelCard(
                id=name,
                created=ctx.created,
                root=ctx.root,
                max_model_len=ctx.engine.limits.max_model_len,
                permission=[ModelPermission(id=f"modelperm-{name}", created=ctx.created)],
            )
            for name in ctx.model_names
        ]
        if ctx.adapters is not None:
            for name, entry in ctx.adapters.entries.items():
                permission = ModelPermission(id=f"modelperm-{name}", created=ctx.created)
                cards.append(
                    ModelCard(
                        id=name,
                        created=ctx.created,
                        root=entry.path,
                        parent=entry.base or ctx.model_names[0],
                        max_model_len=ctx.engine.limits.max_model_len,
                        permission=[permission],
                    )
                )
        return json_response(to_json(ModelList(data=cards)))

    return router
