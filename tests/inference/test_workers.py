"""Fits on processes and on a Dask cluster, with workers that die, hang, or never were."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from atomzoo.inference import calibrate as module
from atomzoo.inference.calibrate import calibrate
from atomzoo.inference.runs import RunError
from atomzoo.inference.workers import Lost, dask_executor, on_executor, on_processes
from atomzoo.models.files import load_file
from atomzoo.tests.inference import sbc_models  # noqa: F401  registers the models that are calibrated here
from atomzoo.tests.inference.worker_tasks import ended_badly, process_of

OPTIONS = {"n": 40, "seed": 5, "starts": 2, "proposals": 500}
OWN_MODEL = """
from pyro.distributions import Normal
from atomzoo.models.model import model, observe, sample
from atomzoo.tests.inference.sbc_models import some_rows

@model(kind="table", priors={"vague": {"mean": Normal(0.0, 1.0)}}, design=some_rows)
def NAME(table, prior):
    '''A mean.'''
    observe("value", Normal(sample("mean", prior.mean), 1.0))
"""


@pytest.mark.slow
def test_a_task_that_dies_or_hangs_is_tried_once_more_and_then_lost(tmp_path):
    tasks = [
        ("fine", ""),
        ("exit", str(tmp_path / "left")),
        ("die", ""),
        ("hang", ""),
        ("fine", ""),
    ]
    told = []
    results = on_processes(
        ended_badly, tasks, count=2, timeout=2, tell=lambda place, why: told.append((place, why))
    )
    left = "its worker process ended with code 3"
    died = "its worker process was killed (SIGKILL)"
    hung = "it took longer than 2 s"
    assert dict(results) == {
        0: "fine",
        1: "exit",
        2: Lost(f"{died}, 2 times"),
        3: Lost(f"{hung}, 2 times"),
        4: "fine",
    }
    assert sorted(told) == [(1, left), (2, died), (3, hung)]


@pytest.mark.slow
def test_a_process_does_many_tasks_and_ends_with_the_last():
    results = on_processes(process_of, range(50), count=2, timeout=60)
    processes = {pid for _, pid in results}
    assert len(processes) <= 2
    for pid in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_processes_that_cannot_start_are_one_clear_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            from atomzoo.inference.calibrate import calibrate
            from atomzoo.inference.runs import RunError
            try:
                calibrate("wall_second_order", 20, workers=2)
            except RunError as error:
                print(error)
        """)
    )
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert "under `if __name__ == '__main__':`" in found.stdout


def test_a_task_that_an_executor_could_not_do_is_lost_and_a_dead_executor_is_an_error():
    class Ready:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def submit(self, function, task):
            future: Future[int] = Future()
            if task == 1:
                future.set_exception(self.error)
            else:
                future.set_result(function(task))
            return future

    found = dict(on_executor(Ready(ModuleNotFoundError("no atomzoo\nhere")), abs, [0, 1, 2]))
    assert found == {0: 0, 1: Lost("ModuleNotFoundError: no atomzoo"), 2: 2}
    with pytest.raises(RunError, match="the executor gave up"):
        list(on_executor(Ready(BrokenProcessPool("dead")), abs, [0, 1, 2]))


def test_a_model_of_a_file_that_the_worker_does_not_have_travels_along(tmp_path, monkeypatch):
    monkeypatch.setattr("atomzoo.models.model._CATALOGUE", {})
    path = tmp_path / "their_models.py"
    path.write_text(OWN_MODEL.replace("NAME", "sbc_travelled"))
    source = module._source(load_file(str(path), "sbc_travelled"))
    path.unlink()
    other = module._Source(**vars(source) | {"story": "0" * 64})
    code = textwrap.dedent("""
        import json, sys
        from atomzoo.inference import calibrate
        for source in json.load(sys.stdin):
            try:
                print(calibrate._find(calibrate._Source(**source)).name)
            except calibrate.RunError as error:
                print(error)
    """)
    found = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([vars(source), vars(other)]),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    name, refusal = found.stdout.splitlines()
    assert name == "sbc_travelled"
    assert refusal.startswith("a worker has another version of sbc_travelled")


def test_a_model_without_a_file_cannot_travel():
    source = module._Source("nonsense", "", "nowhere", None, "")
    with pytest.raises(RunError, match="cannot import nonsense"):
        module._find(source)


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A Dask cluster of two processes."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=":0",
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_dask_worker_that_is_killed_loses_nothing(cluster):
    from distributed import Client

    alone = calibrate("sbc_known", workers=1, **OPTIONS)
    killed: list[int] = []
    with Client(cluster, set_as_default=False) as client:
        workers = client.run(os.getpid)
        assert len(workers) == 2

        def kill(done: int, total: int, text: str) -> None:
            if done == 5 and not killed:
                killed.append(next(iter(workers.values())))
                os.kill(killed[0], signal.SIGKILL)

        found = calibrate("sbc_known", executor=client.get_executor(), progress=kill, **OPTIONS)
        assert killed
        assert killed[0] not in client.run(os.getpid).values()
    assert found.failures == ()
    assert found.quantities == alone.quantities


@pytest.mark.slow
def test_the_command_takes_the_address_of_a_dask_scheduler(cluster, tmp_path):
    from atomzoo.cli import main

    paths = [tmp_path / "here.json", tmp_path / "there.json"]
    typed = ["calibrate", "wall_second_order", "-n", "20", "-O", "ess=100", "-O", "chains=16"]
    for path, where in zip(
        paths, (["--workers", "1"], ["--dask", cluster.scheduler_address]), strict=True
    ):
        assert main([*typed, "-q", *where, "-o", str(path)]) == 0
    here, there = (module.Certificate.read(path) for path in paths)
    assert here.quantities == there.quantities
    assert here.failed_gates == there.failed_gates


def test_dask_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RunError, match=r"pip install \"atomzoo\[dask\]\""), dask_executor("x"):
        pass


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense", "http://127.0.0.1:8787"])
def test_an_address_where_nothing_is_is_said(address):
    pytest.importorskip("distributed")
    with (
        pytest.raises(RunError, match=rf"no Dask scheduler at {address}.*`dask scheduler`"),
        dask_executor(address, seconds=1),
    ):
        pass


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_an_address_where_something_else_is_is_said(says):
    pytest.importorskip("distributed")
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.sendall(says)
                done.wait(60)

        done = threading.Event()
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                pytest.raises(RunError, match=f"no Dask scheduler at {address}"),
                dask_executor(address, seconds=2),
            ):
                pass
        finally:
            done.set()
            thread.join()


@pytest.mark.slow
def test_a_dask_scheduler_without_workers_is_said():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=0, dashboard_address=":0", silence_logs=logging.CRITICAL
        ) as empty,
        pytest.raises(RunError, match="has no workers"),
        dask_executor(empty.scheduler_address, seconds=1),
    ):
        pass
