"""A job for a loading process: an engine that runs there, asked for its weights in every way."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec

from harness.base.errors import TargetUnavailable
from harness.base.progress import Meter
from harness.load.targets.known_targets import target_named
from harness.report.report import Report
from harness.verification.digests import write_digests
from harness.verification.running import verify_engine
from tests.support.engines import executor_of, flip_a_bit


def ask_an_engine(argument: bytes, _: Meter) -> bytes:
    """Load a checkpoint as an engine does; what it is found to hold, before and after a flip.

    Args:
        argument: JSON of the checkpoint's path, and of a directory.

    Returns:
        JSON of the name of the array that was changed, and of a summary by way.
    """
    checkpoint, directory = msgspec.json.decode(argument, type=tuple[str, str])
    digests = Path(directory, "digests")
    write_digests(checkpoint, digests)
    target = target_named("emulated")
    executor = executor_of(checkpoint, target, draft=True)
    told = {
        "checkpoint": _summary(verify_engine(executor)),
        "digests": _summary(verify_engine(executor, digests)),
    }
    name = flip_a_bit(executor, "w2_weight")
    told["changed"] = _summary(verify_engine(executor, checkpoint))
    told["changed, by digests"] = _summary(verify_engine(executor, digests))
    told["changed, over http"] = _over_http(executor, checkpoint)
    bare = executor_of(checkpoint, target, draft=False, extended=False)
    told["without the extension"] = _summary(verify_engine(bare))
    return msgspec.json.encode((name, told))


def _summary(report: Report) -> list[Any]:
    return [
        report.status, report.experts_compared, [tally.compared for tally in report.parameters],
        [(d.cause, d.summary) for d in report.diagnoses], report.environment.entry,
    ]  # fmt: skip


def _over_http(executor: Any, checkpoint: str) -> list[Any]:
    """Through a route like vLLM's: texts alone, and the engine's own call."""

    class Route(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = executor.collective_rpc(asked["method"], args=tuple(asked["args"]))
            content = json.dumps({"results": [str(each) for each in found]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Route) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        found = _summary(verify_engine(url, checkpoint))
        server.shutdown()
    try:
        verify_engine(url, timeout=5)
    except TargetUnavailable:
        return found
    raise AssertionError("a server that is gone was asked")
