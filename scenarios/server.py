"""A store's server, as a script: takes a free port, says which, and ends with whoever started it.

``server.py s3`` or ``server.py gcs BUCKET``. The server binds the port itself, so no other process
can take it in between; standard input ends when its parent does, even a killed one.
"""

from __future__ import annotations

import logging
import sys


def s3() -> int:
    """moto's server; its port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    return int(server.get_host_and_port()[1])


def gcs(bucket: str) -> int:
    """The GCS emulator, in memory, with a bucket; its port."""
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=bucket)
    server.start()
    port: int = server._api._httpd.server_address[1]
    return port


def main() -> None:
    """Serve until standard input ends."""
    logging.disable()
    kind, *arguments = sys.argv[1:]
    port = gcs(*arguments) if kind == "gcs" else s3()
    print(port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
