"""A pooler like pgbouncer in transaction mode: its clients share a few connections to the server."""

import queue
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy.engine import make_url

# The creation of Optuna's tables needs two connections, and the lock around it a third.
SIZE = 3
# A client that waits for longer is refused, so that clients which wait for each other end.
WAIT_S = 60

# pgbouncer refuses every other parameter of a connection.
_PARAMETERS = {"user", "database", "application_name", "client_encoding"}
_ENCRYPTION_REQUESTS = (80877103, 80877104)
_PROTOCOL = 196608
_SESSION_STATE = re.compile(rb"^\s*SET (?!LOCAL|TRANSACTION)|pg_(try_)?advisory_lock|LISTEN|TEMP TABLE|PREPARE", re.I)


class Pooler:
    """Pooler in front of one database.

    Attributes:
        violations: The parts of the protocol that do not work with a pooler.
    """

    def __init__(self, url: str) -> None:
        self._server = make_url(url)
        self.violations: list[bytes] = []
        self._connections: queue.Queue[_Peer] = queue.Queue()
        for _ in range(SIZE):
            self._connections.put(self._connect())
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        port = self._listener.getsockname()[1]
        return f"postgresql://hpo@127.0.0.1:{port}/{self._server.database}"

    def close(self) -> None:
        self._listener.close()
        while not self._connections.empty():
            self._connections.get().socket.close()

    def _connect(self) -> "_Peer":
        peer = _Peer(socket.create_connection(("127.0.0.1", self._server.port)))
        parameters = f"user\0hpo\0database\0{self._server.database}\0\0".encode()
        peer.socket.sendall(struct.pack("!ii", len(parameters) + 8, _PROTOCOL) + parameters)
        # The settings of the server, which each client gets.
        self._greeting = peer.read_reply()
        return peer

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(_Peer(client),), daemon=True).start()

    def _serve(self, client: "_Peer") -> None:
        server = None
        with suppress(OSError, EOFError), client.socket:
            self._greet(client)
            while request := client.read_request():
                self._check(request)
                server = server or self._connections.get(timeout=WAIT_S)
                server.socket.sendall(request)
                reply = server.read_reply()
                # The last byte is the state of the transaction.
                if reply.endswith(b"I"):
                    self._connections.put(server)
                    server = None
                client.socket.sendall(reply)
        if server is not None:
            server.socket.close()
            self._connections.put(self._connect())

    def _greet(self, client: "_Peer") -> None:
        while (startup := client.read(struct.unpack("!i", client.read(4))[0] - 4))[:4] in {
            struct.pack("!i", code) for code in _ENCRYPTION_REQUESTS
        }:
            client.socket.sendall(b"N")
        names = startup[4:].split(b"\0")[:-2:2]
        self.violations += [name for name in names if name.decode() not in _PARAMETERS]
        client.socket.sendall(self._greeting)

    def _check(self, request: bytes) -> None:
        for kind, body in _messages(request):
            statement = body.partition(b"\0")[2] if kind == b"P" else body
            is_named = kind == b"P" and not body.startswith(b"\0")
            if is_named or (kind in b"PQ" and _SESSION_STATE.search(statement)):
                self.violations.append(body)


class _Peer:
    """One end of a connection."""

    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def read_request(self) -> bytes:
        """Read messages up to one that the server replies to; nothing at the end."""
        return self._read_until(b"QSX")

    def read_reply(self) -> bytes:
        """Read the messages up to the end of a reply."""
        return self._read_until(b"Z")

    def _read_until(self, kinds: bytes) -> bytes:
        data = b""
        while True:
            kind, length = self.read(1), self.read(4)
            if kind == b"X":
                return b""
            data += kind + length + self.read(struct.unpack("!i", length)[0] - 4)
            if kind in kinds:
                return data


@contextmanager
def running_pooler(url: str) -> Iterator[Pooler]:
    """Run a pooler for the database of this URL."""
    pooler = Pooler(url)
    try:
        yield pooler
    finally:
        pooler.close()


def _messages(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    while data:
        end = struct.unpack("!i", data[1:5])[0] + 1
        yield data[:1], data[5:end]
        data = data[end:]
