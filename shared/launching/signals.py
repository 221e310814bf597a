"""The launcher's signals as bytes on a socket, so that they are handled in its loop."""

import signal
import socket

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # each asks the service to end
PROFILING = signal.SIGUSR2  # begins to record the worker's steps, and ends it


class SignalPipe:
    """What has come of the signals above."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)  # signal.set_wakeup_fd demands it
        signal.set_wakeup_fd(self._writer.fileno())
        for number in (*ENDING, PROFILING):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) wants it
                signal.signal(number, lambda *_: None)

    def fileno(self) -> int:
        """A descriptor that becomes readable when a signal comes."""
        return self._reader.fileno()

    def recv_signals(self) -> bytes:
        """The numbers of the signals that have come since the last call."""
        try:
            return self._reader.recv(64)
        except BlockingIOError:
            return b""
