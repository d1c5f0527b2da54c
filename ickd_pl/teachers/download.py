"""Download one URL with pooch, with a minimum speed and short error messages."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

MIN_SPEED = 2048
"""Bytes per second, on average over the timeout; a slower mirror is given up for the next one."""


class DownloadError(Exception):
    """A mirror failed; the message is the reason in short.

    Attributes:
        unreachable: no connection was made, so the host's other files need not be tried.
    """

    def __init__(self, reason: str, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.unreachable = unreachable


def download(url: str, path: Path, timeout: float) -> None:
    """Write a URL's body to a path, with a progress bar where standard error is a terminal.

    Redirects are followed. pooch (requests, urllib3) itself finds an HTTP error, a body shorter than announced and a
    connection that is silent for ``timeout`` seconds; :class:`_Meter` finds one that is not silent but too slow.

    Args:
        url: ``http://`` or ``https://``.
        path: the file to write.
        timeout: seconds.

    Raises:
        DownloadError: the mirror failed; the file may be partial.
        OSError: the file cannot be written.
    """
    import pooch
    import requests
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    meter = _Meter(timeout)
    get = pooch.HTTPDownloader(
        progressbar=meter,
        timeout=timeout,
        hooks={"response": meter.start},
        # Without compression, so that the length is the announced one.
        headers={"Accept-Encoding": "identity"},
    )
    try:
        with path.open("wb") as file:
            get(url, file, None)
    # requests' errors are OSErrors as well; those of the disk are not caught.
    except (requests.RequestException, ValueError) as error:
        if meter.too_slow:
            raise DownloadError(f"slower than {MIN_SPEED / 1024:g} KiB a second over {timeout:g} s") from error
        cause = getattr(error.args[0] if error.args else None, "reason", None)
        no_way = isinstance(cause, NewConnectionError | ConnectTimeoutError) and meter.response is None
        raise DownloadError(_reason(error, timeout), unreachable=no_way) from error
    finally:
        meter.close()
    if meter.too_slow:  # a body of unannounced length just ends when the meter stops it
        raise DownloadError(f"slower than {MIN_SPEED / 1024:g} KiB a second over {timeout:g} s")


class _Meter:
    """Progress bar for pooch, which also stops a download that is too slow.

    A read timeout alone restarts with every byte, so a byte now and then could block the command for days.
    """

    def __init__(self, timeout: float) -> None:
        self.total = 0
        self.response: Any = None
        self.too_slow = False
        self._timeout = timeout
        self._bytes = 0
        self._bar: Any = None
        self._done = threading.Event()

    def start(self, response: Any, **_: Any) -> None:
        """Called with the headers, before the body is read."""
        self.response = response
        if not response.is_redirect:
            threading.Thread(target=self._watch, daemon=True).start()

    def update(self, size: int) -> None:
        from tqdm import tqdm

        if self._bar is None:  # disable=None: only on a terminal
            self._bar = tqdm(
                total=self.total or None, unit="B", unit_scale=True, unit_divisor=1024, disable=None, leave=False
            )
        self._bytes += size
        self._bar.update(size)

    def reset(self) -> None:
        """pooch refills the bar at the end, since it counts whole chunks."""
        if self._bar is not None:
            self._bar.reset()

    def close(self) -> None:
        self._done.set()
        if self._bar is not None:
            self._bar.close()
        if self.response is not None:
            self.response.close()

    def _watch(self) -> None:
        before = 0
        while not self._done.wait(self._timeout):
            if self._bytes - before < MIN_SPEED * self._timeout:
                self.too_slow = True
                with suppress(Exception):  # the body may just have ended
                    self.response.raw.shutdown()
                return
            before = self._bytes


def _reason(error: Exception, timeout: float) -> str:
    """requests' message without the objects that it mentions."""
    response, text, kind = getattr(error, "response", None), str(error), type(error).__name__
    if kind == "HTTPError":
        return f"HTTP {response.status_code} {response.reason}".strip() if response is not None else text
    # private: urllib3 message "IncompleteRead"
    if found := re.search(r"IncompleteRead\((\d+) bytes read, (\d+) more expected", text):
        return f"cut short after {found[1]} bytes, {found[2]} more were announced"
    known = {
        "redirects without end": kind == "TooManyRedirects",
        f"no answer within {timeout:g} s": "timed out" in text or kind.endswith("Timeout"),
        "its certificate is not trusted": "CERTIFICATE_VERIFY_FAILED" in text,
        "the connection was closed": "Remote end closed" in text or "Connection reset" in text,
    }
    for reason, holds in known.items():
        if holds:
            return reason
    found = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", text)
    return found[1] if found else f"{kind}: {' '.join(text.split())[:150]}"
