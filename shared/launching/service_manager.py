"""What systemd hears of the service: readiness, status, and signs of life. See sd_notify(3)."""

import logging
import socket
from collections.abc import Mapping

logger = logging.getLogger(__name__)

_PINGS_PER_TIMEOUT = 3  # one that comes late does no harm


class ServiceManager:
    """Sends datagrams to `$NOTIFY_SOCKET`; without one, and when it is gone, does nothing."""

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        is_ours = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        timeout = int(environ.get("WATCHDOG_USEC", "0")) / 1e6 if is_ours else 0.0
        self._ping_interval = timeout / _PINGS_PER_TIMEOUT
        self._ping_due = 0.0
        self._status = ""

    def show(self, status: str) -> None:
        """Tells the line that `systemctl status` shows, if it is another than before."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def say_ready(self) -> None:
        """Tells that the service has started; a second time changes nothing."""
        self._send("READY=1")

    def say_stopping(self) -> None:
        """Tells that the service has begun to end."""
        self._send("STOPPING=1")

    def feed_watchdog(self, now: float) -> None:
        """Tells, when it is time, that the service is well; to be called only while it is."""
        if self._ping_interval and now >= self._ping_due:
            self._ping_due = now + self._ping_interval
            self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the zero byte of Linux's abstract namespace.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            try:
                sender.sendto(state.encode(), address)
            except OSError as error:
                logger.debug("%s cannot be told %s: %s", self._address, state, error)
