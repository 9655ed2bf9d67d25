"""Turn errors into messages and exit codes: 0 success, 1 failure, 2 user error, 3 stopped."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from tiny_audio.config import RegistryError, RunFailed, Stopped, TinyAudioError, UserError
from tiny_audio.runtime.requirements import audio_pair_problem
from tiny_audio.runtime.streams import discard_unwritable_output

DONE, FAILED, USER_ERROR, STOPPED = 0, 1, 2, 3
_INTERRUPTED = 130
"""Exit code that typer returns after Ctrl-C."""


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command, print its error if it fails, and return the exit code."""
    try:
        with _terminable():
            result = command()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # Click turns a BrokenPipeError into SystemExit
        discard_unwritable_output()
        return _fail("stopped: the reader of standard output has closed it", STOPPED)
    except UserError as error:
        return _fail(error, USER_ERROR, "error: ")
    except (RunFailed, RegistryError) as error:
        return _fail(error, FAILED, "failed: ")
    except (Stopped, KeyboardInterrupt) as error:
        return _fail(error, STOPPED)
    except typer.Abort:
        return _fail("stopped", STOPPED)
    except Exception as error:
        # Click's own errors, such as an unknown option, can print their message and have an exit code.
        if show_usage := getattr(error, "show", None):
            show_usage()
            return int(getattr(error, "exit_code", USER_ERROR))
        # Errors of the operating system, such as a full disk, have an errno or a filename. An OSError with neither is
        # from a shared library that could not be loaded.
        if isinstance(error, OSError) and not (error.filename is None and error.errno is None):
            discard_unwritable_output()
            return _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), USER_ERROR, "error: ")
        if problem := audio_pair_problem():
            return _fail(problem, USER_ERROR, "error: ")
        raise
    if result == _INTERRUPTED:
        return _fail("stopped", STOPPED)
    return result if isinstance(result, int) else DONE


@contextmanager
def _terminable() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that files are closed. Commands that save their state replace this handler."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fail(error: BaseException | str, code: int, prefix: str = "") -> int:
    """Print the error, unless another process prints it. Return ``code``."""
    if not (isinstance(error, TinyAudioError) and error.origin):
        print(f"{prefix}{error}" or "stopped", file=sys.stderr)
    return code
