"""TLS files that are replaced while the server runs (--enable-ssl-refresh)."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from galley.config.server import ServerConfig

logger = logging.getLogger(__name__)


class Certificates:
    """The TLS files of a server, checked periodically.

    Args:
        context: of new connections; it has loaded the present files.
    """

    def __init__(self, context: ssl.SSLContext, server: ServerConfig) -> None:
        assert server.ssl_certfile is not None
        self._context = context
        self._chain = server.ssl_certfile, server.ssl_keyfile
        self._authorities = server.ssl_ca_certs
        self._seen = self._stamps()

    def reload_if_changed(self) -> None:
        """Load replaced files. Unusable files are logged, and the old ones stay."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            # A chain without its key would break the context, so another one is tried first.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._context):
                context.load_cert_chain(*self._chain)
                if self._authorities is not None:
                    context.load_verify_locations(self._authorities)
        except (OSError, ssl.SSLError) as error:
            logger.warning("The new TLS files cannot be used, the old ones stay: %s", error)
        else:
            logger.info("TLS files have changed: new connections get them.")

    def _stamps(self) -> list[tuple[int, int, int]]:
        """(inode, size, time of change) of each file; zeros for a missing one."""
        stamps = []
        for name in (*self._chain, self._authorities):
            try:
                stat = Path(name).stat() if name is not None else None
            except OSError:
                stat = None
            stamps.append((stat.st_ino, stat.st_size, stat.st_mtime_ns) if stat else (0, 0, 0))
        return stamps
