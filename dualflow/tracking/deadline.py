"""Deadlines on whole calls to a server.

The timeout of an HTTP library holds for each read, so a server that sends a byte a second blocks its caller for ever.
A call with a deadline runs in a thread of its own, which is abandoned when the time is over.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CALL_S = 20.0
"""Deadline of a call in seconds."""
BYTES_PER_S = 256 << 10
"""Slowest transfer of a file that is waited for."""
_PATH_ARGUMENT = {"log_artifact": 1, "log_model_artifacts": 1}
"""Position of the uploaded file or folder in the arguments of a client's method."""
_ATTEMPTS = 60
"""How often an abandoned thread is told to end, a second apart."""
_POOL_PREFIX = "Mlflow"
"""Start of the names of the threads in which MLflow downloads; Python waits for them when it exits."""


class DeadlineClient:
    """An MLflow client each of whose methods has a deadline; that of an upload grows with the size of its files.

    Args:
        client: the client.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        """Return a method of the client, with a deadline."""
        attribute = getattr(self._client, name)
        return partial(_call, attribute, _PATH_ARGUMENT.get(name)) if callable(attribute) else attribute


def _call(method: Callable[..., Any], path_argument: int | None, *arguments: Any, **options: Any) -> Any:
    size = 0 if path_argument is None else _bytes_in(Path(arguments[path_argument]))
    return with_deadline(partial(method, *arguments, **options), size)


def with_deadline(action: Callable[[], T], size: int = 0) -> T:
    """Return `action()`, which may take CALL_S and the time to transfer `size` bytes.

    Raises:
        TimeoutError: it took longer, and was abandoned.
    """
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:  # also SystemExit, by which an abandoned thread ends
            outcome.set_exception(error)

    seconds = CALL_S + size / BYTES_PER_S
    # Python does not wait for a daemon thread when it exits.
    thread = threading.Thread(target=work, daemon=True, name="deadline")
    thread.start()
    thread.join(seconds)
    if not outcome.done():
        _stop(thread)
        raise TimeoutError(f"the server did not complete its answer within {seconds:.3g} s")
    return outcome.result()


def _stop(abandoned: threading.Thread) -> None:
    """End a thread and MLflow's pool threads when their current read returns, which closes their connections."""
    for thread in threading.enumerate():
        if thread.name.startswith(_POOL_PREFIX):
            _raise_exit(thread)
    threading.Thread(target=_end, args=(abandoned,), daemon=True, name="deadline-end").start()


def _end(thread: threading.Thread) -> None:
    """Tell a thread to end until it has ended: an order that arrives in a callback of a weak reference is lost."""
    for _ in range(_ATTEMPTS):
        if not thread.is_alive():
            return
        _raise_exit(thread)
        thread.join(1)


def _raise_exit(thread: threading.Thread) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))


def _bytes_in(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
