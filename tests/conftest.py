import os
from pathlib import Path

import pytest

# Before anything imports torch or matplotlib, and for the processes that tests start too. The tensors
# here are small: a second thread costs more than it brings, and with one, a seed gives the same numbers
# everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of measured data, which lies beside the checkout and is no part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("measured data are not here: no folder ../shared/data beside the checkout")
    return folder
