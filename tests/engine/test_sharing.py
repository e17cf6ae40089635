"""Tasks in one thread whose calls of a module meet, without a pipeline around them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

from app.engine.batching import Batcher
from app.engine.joining import SharedMethod
from app.engine.task import Task
from tests.engine.together import DEADLINE_S

CALLS = 50


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    batcher = Batcher(2, 1, lambda batch: None)
    batcher.start()
    yield batcher
    batcher.close()


class Encoder(nn.Linear):
    """Keeps how many rows each of its calls had."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.rows: list[int] = []

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name that torch gives it)
        self.rows.append(len(input))
        return super().forward(input)


def test_two_modules_of_one_class_are_never_taken_for_each_other(batcher: Batcher) -> None:
    """As the two text encoders of Stable Diffusion 3, whose calls look alike."""
    one, other = Encoder(), Encoder()
    shared: list[Callable[[Tensor], Tensor]] = [batcher.share(SharedMethod(module)) for module in (one, other)]
    sample, meet = torch.ones(1, 4), Barrier(2)

    def wait() -> None:
        meet.wait(DEADLINE_S)

    def encode(order: list[int], task: Task) -> list[Tensor]:
        task.tell(wait)
        outputs = [shared[0](sample) for _ in range(CALLS)]  # both in the same one, so that joining it is checked
        task.tell(wait)
        return [*outputs, *(shared[index](sample) for _ in range(CALLS) for index in order)]

    with ThreadPoolExecutor(2) as threads:
        orders = [0, 1], [1, 0]
        futures = [threads.submit(batcher.run, partial(encode, order), lambda: None) for order in orders]
        made = [future.result(DEADLINE_S) for future in futures]
    assert max(one.rows) == 2, "they never met"
    right = [one(sample), other(sample)]
    for order, outputs in zip(orders, made, strict=True):
        expected = [right[0]] * CALLS + [right[index] for index in order] * CALLS
        assert all(torch.allclose(output, wanted) for output, wanted in zip(outputs, expected, strict=True))
