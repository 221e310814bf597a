"""The tokenizer's side of the decoder: a sound as pieces that come from a process of their own.

Whatever a file does to what decodes it, a crash, a hang, a hunger for memory, ends that process and
fails that request; nobody else notices.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import numpy as np

from shared.errors import BadRequest, ErrorCode, FatalError, RequestError
from tokenizer_proc.decoder_wire import (
    ENDED,
    FAILED,
    MAX_MESSAGE_BYTES,
    PIECE,
    REFUSED,
    STARTED,
    WORD_BYTES,
    Order,
)
from tokenizer_proc.samples import Samples

logger = logging.getLogger(__name__)

PROGRAM = "tokenizer_proc.decoder"  # a module
START_SECONDS = 60.0  # for the decoder's imports, on a busy machine
SILENT_SECONDS = 30.0  # that a child may take for its next piece
_NO_DECODER = RequestError(ErrorCode.INTERNAL, "The server could not read the sound; try again.")


class DecodedSound(Iterator[Samples]):
    """The pieces of a sound, [n] each, and whether one can be had without waiting.

    It holds what has been asked for and not yet been taken; the child waits with the rest.
    """

    def __init__(
        self,
        channel: socket.socket,
        decoder: "subprocess.Popen[bytes]",
        request_id: str,
        param: str,
    ) -> None:
        """The child is the decoder's, and dies with it."""
        self._channel = channel
        self._decoder = decoder
        channel.setblocking(False)  # NOTE: no flag of `recv_fds` would do: Python loses it
        self._request_id = request_id
        self._param = param
        self._child: int | None = None  # a descriptor of its process; see pidfd_open(2)
        self._pieces = deque[Samples]()
        self._num_held = 0  # samples
        self._is_over = False
        self._error: RequestError | None = None
        self._due = time.monotonic() + SILENT_SECONDS

    def fileno(self) -> int:
        """A descriptor that becomes readable when something is there; -1 once all is."""
        return self._channel.fileno()

    def is_ready(self, num_samples: int) -> bool:
        """True if so many samples, or the end, can be taken without waiting."""
        while self._lacks(num_samples) and self._receive():
            pass
        if self._lacks(num_samples) and time.monotonic() > self._due:
            self._fail("gives nothing", f"'{self._param}' takes too long to read.")
        return not self._lacks(num_samples)

    def __next__(self) -> Samples:
        """The next piece, for which it waits; BadRequest for what turns out to be no sound."""
        while not self.is_ready(1):
            waits = select.poll()
            waits.register(self._channel, select.POLLIN)
            waits.poll(1000 * max(0.0, self._due - time.monotonic()))
        if self._pieces:
            piece = self._pieces.popleft()
            self._num_held -= len(piece)
            return piece
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Ends the child, if it still lives; the kernel buries it."""
        if self._child is None and not self._is_over:
            with suppress(OSError):  # its first word, which tells who it is, may wait unread
                self._next_message()
        self._is_over = True
        self._channel.close()
        if self._child is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._child, signal.SIGKILL)
            os.close(self._child)
            self._child = None

    def _lacks(self, num_samples: int) -> bool:
        return self._num_held < num_samples and not self._is_over

    def _receive(self) -> bool:
        """Takes one message; false if none is there."""
        try:
            message = self._next_message()
        except BlockingIOError:
            return False
        except OSError as error:
            message = FAILED + str(error).encode()
        self._due = time.monotonic() + SILENT_SECONDS
        word, rest = message[:WORD_BYTES], message[WORD_BYTES:]
        if word == PIECE:
            self._pieces.append(np.frombuffer(rest, np.float32))
            self._num_held += len(self._pieces[-1])
        elif word != STARTED:
            self._end(word, rest.decode(errors="replace"))
        return True

    def _next_message(self) -> bytes:
        """A message, or nothing where the child has ended; BlockingIOError if there is none yet."""
        if self._child is not None:
            return self._channel.recv(MAX_MESSAGE_BYTES)
        message, descriptors, _, _ = socket.recv_fds(self._channel, MAX_MESSAGE_BYTES, 1)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            self._child = descriptor
        return message

    def _end(self, word: bytes, said: str) -> None:
        """Takes the last word, or its absence."""
        if word == REFUSED:
            self._error = BadRequest(said, self._param)
        elif word != ENDED:
            self._fail(said or "died", f"'{self._param}' is no sound file that can be read.")
        self.close()

    def _fail(self, how: str, sentence: str) -> None:
        """The file is at fault, unless nobody has looked at it yet or the decoder has died."""
        logger.warning("request %s: what decodes its sound %s", self._request_id, how)
        is_at_fault = self._child is not None and self._decoder.poll() is None
        self._error = BadRequest(sentence, self._param) if is_at_fault else _NO_DECODER
        self.close()


class Decoder:
    """The process that forks a child for each sound; one that has died is started again."""

    def __init__(self, name: str, program: str = PROGRAM) -> None:
        self._name = name
        self._program = program
        self._start()

    def wait_started(self) -> None:
        """Returns once it takes orders; FatalError if it does not get so far."""
        self._orders.settimeout(START_SECONDS)
        try:
            has_started = self._orders.recv(MAX_MESSAGE_BYTES) == STARTED
        except OSError:
            has_started = False
        self._orders.settimeout(0.0)
        if not has_started:
            raise FatalError("what decodes sound does not start; the lines above say why")

    def decode(self, data: bytes, order: Order, request_id: str) -> DecodedSound:
        """The sound, of which nothing has come yet; RequestError where no process can be had."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise _NO_DECODER from error
        sound = DecodedSound(ours, self._process, request_id, order.param)
        try:
            with theirs, open(os.memfd_create("sound"), "wb") as file:  # noqa: PTH123 — no path
                file.write(data)
                file.flush()
                self._send(msgspec.json.encode(order), [file.fileno(), theirs.fileno()])
        except OSError as error:
            logger.warning("request %s: its sound cannot be decoded: %s", request_id, error)
            sound.close()
            raise _NO_DECODER from error
        return sound

    def close(self) -> None:
        """Ends it, and with it all its children."""
        self._orders.close()
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.setblocking(False)  # one that does not take its orders is replaced
        descriptor = theirs.fileno()
        program = [sys.executable, "-P", "-m", self._program]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 — our own interpreter and module
                [*program, self._name, str(os.getpid()), str(descriptor)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(descriptor,),
            )

    def _send(self, text: bytes, descriptors: list[int]) -> None:
        try:
            socket.send_fds(self._orders, [text], descriptors)
        except OSError as error:
            logger.warning("%s does not take orders (%s); starting another", self._name, error)
            self.close()
            self._start()
            socket.send_fds(self._orders, [text], descriptors)
