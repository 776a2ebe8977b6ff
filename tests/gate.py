"""A TCP proxy before an object store that can be shut, as a network is cut."""

import socket
import socketserver
import threading
from contextlib import suppress
from urllib.parse import urlsplit


class Gate(socketserver.ThreadingTCPServer):
    """A TCP proxy before the object store that can be shut: connections break, and new ones are closed at once."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        url = urlsplit(target)
        self.target = (url.hostname, url.port)
        self.open = threading.Event()
        self.open.set()
        self.sockets: set[socket.socket] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def shut(self) -> None:
        """Break all connections and let no new one through."""
        self.open.clear()
        for each in list(self.sockets):
            with suppress(OSError):  # the other end was quicker
                each.shutdown(socket.SHUT_RDWR)


class _Forward(socketserver.BaseRequestHandler):
    server: Gate

    def handle(self) -> None:
        if not self.server.open.is_set():
            return
        with socket.create_connection(self.server.target) as upstream:  # type: ignore[arg-type]
            pair = {self.request, upstream}
            self.server.sockets |= pair
            back = threading.Thread(target=_pump, args=(upstream, self.request), daemon=True)
            back.start()
            _pump(self.request, upstream)
            back.join()
            self.server.sockets -= pair


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the other end is gone, or the gate was shut
