"""obstore against the clients by which stores are read now: rates, credentials, changed objects.

    pip install obstore
    python benchmarks/store_clients.py

A server of this file serves one object out of memory, in the words of S3 and of GCS, so that no
store's own work is measured. Ranges are read by the harness's own classes (boto3,
google-cloud-storage) and by obstore, each range on the condition that the object is still the
version that was listed; in turns, medians. "Slow" answers come late and at a bounded rate for each
connection, as a store's do. Then each client is given credentials in the ways people have them, and
the server looks at which it is asked with; last, what each says of things that go wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from harness.checkpoint.stores.gcs import GcsBucket
from harness.checkpoint.stores.object_store import BLOCK_BYTES
from harness.checkpoint.stores.s3 import S3Bucket

_KEY, _BUCKET, _GENERATION = "model/weights.safetensors", "weights", "1700000000000000"
_ETAG = f'"{hashlib.md5(b"benchmark", usedforsecurity=False).hexdigest()}"'
Read = Callable[[int, int], int]


class Handler(BaseHTTPRequestHandler):
    """Answers GET of a range of the object, whoever asks; notes who did."""

    protocol_version = "HTTP/1.1"
    descriptor, size = -1, 0
    delay, rate = 0.0, 0.0  # seconds before an answer; bytes a second of it, 0 for no bound
    asked_by = ""

    def do_GET(self) -> None:
        """A range, or what was noted last."""
        if self.path == "/asked-by":
            return self._text(200, Handler.asked_by)
        if self.path == "/slow":
            Handler.delay, Handler.rate = 0.03, 120e6
            return self._text(200, "")
        signed = self.headers.get("Authorization", "")
        found = re.search(r"Credential=([^/]+)", signed)
        Handler.asked_by = found[1] if found else signed.removeprefix("Bearer ") or "nobody"
        if "missing" in self.path:
            return self._text(404, "<Error><Code>NoSuchKey</Code></Error>")
        if "denied" in self.path:
            return self._text(403, "<Error><Code>AccessDenied</Code></Error>")
        generation = re.search(r"[?&](?:ifGenerationMatch|generation)=(\d+)", self.path)
        if generation and generation[1] != _GENERATION:
            return self._text(412 if "ifGeneration" in self.path else 404, "")
        if self.headers.get("If-Match", _ETAG) != _ETAG:
            return self._text(412, "<Error><Code>PreconditionFailed</Code></Error>")
        return self._range()

    def _range(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, self.size - 1)
        time.sleep(Handler.delay)
        self.send_response(206)
        self.send_header("Content-Length", str(last + 1 - start))
        self.send_header("Content-Range", f"bytes {start}-{last}/{self.size}")
        self.send_header("ETag", _ETAG)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("x-goog-generation", _GENERATION)
        self.end_headers()
        self.wfile.flush()
        began, sent = time.perf_counter(), 0
        while start + sent <= last:
            left = last + 1 - start - sent
            part = min(left, 1 << 20) if Handler.rate else left
            sent += os.sendfile(self.connection.fileno(), self.descriptor, start + sent, part)
            if Handler.rate:
                time.sleep(max(began + sent / Handler.rate - time.perf_counter(), 0))

    def _text(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


def _serve(size: int, ready: Any) -> None:
    Handler.descriptor, Handler.size = os.memfd_create("object"), size
    block = os.urandom(1 << 20)
    for _ in range(size >> 20):
        os.write(Handler.descriptor, block)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    ready.send(server.server_address[1])
    server.serve_forever()


@contextmanager
def serving(size: int) -> Iterator[str]:
    """A server in a process of its own; its URL."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(size, there), daemon=True)
    process.start()
    yield f"http://127.0.0.1:{here.recv()}"
    process.terminate()


def _said(url: str, word: str) -> str:
    import urllib.request

    with urllib.request.urlopen(f"{url}/{word}", timeout=10) as answer:
        return str(answer.read().decode())


def environment(url: str) -> dict[str, str]:
    """Where both of our clients, and the native one of obstore, find the server."""
    return {
        "AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ALLOW_HTTP": "true", "STORAGE_EMULATOR_HOST": url, "GOOGLE_BASE_URL": url,
        "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "1", "GOOGLE_CLOUD_PROJECT": "none",
        "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
    }  # fmt: skip


_KEYS = {"AWS_ACCESS_KEY_ID": "of-the-environment", "AWS_SECRET_ACCESS_KEY": "secret"}


def clients(url: str, key: str = _KEY, version: str = "") -> dict[str, Read]:
    """What reads a range of an object; gives the number of bytes."""
    import obstore
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage
    from obstore.store import GCSStore, S3Store

    s3, gcs = S3Bucket(_BUCKET), GcsBucket(_BUCKET)
    etag, generation = version or _ETAG, version or _GENERATION
    retry: Any = {"max_retries": 2}
    of_s3 = S3Store(_BUCKET, client_options={"allow_http": True}, retry_config=retry)
    of_gcs = GCSStore(
        _BUCKET, config={"base_url": url, "skip_signature": True}, retry_config=retry,
        client_options={"allow_http": True},
    )  # fmt: skip

    anonymous: Any = AnonymousCredentials()
    bucket: Any = storage.Client(project="none", credentials=anonymous).bucket(_BUCKET)

    def own_download(start: int, stop: int) -> int:
        into = io.BytesIO()
        bucket.blob(key).download_to_file(
            into, start=start, end=stop - 1, raw_download=True, checksum=None,
            if_generation_match=int(generation),
        )  # fmt: skip
        return len(into.getvalue())

    def by_obstore(store: Any, condition: dict[str, str]) -> Read:
        def read(start: int, stop: int) -> int:
            options: Any = {"range": (start, stop), **condition}
            return len(obstore.get(store, key, options=options).bytes())

        return read

    return {
        "S3, boto3": lambda start, stop: len(s3.read(key, etag, start, stop)),
        "S3, obstore": by_obstore(of_s3, {"if_match": etag}),
        "GCS, as the harness reads": lambda start, stop: len(
            gcs.read(key, generation, start, stop)
        ),
        "GCS, its client's own download": own_download,
        "GCS, obstore": by_obstore(of_gcs, {"version": generation}),
    }


def rates(url: str, size: int, threads: int, turns: int, block: int = BLOCK_BYTES) -> list[str]:
    """A row for each client: GB/s, and seconds of this process's cores for each GB."""
    found: dict[str, list[tuple[float, float]]] = {}
    ranges = [(start, min(start + block, size)) for start in range(0, size, block)]
    for _ in range(turns):
        for name, read in clients(url).items():
            with ThreadPoolExecutor(threads) as pool:
                started, used = time.perf_counter(), time.process_time()
                total = sum(pool.map(lambda each, read=read: read(*each), ranges))
                seconds, cores = time.perf_counter() - started, time.process_time() - used
            assert total == size, (name, total)
            found.setdefault(name, []).append((size / seconds / 1e9, cores / size * 1e9))
    middle = {n: [median(figures) for figures in zip(*e, strict=True)] for n, e in found.items()}
    return [f"| {name} | {threads} | {r:.2f} | {c:.2f} |" for name, (r, c) in middle.items()]


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in [n for n in os.environ if n.startswith(("AWS_", "GOOGLE_", "RUNAI_"))]:
        del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def ways(url: str, home: Path) -> dict[str, dict[str, str]]:
    """Variables by which people have credentials, by what the server should be asked with."""
    keys = "aws_access_key_id = {}\naws_secret_access_key = secret\n"
    credentials, config = home / "credentials", home / "config"
    credentials.write_text(
        "[default]\n" + keys.format("default") + "[night]\n" + keys.format("night")
    )
    told = '{"Version": 1, "AccessKeyId": "of-a-process", "SecretAccessKey": "secret"}'
    (home / "told").write_text(told)
    config.write_text(
        f"[profile process]\ncredential_process = cat {home / 'told'}\n"
        f"[profile endpoint]\nendpoint_url = {url}\nsource_profile = night\n"
        + keys.format("endpoint")
    )
    plain = environment(url)
    files = {"AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": str(credentials)}
    without = {name: value for name, value in plain.items() if name != "AWS_ENDPOINT_URL"}
    return {
        "of-the-environment": plain | _KEYS,
        "default": plain | files,
        "night": plain | files | {"AWS_PROFILE": "night"},
        "of-a-process": plain | files | {"AWS_PROFILE": "process"},
        "endpoint": without | files | {"AWS_PROFILE": "endpoint"},
        "nobody": plain | {"RUNAI_STREAMER_S3_UNSIGNED": "1", "AWS_SKIP_SIGNATURE": "true"},
    }  # fmt: skip


def credentials_of(url: str) -> list[str]:
    """A row for each way: whether each client of S3 takes it."""
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    def native(**more: Any) -> Read:
        store = S3Store(
            _BUCKET, client_options={"allow_http": True, "timeout": "3s"},
            retry_config={"max_retries": 0}, **more,
        )  # fmt: skip
        return lambda start, stop: len(store.get_range(_KEY, start=start, end=stop))

    makers: dict[str, Callable[[], Read]] = {
        "boto3": lambda: lambda *range_: len(S3Bucket(_BUCKET).read(_KEY, _ETAG, *range_)),
        "obstore": native,
        "obstore, boto3's credentials": lambda: native(
            credential_provider=Boto3CredentialProvider()
        ),
    }
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for wanted, values in ways(url, Path(home)).items():
            cells = []
            for make in makers.values():
                with _variables(values):
                    try:
                        make()(0, 16)
                        asked = _said(url, "asked-by")
                        cells.append("yes" if asked == wanted else f"no: asks as {asked}")
                    except Exception as error:
                        cells.append(f"no: {_short(error)}")
            rows.append(f"| {wanted} | {' | '.join(cells)} |")
    return [f"| credentials | {' | '.join(makers)} |", "|---|---|---|---|", *rows]


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:230]}"


def troubles(url: str) -> list[str]:
    """What each says of an object that is gone, or denied, or has changed."""
    cases = {"gone": ("missing", ""), "denied": ("denied", ""), "changed": (_KEY, "12345")}
    rows = ["| what | client | what it says |", "|---|---|---|"]
    for what, (key, version) in cases.items():
        for name, read in clients(url, key, version).items():
            try:
                read(0, 16)
                rows.append(f"| {what} | {name} | nothing: it reads |")
            except Exception as error:
                rows.append(f"| {what} | {name} | {_short(error)} |")
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="of the object")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    size = options.mib << 20
    with serving(size) as url, _variables(environment(url) | _KEYS):
        head = ["| client | threads | GB/s | s of cores a GB |", "|---|---|---|---|"]
        fast = [row for n in options.threads for row in rates(url, size, n, options.turns)]
        print("\n".join(["as fast as it goes", "", *head, *fast, ""]))
        print("\n".join(credentials_of(url)), "\n")
        print("\n".join(troubles(url)), "\n")
        _said(url, "slow")
        slow = rates(url, size, 16, options.turns, 16 << 20)
        print("\n".join(["30 ms late, 120 MB/s a connection, 16 MiB a range", "", *head, *slow]))


if __name__ == "__main__":
    main()
