"""The error tree. Every failure that a user sees is one of these.

    GalleyError
    ├── ClientError          the caller's fault: 4xx
    │   ├── InvalidRequest       400, names the field
    │   ├── Unauthorized         401
    │   ├── Forbidden            403
    │   ├── NotFound             404
    │   ├── PayloadTooLarge      413
    │   └── Unsupported          400, the field exists but is not supported here
    ├── ServerError          the server's fault: 5xx
    │   ├── Overloaded           503, try again later
    │   ├── EngineDead           503, no engine at the moment
    │   └── RequestFailed        500, this request alone failed (poison, kernel error)
    └── SetupError           before serving: exit code 2, one line
        ├── ConfigError          a flag or a configuration value
        └── ModelError           a checkpoint, tokenizer or template file

One handler in the server maps ClientError and ServerError to OpenAI's error object
``{"error": {"message", "type", "param", "code"}}``; the command line prints SetupError and
exits with code 2.
"""

from __future__ import annotations


class GalleyError(Exception):
    """Root of the tree.

    Attributes:
        status: HTTP status code.
        type: vLLM's error type name, as in ``error.type``.
        field: the request field or flag at fault, if there is one.
    """

    status = 500
    type = "InternalServerError"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class ClientError(GalleyError):
    """The caller's fault."""

    status = 400
    type = "BadRequestError"


class InvalidRequest(ClientError, ValueError):
    """A field has a value that cannot be served; `field` names it."""


class Unsupported(ClientError, ValueError):
    """The field is known, but this server does not support its value."""


class Unauthorized(ClientError):
    """No valid API key."""

    status = 401
    type = "Unauthorized"


class Forbidden(ClientError):
    """The route is closed to this client, or in this server."""

    status = 403
    type = "Forbidden"


class NotFound(ClientError):
    """No such model, route or object."""

    status = 404
    type = "NotFoundError"


class PayloadTooLarge(ClientError):
    """The request body exceeds the server's limit."""

    status = 413
    type = "PayloadTooLargeError"


class ServerError(GalleyError):
    """The fault of the server or the machine."""


class Overloaded(ServerError):
    """Queue limits reached; the client may retry after a while."""

    status = 503
    type = "ServiceUnavailableError"


class EngineDead(ServerError):
    """There is no engine, and this request will not get one."""

    status = 503
    type = "ServiceUnavailableError"


class RequestFailed(ServerError):
    """This request alone failed inside the engine."""


class SetupError(GalleyError):
    """Found before serving starts; the command line prints it and exits with code 2."""


class ConfigError(SetupError, ValueError):
    """A flag or configuration value is unknown, out of range or contradicts another."""


class ModelError(SetupError, ValueError):
    """A checkpoint, tokenizer or chat-template file cannot be used."""
