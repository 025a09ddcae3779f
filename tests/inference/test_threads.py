"""Batches shared by threads: in order, with their errors, and not where other processes have the processors."""

import threading

import pytest
import torch
import toys

from atomzoo.inference.fit import make_density
from atomzoo.inference.threads import one_thread, shared

PARTS = list(range(7))


def where(part):
    return part, threading.get_ident()


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_parts_are_shared_in_order_and_each_thread_has_one_thread_of_its_own(three_threads):
    with one_thread():
        found = shared(where, PARTS)
        assert [part for part, _ in found] == PARTS
        # Those who help may be one thread that did both their shares.
        assert 2 <= len({thread for _, thread in found}) <= 3
        assert found[0][1] == threading.get_ident()
        assert set(shared(lambda part: torch.get_num_threads(), PARTS)) == {1}
        with one_thread():
            assert len({thread for _, thread in shared(where, PARTS)}) > 1
    assert torch.get_num_threads() == 3


def test_where_the_processors_are_busy_nothing_is_shared(three_threads):
    assert len({thread for _, thread in shared(where, PARTS)}) == 1
    with one_thread(alone=True), one_thread():
        assert len({thread for _, thread in shared(where, PARTS)}) == 1


@pytest.mark.parametrize("bad", PARTS)
def test_an_error_of_any_part_is_raised(three_threads, bad):
    def fails(part):
        if part == bad:
            raise ZeroDivisionError
        return part

    with one_thread(), pytest.raises(ZeroDivisionError):
        shared(fails, PARTS)


def test_values_are_the_same_to_the_bit_however_many_threads_work(three_threads):
    density = make_density(toys.toy_normal, toys.some_numbers())
    z = density.initial(2000, 0)
    alone = density.values(z), density.gradient(z)[1]
    assert density.path == "traced"
    with one_thread():
        both = density.values(z), density.gradient(z)[1]
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
