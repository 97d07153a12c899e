"""TLS files that are replaced while the server runs (--enable-ssl-refresh)."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from galley.config.server import ServerConfig

logger = logging.getLogger(__name__)


class Certificates:
    """The TLS files of a server, looked at now and then.

    Args:
        context: which connections are made with; it holds the files as they are now.
    """

    def __init__(self, context: ssl.SSLContext, server: ServerConfig) -> None:
        assert server.ssl_certfile is not None
        self._context = context
        self._chain = server.ssl_certfile, server.ssl_keyfile
        self._authorities = server.ssl_ca_certs
        self._seen = self._stamps()

    def look(self) -> None:
        """Load what has changed. Files that cannot be used are logged, and the old ones stay."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            # A chain without its key would spoil the context: another one is tried first.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._context):
                context.load_cert_chain(*self._chain)
                if self._authorities is not None:
                    context.load_verify_locations(self._authorities)
        except (OSError, ssl.SSLError) as error:
            logger.warning("The new TLS files cannot be used, the old ones stay: %s", error)
        else:
            logger.info("TLS files have changed: new connections get them.")

    def _stamps(self) -> list[tuple[int, int, int]]:
        """What tells that a file has been replaced; zeros for one that is not there just now."""
        stamps = []
        for name in (*self._chain, self._authorities):
            try:
                stat = Path(name).stat() if name is not None else None
            except OSError:
                stat = None
            stamps.append((stat.st_ino, stat.st_size, stat.st_mtime_ns) if stat else (0, 0, 0))
        return stamps
