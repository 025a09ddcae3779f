"""What the command line shows, and how it ends: tables, progress, one line for an error, exit codes.

Results go to stdout, everything else to stderr. Nothing heavy is imported at the top: `--help` waits for this file.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "InputError",
    "error_line",
    "hint_on_interrupt",
    "note",
    "plain",
    "progress",
    "prose",
    "run",
    "say",
    "table",
]

DONE, INPUT_WRONG, BROKEN = 0, 2, 70
DEBUG = "ATOMZOO_DEBUG"
# Ours by name, because their modules import torch and this one must not.
USERS_ERRORS = ("DataError", "ModelError", "RunError", "InputError")
LONGEST_LINE = 2000
# Lines of progress in a log: often enough to see that it lives, seldom enough to read.
LOG_EVERY_S = 2.0
# Wide enough that no row of a table is broken in a pipe.
PIPE_WIDTH = 1000


class InputError(ValueError):
    """What the user typed cannot be done; the message says why."""


def plain(text: object, longest: int = LONGEST_LINE) -> str:
    r"""One bounded line that no terminal takes for a command.

    Example:
        >>> plain("wall\x1b[2J\n.nc")
        'wall[2J .nc'
    """
    spaced = " ".join(str(text)[: 4 * longest].split())
    # Category C holds control, format (right-to-left overrides) and surrogate characters.
    kept = "".join(c for c in spaced if not unicodedata.category(c).startswith("C"))
    return kept if len(kept) <= longest else kept[: longest - 1] + "…"


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(
        file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False
    )


def say(text: object = "", style: str | None = None) -> None:
    """A line of the result; what comes from files is made plain, line by line."""
    lines = [_visible(line) for line in str(text).split("\n")]
    _console().print("\n".join(lines), style=style)


def _visible(line: str) -> str:
    """A line with its spaces, without anything else that cannot be seen."""
    return "".join(c for c in line if not unicodedata.category(c).startswith("C"))


def note(text: object) -> None:
    """A line beside the result."""
    sys.stderr.write(f"{plain(text)}\n")
    sys.stderr.flush()


def prose(text: str) -> None:
    """Paragraphs with Markdown's emphasis, set where there is a terminal to set them on."""
    if not sys.stdout.isatty():
        say(text)
        return
    from rich.markdown import Markdown

    _console().print(Markdown("\n".join(_visible(line) for line in text.split("\n"))))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; columns whose name begins with `>` stand to the right."""
    from rich.table import Table

    shown = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
        show_header=any(columns),
    )
    for name in columns:
        right = name.startswith(">")
        shown.add_column(name.removeprefix(">"), justify="right" if right else "left")
    for row in rows:
        shown.add_row(*(plain(cell) for cell in row))
    console = _console()
    if console.is_terminal:
        console.print(shown)
        return
    with console.capture() as captured:
        console.print(shown)
    for line in captured.get().splitlines():
        say(line.rstrip())


class _Interrupts:
    """Signals that ask to stop: the first raises KeyboardInterrupt, and is remembered if that gets lost on the way."""

    def __init__(self) -> None:
        self.signal = 0
        self.hint: Callable[[], str] = lambda: ""

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        raise KeyboardInterrupt

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Within the block SIGINT and SIGTERM are ours, where a thread may have them at all."""
        self.signal, self.hint = 0, lambda: ""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._raise) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise again what a library swallowed."""
        if self.signal:
            raise KeyboardInterrupt


# Signals belong to the process, and so does this.
_INTERRUPTS = _Interrupts()


@contextmanager
def hint_on_interrupt(hint: Callable[[], str]) -> Iterator[None]:
    """Say this when the work inside is interrupted."""
    _INTERRUPTS.hint = hint
    yield
    _INTERRUPTS.hint = lambda: ""


@contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """A function of (done, total, text) that shows how far the work is: a bar on a terminal, lines elsewhere."""
    if quiet:
        yield lambda done, total, text: _INTERRUPTS.check()
    elif sys.stderr.isatty():
        with _bar() as update:
            yield update
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None]]:
    from rich import progress as rich

    columns = (
        rich.BarColumn(bar_width=30),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("{task.description}", markup=False),
    )
    with rich.Progress(*columns, console=_console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def update(done: int, total: int, text: str) -> None:
            _INTERRUPTS.check()
            bar.update(task, completed=done, total=total, description=plain(text, 60))

        yield update


def _lines() -> Callable[[int, int, str], None]:
    last = -LOG_EVERY_S

    def update(done: int, total: int, text: str) -> None:
        nonlocal last
        _INTERRUPTS.check()
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            note(f"{100 * done // max(total, 1):3d} %  {text}")

    return update


def error_line(text: object) -> None:
    """The one line with which a command ends that could not be done."""
    note(f"error: {plain(text)}")


def run(command: Any, args: Sequence[str] | None) -> int:
    """Run a Typer command and turn whatever ends it into an exit code."""
    _replace_what_cannot_be_encoded()
    with _INTERRUPTS.caught(), _quiet_libraries():
        try:
            code = command.main(args=args, prog_name="atomzoo", standalone_mode=False)
            sys.stdout.flush()
            # Some versions of Typer turn an interrupt into this code.
            return _interrupted() if code == 128 + signal.SIGINT else int(code or DONE)
        except BaseException as error:  # noqa: BLE001  every way to end has a code
            return _ended_by(error)


def _ended_by(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt) or _INTERRUPTS.signal:
        return _interrupted()
    if isinstance(error, BrokenPipeError):
        return _unread()
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else BROKEN
    message = _users_fault(error)
    if message is not None:
        error_line(message)
        return INPUT_WRONG
    reason = (str(error).splitlines() or [""])[0]
    error_line(
        f"{type(error).__name__}: {reason}; this should not happen, please report it "
        f"({DEBUG}=1 shows where it came from)"
    )
    return BROKEN


def _users_fault(error: BaseException) -> str | None:
    """What to tell a user who can do something about it, None for an error of ours."""
    if hasattr(error, "format_message"):
        return _usage(error)
    if type(error).__name__ in USERS_ERRORS:
        return str(error)
    if isinstance(error, MemoryError):
        return "it does not fit in memory"
    if isinstance(error, OSError) and error.errno is not None:
        place = f"{error.filename}: " if isinstance(error.filename, str) else ""
        return f"{place}{os.strerror(error.errno)}"
    return None


def _usage(error: Any) -> str:
    """Typer's own message in our form, with where to read on."""
    context = getattr(error, "ctx", None)
    where = f"; see {context.command_path} --help" if context is not None else ""
    return f"{error.format_message().rstrip('.')}{where}"


def _interrupted() -> int:
    hint = _INTERRUPTS.hint()
    note(f"interrupted: {hint}" if hint else "interrupted")
    return 128 + (_INTERRUPTS.signal or signal.SIGINT)


def _unread() -> int:
    """Whoever read our output has seen enough; Python must not complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + getattr(signal, "SIGPIPE", errno.EPIPE)


def _replace_what_cannot_be_encoded() -> None:
    """Greek letters on a terminal that has none become question marks and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Warnings of libraries are for us; those of plug-ins that failed are for the user."""
    with warnings.catch_warnings():
        if not os.environ.get(DEBUG):
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", message="the plug-in")
            warnings.showwarning = lambda message, *_, **__: note(f"warning: {message}")
        yield
