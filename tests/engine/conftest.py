"""Engines on a small random checkpoint, and what they tell of their batches."""

import threading
from collections.abc import Iterator

import pytest

from app.engine.checkpoint import Checkpoint
from app.engine.device import Batch
from app.engine.engine import ImageEngine
from tests.engine.families import small
from tests.engine.together import Engines


@pytest.fixture
def batches() -> list[Batch]:
    return []


@pytest.fixture
def loaded() -> Checkpoint:
    return small("sd1")


@pytest.fixture
def start(batches: list[Batch]) -> Iterator[Engines]:
    """Makes engines; at the end they are closed, and no thread of theirs is left."""
    before = set(threading.enumerate())
    engines: list[ImageEngine] = []

    def make(loaded: Checkpoint, max_batch_size: int = 8, cpu_threads: int = 1) -> ImageEngine:
        """With one thread, all that can share a call do."""
        engines.append(ImageEngine(loaded, max_batch_size=max_batch_size, cpu_threads=cpu_threads, on_batch=batches.append))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
    left = {thread for thread in set(threading.enumerate()) - before if not thread.name.startswith(("tqdm", "Thread-"))}
    assert left == set()
