"""CPU threads. One thread of the engine computes with many, at times when the others, which compute with one, have nothing to do.

libgomp's workers wait for their next part by spinning, which takes microseconds off each of the hundreds of small parts of a denoising
step. It gives that up for the whole process as soon as the workers of two computing threads together outnumber the CPUs, used or not: then
a step takes half as long again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def compute_with(threads: int) -> None:
    """How many threads this one computes with from now on, itself included."""
    torch.get_num_threads()  # else torch would give it, at its first computation, whatever number was set last in any thread
    torch.set_num_threads(threads)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Whatever this thread computes inside starts no workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
