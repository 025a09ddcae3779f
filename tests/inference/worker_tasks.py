"""Tasks for worker processes, some of which end badly."""

import os
import signal
import time
from pathlib import Path


def ended_badly(task: tuple[str, str]) -> str:
    """Die or hang, where a file is named only until it is there; give back what was asked."""
    kind, file = task
    if file and Path(file).exists():
        return kind
    if file:
        Path(file).touch()
    if kind == "hang":
        time.sleep(3600)
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "exit":
        os._exit(3)
    return kind


def process_of(task: int) -> int:
    """The process that does it."""
    return os.getpid()
