"""Small datasets, and a proxy before a store that injects faults."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from xtdist.data import byte_tokenizer
from xtdist.data.manifest import (
    MANIFEST_FILE,
    BuildInfo,
    Manifest,
    ShardInfo,
    TokenizerInfo,
    canonical_text,
)
from xtdist.data.shards import ShardWriter
from xtdist.data.storage.location import Location, locate
from xtdist.data.tokenizer import TOKENIZER_FILE

FRAMING = ("content-length", "transfer-encoding", "connection", "expect")


def uri(port: int, path: str) -> str:
    return f"s3://bucket/{path}?endpoint_override=127.0.0.1:{port}&scheme=http"


def put(target: str, data: bytes) -> Location:
    where = locate(target)
    with where.filesystem.open_output_stream(where.path, compression=None) as out:
        out.write(data)
    return where


def make_dataset(folder: Path, *, seed: int = 0, shards: int = 4, tokens: int = 3000) -> Manifest:
    """A dataset of random bytes as tokens; every shard has about ``tokens``."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    tokenizer = byte_tokenizer()
    tokenizer.save(folder / TOKENIZER_FILE)
    made = {}
    for split, count in (("train", shards - 1), ("valid", 1)):
        writer = ShardWriter(
            folder, split, dtype="uint16", shard_tokens=tokens, tokenizer_sha256=tokenizer.sha256
        )
        while len(writer.shards) < count:
            document = rng.integers(0, 256, rng.integers(1, tokens // 2))
            writer.add(
                np.append(document, tokenizer.eot_id),
                text_bytes=len(document),
                doc_id=rng.bytes(16),
            )
        made[split] = tuple(writer.shards)
    build = BuildInfo(settings_sha256="0", inputs_sha256="0", documents=1, text_bytes=1)
    manifest = Manifest(
        dtype="uint16",
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        tokenizer=TokenizerInfo(kind="byte", sha256=tokenizer.sha256),
        build=build,
        splits=made,
    )
    (folder / MANIFEST_FILE).write_text(canonical_text(manifest))
    (folder / "report.json").write_text('{"documents": 1}')
    return manifest


def shards_of(manifest: Manifest) -> list[ShardInfo]:
    return [shard for split in manifest.splits.values() for shard in split]


class Faults:
    """A proxy that spoils a share of what passes: errors, connections cut, bodies cut short or
    with one bit flipped. Counts what it did by kind."""

    def __init__(self, target_port: int) -> None:
        self.share, self.kinds = 0.0, ("error", "cut", "short", "flip")
        self.did: dict[str, int] = {}
        self._rng, self._lock = np.random.default_rng(0), threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, target_port))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def next(self, *, has_body: bool) -> str:
        with self._lock:
            if self._rng.random() >= self.share:
                return "none"
            kinds = self.kinds if has_body else self.kinds[:2]
            kind = min(kinds, key=lambda k: self.did.get(k, 0))  # each as often
            self.did[kind] = self.did.get(kind, 0) + 1
            return kind

    def flipped(self, body: bytes) -> bytes:
        with self._lock:
            at = int(self._rng.integers(len(body)))
        return body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :]


def _handler(faults: Faults, target_port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None: ...

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def forward(self) -> None:
            body = self.read_body()
            headers = {k: v for k, v in self.headers.items() if k.lower() not in FRAMING}
            connection = http.client.HTTPConnection("127.0.0.1", target_port, timeout=20)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            is_object = self.command == "GET" and "?" not in self.path and answer.status < 300
            kind = faults.next(has_body=is_object and bool(data))
            if kind == "error":
                self.send_error(503)
                return
            if kind == "cut" and not data:
                self.close_connection = True
                return
            sent = data
            if kind == "flip":
                sent = faults.flipped(data)
            if kind in ("cut", "short"):
                sent = data[: len(data) // 2]
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in FRAMING:
                    self.send_header(key, value)
            said = len(sent) if kind == "short" else len(data)
            if self.command == "HEAD":
                said = int(answer.getheader("Content-Length") or 0)
            self.send_header("Content-Length", str(said))
            self.end_headers()
            self.wfile.write(sent)
            self.close_connection = kind == "cut"

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

    return Handler
