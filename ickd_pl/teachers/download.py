"""One file from one URL: pooch's downloader, with an end to bodies that trickle, and reasons in a few words."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

FLOOR = 2048
"""Bytes a second that a mirror must give, on average over the timeout; below it the next one is quicker."""


class DownloadError(Exception):
    """A mirror failed; the message is the reason in a few words.

    Attributes:
        unreachable: no connection was made, so that the host's other files need no try.
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
        DownloadError: the mirror's fault; the file may then be there in part.
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
        # An archive must come as it lies there, or its length would not be the one announced.
        headers={"Accept-Encoding": "identity"},
    )
    try:
        with path.open("wb") as file:
            get(url, file, None)
    # requests' errors are OSErrors as well; those of the disk must go on as they are.
    except (requests.RequestException, ValueError) as error:
        if meter.too_slow:
            raise DownloadError(f"slower than {FLOOR / 1024:g} KiB a second over {timeout:g} s") from error
        cause = getattr(error.args[0] if error.args else None, "reason", None)
        no_way = isinstance(cause, NewConnectionError | ConnectTimeoutError) and meter.response is None
        raise DownloadError(_reason(error, timeout), unreachable=no_way) from error
    finally:
        meter.close()
    if meter.too_slow:  # a body of unannounced length just ends when the meter stops it
        raise DownloadError(f"slower than {FLOOR / 1024:g} KiB a second over {timeout:g} s")


class _Meter:
    """What pooch takes as a progress bar. It also counts, and stops a body that comes too slowly.

    A read timeout alone starts anew with every byte, so that a byte now and then would hold the command for days.
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
        """pooch fills the bar anew at the end, since it counts whole pieces."""
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
            if self._bytes - before < FLOOR * self._timeout:
                self.too_slow = True
                with suppress(Exception):  # the body has ended in this very moment
                    self.response.raw.shutdown()
                return
            before = self._bytes


def _reason(error: Exception, timeout: float) -> str:
    """requests' message without the objects it names."""
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
