"""Tasks spread over processes of this machine or over an executor; a worker that dies or hangs is told and replaced.

Whatever the place, the tasks are the same function of the same arguments, and their results come as they are ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from .runs import RunError

__all__ = [
    "Lost",
    "Results",
    "dask_executor",
    "in_turn",
    "on_executor",
    "on_processes",
    "processors",
]

# Imports of torch and all that, on a machine that does other things besides.
STARTS_WITHIN_S = 300.0
ENDS_WITHIN_S = 10.0
# An interrupt that the system hands to another thread does not wake the one that waits: it looks up this often.
LOOKS_UP_EVERY_S = 0.5
# How often a task is begun before it is given up.
TRIES = 2
DASK_ANSWERS_WITHIN_S = 10.0

Task = Any
Function = Callable[[Task], Any]


class Lost(NamedTuple):
    """What stands for the result of a task that gave none."""

    reason: str


# Place of a task in the sequence, and its result.
Results = Generator[tuple[int, Any], None, None]
# Called with the place of a task that is tried again, and why.
Tell = Callable[[int, str], None]


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_turn(function: Function, tasks: Sequence[Task]) -> Results:
    """One after another in this process."""
    for place, task in enumerate(tasks):
        yield place, function(task)


def on_executor(executor: Executor, function: Function, tasks: Sequence[Task]) -> Results:
    """On any executor, which has its own way with workers that die; a task that it could not do is `Lost`."""
    with _interrupts_held():
        futures = {executor.submit(function, task): place for place, task in enumerate(tasks)}
    done = 0
    try:
        for future in as_completed(futures):
            try:
                result = _result(future)
            except (BrokenExecutor, CancelledError) as error:
                raise RunError(
                    f"the executor gave up after {done} of {len(tasks)} fits ({type(error).__name__}): its workers "
                    "were killed, out of memory or unable to start, or its scheduler is gone; in a script of your "
                    "own call calibrate under `if __name__ == '__main__':`"
                ) from None
            done += 1
            yield futures[future], result
    finally:
        for future in futures:
            future.cancel()


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except (BrokenExecutor, CancelledError):
        raise
    except Exception as error:  # noqa: BLE001  whatever happened on the way to a worker and back is told
        return Lost(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")


def on_processes(
    function: Function,
    tasks: Sequence[Task],
    *,
    count: int,
    timeout: float,
    tell: Tell = lambda place, reason: None,
) -> Results:
    """On processes of this machine that live until all is done, so that each imports and traces once.

    A process that dies, or is ended because its task took too long, is replaced and its task tried once more; a task
    that ends badly twice is `Lost`.

    Args:
        function: importable, and does not raise.
        tasks: its arguments.
        count: of processes.
        timeout: seconds that one task may take.
        tell: called with the place of a task that is tried again, and why.
    """
    pool = _Pool(function, tasks, timeout, tell)
    try:
        yield from pool.results(min(count, len(tasks)))
    finally:
        pool.stop()


@dataclass(eq=False)
class _Worker:
    """A process at the other end of a pipe, and the place of the task it has."""

    process: Any
    connection: Connection
    deadline: float
    started: bool = False
    place: int | None = None

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join(ENDS_WITHIN_S)
        self.connection.close()

    def how_it_died(self) -> str:
        """Exit code or signal, in words."""
        self.process.join(ENDS_WITHIN_S)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"its worker process was killed ({signal.Signals(-code).name})"
        return f"its worker process ended with code {code}"


class _Pool:
    """Processes and the tasks that wait for them."""

    def __init__(
        self, function: Function, tasks: Sequence[Task], timeout: float, tell: Tell
    ) -> None:
        self.function, self.tasks, self.timeout, self.tell = function, tasks, timeout, tell
        self.waiting = deque(range(len(tasks)))
        self.tries = [0] * len(tasks)
        self.workers: list[_Worker] = []

    def results(self, count: int) -> Results:
        """Every task's result, as they come."""
        for _ in range(count):
            self._start()
        left = len(self.tasks)
        while left:
            for found in self._round():
                left -= 1
                yield found

    def stop(self) -> None:
        """End every process."""
        for worker in self.workers:
            worker.end()

    def _start(self) -> None:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.function), daemon=True)
        with _interrupts_held():
            process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours, time.monotonic() + STARTS_WITHIN_S))

    def _round(self) -> Results:
        """Wait until something happens, and see to it."""
        patience = max(0.0, min(w.deadline for w in self.workers) - time.monotonic())
        watched = [part for w in self.workers for part in (w.connection, w.process.sentinel)]
        ready = set(wait(watched, min(patience, LOOKS_UP_EVERY_S)))
        for worker in list(self.workers):
            if worker.connection in ready or worker.process.sentinel in ready:
                yield from self._heard(worker)
            elif worker.deadline <= time.monotonic():
                yield from self._lost(worker, f"it took longer than {self.timeout:g} s")

    def _heard(self, worker: _Worker) -> Results:
        try:
            result = worker.connection.recv() if worker.connection.poll() else None
        except (EOFError, OSError):
            result = None
        if result is None:
            yield from self._lost(worker, worker.how_it_died())
            return
        if worker.place is not None:
            yield worker.place, result
        worker.started = True
        self._give(worker)

    def _give(self, worker: _Worker) -> None:
        """The next task, if there is one."""
        worker.place = self.waiting.popleft() if self.waiting else None
        worker.deadline = float("inf")
        if worker.place is not None:
            self.tries[worker.place] += 1
            worker.deadline = time.monotonic() + self.timeout
            # Where the worker has just died, the next round hears of it.
            with contextlib.suppress(OSError):
                worker.connection.send(self.tasks[worker.place])

    def _lost(self, worker: _Worker, reason: str) -> Results:
        worker.end()
        self.workers.remove(worker)
        if not worker.started:
            raise RunError(
                "a worker process could not start: what it printed says why; in a script of your own call "
                "calibrate under `if __name__ == '__main__':`, or use workers=1"
            )
        place = worker.place
        if place is not None and self.tries[place] < TRIES:
            self.waiting.appendleft(place)
            self.tell(place, reason)
        elif place is not None:
            yield place, Lost(f"{reason}, {TRIES} times")
        if self.waiting or not self.workers:
            self._start()


def _serve(connection: Connection, function: Function) -> None:
    """What a process does: say that it is there, then one task after another until the other end is gone."""
    with contextlib.suppress(EOFError, OSError):
        connection.send(True)
        while True:
            connection.send(function(connection.recv()))


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started inside never see an interrupt from the keyboard: their parent does, and stops them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Python starts this helper with the first process, and lets interrupts through again when it has.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def dask_executor(address: str, seconds: float = DASK_ANSWERS_WITHIN_S) -> Iterator[Executor]:
    """The workers of a Dask scheduler, as an executor, until the block ends.

    Args:
        address: of the scheduler, as it prints it: `tcp://host:8786`.
        seconds: in which the scheduler, and then a worker, must answer.
    """
    try:
        from distributed import Client
    except ImportError:
        raise RunError('Dask is not installed: pip install "atomzoo[dask]"') from None
    try:
        asyncio.run(asyncio.wait_for(_greet(address, seconds), seconds))
        client = Client(address, timeout=seconds, set_as_default=False)
    except Exception as error:  # noqa: BLE001  whoever answers there may say anything
        reason = (str(error).splitlines() or [f"no answer within {seconds:g} s"])[0]
        raise RunError(
            f"there is no Dask scheduler at {address} ({reason}); start one with `dask scheduler` and give the "
            "address that it prints"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=seconds)
        except TimeoutError:
            raise RunError(
                f"the Dask scheduler at {address} has no workers; start some with `dask worker {address}`"
            ) from None
        yield client.get_executor(pure=False)


async def _greet(address: str, seconds: float) -> None:
    """Shake hands once: a client by itself would wait for ever on what listens there and says nothing."""
    from distributed.comm.core import connect

    comm = await connect(address, timeout=seconds)
    await comm.close()
