"""Requests to the dashboard that the user's own pages cannot send are refused."""

import socket

import pytest

from hpo.ui.dashboard_server import address, exposure, listen
from hpo.ui.request_guard import RequestGuard

ANY = "0.0.0.0"  # noqa: S104  # the tests are about this address


def request(host, method="GET", bound="127.0.0.1", names=(), **headers):
    """Return the status and the headers of the reply to a request."""
    replies = []

    def app(environ, start_response):
        start_response("200 OK", [("X-Frame-Options", "ALLOWALL")])
        return [b"ok"]

    environ = {"REQUEST_METHOD": method, **{f"HTTP_{name.upper()}": value for name, value in headers.items()}}
    if host is not None:
        environ["HTTP_HOST"] = host
    RequestGuard(app, bound, names)(environ, lambda status, headers, *_: replies.append((status, headers)))
    (status, sent) = replies[0]
    return int(status.split()[0]), sent


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "localhost.", "[::1]:8080", "127.0.0.53", socket.gethostname()],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_own_names_are_served(host, method):
    assert request(host, method)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        None,
        "[::1",
        "localhost@evil.example",
        "evil.example@localhost",
        "localhost/x",
        "203.0.113.7:8080",
        ANY,
        "[fe80::1]",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_other_names_are_refused(host, method):
    assert request(host, method)[0] == 403


def test_bound_address_and_allowed_names_are_served():
    assert request("192.0.2.1:8080", bound="192.0.2.1")[0] == 200
    assert request("192.0.2.2:8080", bound="192.0.2.1")[0] == 403
    assert request("192.0.2.2:8080", bound=ANY)[0] == 200
    assert request("[2001:db8::2]:8080", bound="::")[0] == 200
    assert request("evil.example", bound=ANY)[0] == 403
    assert request("hpo.example", names=["HPO.example"])[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost:8080", "sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["DELETE", "POST", "PUT", "PATCH"])
def test_changes_come_from_own_pages(headers, status, method):
    assert request("localhost:8080", method, **headers)[0] == status
    assert request("localhost:8080", "GET", **headers)[0] == 200


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:80", "http://localhost", 200),
        ("localhost", "http://localhost:80", 200),
        ("LOCALHOST", "http://localhost", 200),
        ("localhost:443", "https://localhost", 200),
        ("[::1]:80", "http://[::1]", 200),
        ("localhost:443", "http://localhost", 403),
        ("localhost:80", "https://localhost", 403),
        ("localhost:8080", "http://localhost", 403),
        ("localhost:80", "http://evil.example", 403),
        ("localhost:80", "", 403),
    ],
)
def test_origin_may_omit_default_port(host, origin, status):
    assert request(host, "POST", origin=origin)[0] == status


@pytest.mark.parametrize("host", ["localhost", "evil.example"])
def test_no_reply_can_be_framed(host):
    _, headers = request(host)
    assert ("Content-Security-Policy", "frame-ancestors 'none'") in headers
    assert [value for name, value in headers if name == "X-Frame-Options"] == ["DENY"]


@pytest.mark.parametrize(
    ("host", "opened", "is_exposed"),
    [("127.0.0.1", "127.0.0.1", False), ("localhost", "127.0.0.1", False), (ANY, "127.0.0.1", True)],
)
def test_exposed_address_has_warning_and_can_be_opened(host, opened, is_exposed):
    with listen(host, 8080) as listener:
        assert address(listener).startswith(f"http://{opened}:")
        assert (exposure(listener) is not None) == is_exposed


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(("host", "is_exposed"), [("::1", False), ("[::1]", False), ("::", True)])
def test_address_of_ipv6_can_be_opened(host, is_exposed):
    with listen(host, 8080) as listener:
        assert address(listener).startswith("http://[::1]:")
        assert (exposure(listener) is not None) == is_exposed
