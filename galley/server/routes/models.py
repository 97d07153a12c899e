"""/v1/models."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from galley.server.context import Context
from galley.server.errors import json_response
from galley.server.protocol.base import ErrorResponse
from galley.server.protocol.models import ModelCard, ModelList, ModelPermission
from galley.server.response_builder import to_json
from galley.server.router import Router


def routes(ctx: Context) -> Router:
    router = Router()

    def cards_of_all() -> list[ModelCard]:
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
        return cards

    @router.get("/v1/models", response=ModelList)
    async def show_available_models(raw: Request) -> Response:
        """The names under which the model is served, and its adapters."""
        return json_response(to_json(ModelList(data=cards_of_all())))

    @router.get("/v1/models/{model:path}", response=ModelCard, errors={404: ErrorResponse})
    async def show_model(raw: Request) -> Response:
        """One model or adapter by its name, which may contain slashes."""
        name = raw.path_params["model"]
        for card in cards_of_all():
            if card.id == name:
                return json_response(to_json(card))
        ctx.adapter(name)  # raises NotFound, unless any name is answered
        card = msgspec.structs.replace(cards_of_all()[0], id=name)
        return json_response(to_json(card))

    return router
