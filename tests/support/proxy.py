"""A proxy before a store's server, that spoils what it answers."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

Spoil = Callable[[bytes, socket.socket, bytes], bool]


class Proxy:
    """Passes connections on to a server; ``spoil`` sees each request first and may answer it.

    One request a connection. ``spoil(head, client, answer)`` is given the request's head, the
    client's socket and the server's whole answer; true says that it has answered by itself.
    """

    def __init__(self, upstream: str, spoil: Spoil) -> None:
        self._upstream = int(upstream.rpartition(":")[2])
        self._spoil = spoil
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections; shutting down wakes the thread that waits for one."""
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                head = self._read_head(client)
                if not head:
                    return
                self.requests.append(head.split(b"\r\n")[0].decode())
                answer = self._ask(head)
                if not self._spoil(head, client, answer):
                    client.sendall(answer)
        except OSError:
            pass

    @staticmethod
    def _read_head(client: socket.socket) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = client.recv(1)
            if not byte:
                return b""
            head += byte
        return head

    def _ask(self, head: bytes) -> bytes:
        lines = [
            line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")
        ]
        asked = b"\r\n".join([lines[0], b"Connection: close", *lines[1:]])
        with socket.create_connection(("127.0.0.1", self._upstream), timeout=60) as server:
            server.sendall(asked)
            answer = b""
            while part := server.recv(1 << 16):
                answer += part
        return answer
