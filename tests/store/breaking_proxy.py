"""A wire between a client and its server that can be cut: before a COMMIT gets through, or before its answer does."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Listens on ``port``. ``cut``: the next COMMIT ends the wire ``"before"`` it arrives, ``"after"``, or not."""

    def __init__(self, server: int) -> None:
        self.cut: str | None = None
        self.commits = 0
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
                thread = threading.Thread(target=self._carry, args=(client, server))
                self._threads.append(thread)
                thread.start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._back, args=(client, server))
        back.start()
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if b"COMMIT" in data:
                    self.commits += 1
                    if self.cut is not None:
                        self._end(client, server, data)
                        break
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        back.join()
        client.close()
        server.close()

    def _end(self, client: socket.socket, server: socket.socket, data: bytes) -> None:
        cut, self.cut = self.cut, None
        client.shutdown(socket.SHUT_RDWR)  # nothing of what the server says reaches it from now on
        if cut == "after":
            server.sendall(data)

    def _back(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
