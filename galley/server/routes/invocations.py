"""/invocations: SageMaker's single path to the generation endpoints."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from galley.errors import InvalidRequest
from galley.server.context import Context
from galley.server.protocol.chat import ChatCompletionResponse
from galley.server.protocol.completions import CompletionResponse
from galley.server.router import GENERATION_ERRORS, Router
from galley.server.routes import chat, completions
from galley.server.sagemaker_sessions import session_reply

#: A key that only bodies of one endpoint have → that endpoint's answer; tried in this order.
_BY_KEY = {
    "messages": chat.respond,
    "prompt": completions.respond,
    "prompt_embeds": completions.respond,
}
#: Header of SageMaker's that names the adapter of a request, as `model` does.
ADAPTER = "x-amzn-sagemaker-adapter-identifier"
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw])


def routes(ctx: Context) -> Router:
    router = Router()

    @router.post(
        "/invocations",
        (chat.reader, completions.reader),
        response=(ChatCompletionResponse, CompletionResponse),
        streams=True,
        errors=GENERATION_ERRORS,
    )
    async def invocations(raw: Request) -> Response:
        """Answer as chat (a body with `messages`) or completions (`prompt`). The header
        X-Amzn-SageMaker-Adapter-Identifier names an adapter in place of `model`; a body of
        `requestType` creates or closes a session.
        """
        body = await ctx.body(raw)
        try:
            keys = _keys.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # The endpoint says what is wrong with it.
            keys = {}
        if (reply := session_reply(ctx.sessions, raw, keys)) is not None:
            return reply
        adapter = raw.headers.get(ADAPTER)
        if adapter and keys:
            body = msgspec.json.encode({**keys, "model": adapter})
        for key, respond in _BY_KEY.items():
            if key in keys:
                return await respond(ctx, raw, body)
        raise InvalidRequest(
            f"The request body must be a JSON object with one of {', '.join(_BY_KEY)}."
        )

    return router
