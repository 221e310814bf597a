"""The decoder: a process that does nothing but fork, once for each sound, and its children.

A child decodes one file, under limits that the kernel holds: memory, processor time, and not one
descriptor more, so that it opens no file and no connection whatever the file says. A crash ends
the child alone. Started as `python -P -m tokenizer_proc.decoder NAME PARENT SOCKET`, because a fork
of the tokenizer, with torch's threads in it, would be neither safe nor cheap.
"""

import faulthandler
import gc
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import msgspec

from shared.child import die_with, name_process, settle
from shared.errors import BadRequest
from tokenizer_proc.decoder_wire import (
    ENDED,
    FAILED,
    MAX_MESSAGE_BYTES,
    MAX_SAMPLES,
    PIECE,
    REFUSED,
    STARTED,
    Order,
)
from tokenizer_proc.samples import Samples
from tokenizer_proc.sound import import_all, needs_program, read_sound

STDOUT, STDERR = 1, 2
MEMORY_BYTES = 256 * 1024**2  # that a child may take beyond what it has at its start
PROGRAM_BYTES = 1024**3  # the same where another program reads the file: its libraries count
PROGRAM_DESCRIPTORS = 64  # for them, too
CPU_SECONDS = 60  # of a child, and more for what is long:
CPU_SHARE = 0.1  # of the longest sound that it may read; every codec is far faster


def main(name: str, parent_pid: int, orders: socket.socket) -> None:
    """Forks a child for each order, until nobody can send one."""
    settle(parent_pid)
    name_process(name)
    faulthandler.enable(os.dup(STDERR))  # where a child crashed goes to the log
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them; see wait(2)
    import_all()
    gc.freeze()  # or the collector would write to, and so copy, every page that children share
    orders.send(STARTED)
    decoder_pid = os.getpid()
    while True:
        text, descriptors, _, _ = socket.recv_fds(orders, MAX_MESSAGE_BYTES, 2)
        if not text:
            return
        if _is_child():
            orders.close()
            _run_child(f"{name}-child", decoder_pid, text, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _is_child() -> bool:
    """Forks. Where that fails, the channel closes without a word, and the caller is told."""
    try:
        return os.fork() == 0
    except OSError:  # there are too many processes, or there is no memory
        return False


def _run_child(name: str, decoder_pid: int, order: bytes, file: int, channel: int) -> None:
    """Decodes one file, and never returns to what only the decoder itself does."""
    try:
        die_with(decoder_pid)
        name_process(name)
        os.dup2(STDOUT, STDERR)  # nowhere: MP3's decoder chats about every odd file
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody listens any more: it ends
        _decode(msgspec.json.decode(order, type=Order), file, socket.socket(fileno=channel))
    finally:
        os._exit(0)


def _decode(order: Order, file: int, channel: socket.socket) -> None:
    """Sends the sound piece by piece, as fast as it is taken, and how it ended."""
    socket.send_fds(channel, [STARTED], [os.pidfd_open(os.getpid())])
    try:
        with open(file, "rb") as opened:
            opened.seek(0)
            data = opened.read()
        _limit_itself(order, needs_program(data))
        for piece in read_sound(data, order.rate, order.max_seconds, order.param):
            _send(piece, channel)
        channel.send(ENDED)
    except BadRequest as error:
        channel.send(REFUSED + error.message.encode())
    except MemoryError:
        sentence = f"'{order.param}' takes more memory to read than a sound file should."
        channel.send(REFUSED + sentence.encode())
    except Exception as error:  # noqa: BLE001 — what libraries raise over a hostile file is anything
        channel.send(FAILED + repr(error)[:1000].encode(errors="replace"))


def _send(piece: Samples, channel: socket.socket) -> None:
    for start in range(0, len(piece), MAX_SAMPLES):
        channel.send(PIECE + piece[start : start + MAX_SAMPLES].tobytes())


def _limit_itself(order: Order, needs_program: bool) -> None:
    """From here on the kernel ends or refuses what a decoder of sound has no need of."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    cpu_seconds = CPU_SECONDS + int(CPU_SHARE * order.max_seconds)
    _limit(resource.RLIMIT_AS, size + (PROGRAM_BYTES if needs_program else MEMORY_BYTES))
    _limit(resource.RLIMIT_CPU, cpu_seconds)
    _limit(resource.RLIMIT_CORE, 0)  # it would hold what somebody said
    _limit(resource.RLIMIT_NOFILE, PROGRAM_DESCRIPTORS if needs_program else 0)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), socket.socket(fileno=int(sys.argv[3])))
