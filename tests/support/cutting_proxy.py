"""A TCP proxy before a server that loses answers: what was asked is done, the answer never arrives, the connection ends.

In threads, so that tests of the command and tests on an event loop use the same; every wait is bounded."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

PATIENCE_S = 30.0


class CuttingProxy:
    """Passes bytes both ways. `cut(marker, times)`: of the next so many requests that hold the marker the answer is lost."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._marker = b""
        self._left = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._refusing = False
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def cut(self, marker: bytes, times: int = 1, *, then_refuse: bool = False) -> None:
        """`then_refuse`: after the last cut no connection is taken any more, until `mend`."""
        with self._lock:
            self._marker, self._left, self._then_refuse = marker, times, then_refuse

    def refuse(self) -> None:
        """End all connections and take no new ones."""
        self._refusing = True
        self._end_all()

    def mend(self) -> None:
        self._refusing = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._to), timeout=PATIENCE_S)
            except OSError:
                client.close()
                continue
            self._open |= {client, server}
            cutting = threading.Event()
            threading.Thread(target=self._requests, args=(client, server, cutting), daemon=True).start()
            threading.Thread(target=self._answers, args=(server, client, cutting), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, cutting: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                with self._lock:
                    if self._left and self._marker in data:
                        self._left -= 1
                        self.cuts += 1
                        cutting.set()
                        self._refusing = self._refusing or (self._then_refuse and not self._left)
                server.sendall(data)
        self._close(client, server)

    def _answers(self, server: socket.socket, client: socket.socket, cutting: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if cutting.is_set():
                    break
                client.sendall(data)
        self._close(client, server)
        if self._refusing:
            self._end_all()

    def _close(self, *sockets: socket.socket) -> None:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
            self._open.discard(one)

    def _end_all(self) -> None:
        self._close(*list(self._open))

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._refusing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._end_all()
