"""HTTP servers that misbehave: each keeps its client waiting in another way."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress

PAUSE_S = 0.05
RUN = {"run": {"info": {"run_id": "r", "run_uuid": "r", "status": "RUNNING", "artifact_uri": "mlflow-artifacts:/r"}}}


def silence(connection):
    """Do not answer within any deadline of the tests, then hang up."""
    time.sleep(6)


def drip_headers(connection):
    """Send a byte of the headers at a time."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    drip(connection)


def drip_body(connection):
    """Send a byte of the body at a time."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    drip(connection)


def endless_body(connection):
    """Send a body that never ends."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    drip(connection, 4096)


def reset(connection):
    """Reset the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def redirects(connection):
    """Redirect to the same page for ever."""
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def internal_errors(connection):
    """Answer with an error of the server."""
    connection.sendall(b"HTTP/1.1 500 Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


EVIL = [silence, drip_headers, drip_body, endless_body, reset, redirects, internal_errors]


def drip(connection, size=1):
    """Send `size` bytes at a time, for ever."""
    while True:
        connection.sendall(b"x" * size)
        time.sleep(PAUSE_S)


@contextmanager
def serving(misbehave, good=()):
    """URI of a server that answers requests whose line contains a text of `good` with RUN, and misbehaves on others."""

    def handle(connection):
        with connection, suppress(OSError):
            request = connection.recv(65536).partition(b"\r\n")[0].decode()
            if not any(text in request for text in good):
                return misbehave(connection)
            body = json.dumps(RUN).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)
        return None

    def accept():
        with suppress(OSError):
            while True:
                threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
