"""A function run in a forked process whose output is a pseudo-terminal of a given width."""

import fcntl
import os
import pty
import signal
import struct
import termios
import threading
from collections.abc import Callable, Sequence


def run_in_terminal(
    function: Callable[[], None], columns: int, keys: Sequence[tuple[str, str]] = (), seconds: int = 300
) -> str:
    """Return what `function` writes to a terminal with so many columns, control characters included.

    Args:
        function: to run.
        columns: of the terminal.
        keys: (text, keys): once the text has appeared, behind the one before it, these keys are pressed.
        seconds: after which the process is ended.
    """
    child, descriptor = pty.fork()
    if child == 0:
        status = 1
        try:
            import sys

            for name in ("CI", "GITHUB_ACTIONS", "BUILDKITE", "COLUMNS", "LINES"):
                os.environ.pop(name, None)
            os.environ["TERM"] = "xterm"
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
            sys.stderr = sys.__stderr__ = os.fdopen(2, "w", closefd=False)
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            function()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(status)
    output, waiting, since = b"", list(keys), 0
    alarm = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    alarm.start()
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # the child has closed its end
            break
        if not piece:
            break
        output += piece
        if waiting and waiting[0][0].encode() in output[since:]:
            os.write(descriptor, waiting.pop(0)[1].encode())
            since = len(output)
    alarm.cancel()
    os.waitpid(child, 0)
    os.close(descriptor)
    return output.decode(errors="replace")
