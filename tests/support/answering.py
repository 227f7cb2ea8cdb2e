"""A server that answers every request alike, for what stores say when something is wrong."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Given a request's head and the client's socket, answers it.
Answer = Callable[[bytes, socket.socket], None]


def http(status: str, body: str | bytes = "", *headers: str) -> Answer:
    """A whole answer: ``404 Not Found``, a body, and headers beside its length."""
    content = body.encode() if isinstance(body, str) else body
    top = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers]

    def answer(head: bytes, client: socket.socket) -> None:
        bare = head.startswith(b"HEAD")
        client.sendall("\r\n".join([*top, "", ""]).encode() + (b"" if bare else content))

    return answer


@contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """The server's URL, and the first lines of the requests it got so far."""
    listener, asked = socket.create_server(("127.0.0.1", 0)), list[str]()

    def serve(client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head and (part := client.recv(1 << 16)):
                head += part
            if head:
                asked.append(head.split(b"\r\n")[0].decode())
                with contextlib.suppress(OSError):  # the client had enough of it
                    answer(head, client)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
