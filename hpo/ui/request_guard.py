"""Checks of the requests to the dashboard, which has no login."""

import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS = [
    ("Content-Security-Policy", "frame-ancestors 'none'"),
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
]

_Start = Callable[..., Any]


class RequestGuard:
    """WSGI application that passes on only requests which the user's own pages can send.

    A page of another site reaches a local server under a name of that site, if the name resolves to a local address
    (DNS rebinding). So the ``Host`` header has to be a loopback address, the address that the server listens on,
    ``localhost``, the name of this machine or an allowed name. A request that may change something has to come from a
    page of the same host.

    Args:
        app: The application.
        bound: The address that the server listens on. If it is unspecified (0.0.0.0, ::), each address is served.
        names: Other names under which the dashboard is opened, for example of a proxy.
    """

    def __init__(self, app: Any, bound: str, names: Iterable[str] = ()) -> None:
        machine = socket.gethostname().lower()
        self._names = {"localhost", machine, machine.partition(".")[0], *(name.lower() for name in names)}
        self._app = app
        self._bound = ipaddress.ip_address(bound.partition("%")[0])

    def __call__(self, environ: dict[str, Any], start_response: _Start) -> Iterable[bytes]:
        """Answer a request, with status 403 if it is refused."""

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            ours = {name.lower() for name, _ in _HEADERS}
            return start_response(status, [*(h for h in headers if h[0].lower() not in ours), *_HEADERS], *rest)

        problem = self._problem(environ)
        if problem is None:
            return self._app(environ, start)  # type: ignore[no-any-return]  # the app has no types
        start("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{problem}\n".encode()]

    def _problem(self, environ: dict[str, Any]) -> str | None:
        """Return why a request is refused, None if it is not."""
        host = environ.get("HTTP_HOST", "")
        if not self._is_allowed(host):
            return "The dashboard does not serve this host name. Open it as localhost, or allow the name: --allow-host"
        if environ["REQUEST_METHOD"] in _SAFE_METHODS:
            return None
        origin = environ.get("HTTP_ORIGIN")
        site = environ.get("HTTP_SEC_FETCH_SITE", "same-origin")
        if (origin is not None and not _is_page_of(origin, host)) or site not in ("same-origin", "none"):
            return "The dashboard takes changes only from its own pages."
        return None

    def _is_allowed(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        # A server name has no user, path or query.
        if any(character in host for character in "@/?# "):
            return False
        return name.rstrip(".") in self._names or self._is_own_address(name)

    def _is_own_address(self, name: str) -> bool:
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self._bound.is_unspecified or address == self._bound


def _is_page_of(origin: str, host: str) -> bool:
    """Return whether an ``Origin`` header names a ``Host`` header; each of them may omit the default port."""
    try:
        scheme, netloc, *_ = urlsplit(origin)
    except ValueError:
        return False
    port = _DEFAULT_PORTS.get(scheme, "")
    return netloc.lower().removesuffix(port) == host.lower().removesuffix(port)
