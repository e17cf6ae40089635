"""What is learned from calls that were computed, and from those that failed."""

from collections.abc import Callable, Hashable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from app.engine.device import Batch, Call, Device
from app.engine.joining import SharedMethod
from app.engine.policy import FairShare
from app.engine.task import Task


class Module(nn.Module):
    """Doubles its rows, after `breaks` has seen them."""

    def __init__(self, breaks: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.breaks = breaks

    def forward(self, sample: Tensor) -> Tensor:
        self.breaks(sample)
        return 2 * sample


class Taught(FairShare):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(8)
        self.joined: list[int | None] = []

    def took(self, kind: Hashable, seconds: float, *, joined: int | None = None) -> None:
        self.joined.append(joined)
        super().took(kind, seconds, joined=joined)


class Tried:
    """A device on which calls of one row, each with its own value, are computed together."""

    def __init__(self, breaks: Callable[[Tensor], None]) -> None:
        self.shared = SharedMethod(Module(breaks), is_denoiser=True)
        self.policy, self.batches = Taught(), list[Batch]()
        self.device = Device(self.policy, self.batches.append)

    def call(self, *values: float) -> list[Any]:
        """What each gets: its value doubled, or its error."""
        calls = []
        for value in values:
            args = (torch.full((1, 1), float(value)),)
            calls.append(Call(cast("Task", None), self.shared, args, {}, self.shared.describe(args, {})))
        futures = [call.future for call in calls]
        self.device.finish(calls, self.device.compute(calls))
        return [future.exception() or future.result().item() for future in futures]

    def most_picked(self) -> int:
        args = (torch.zeros(1, 1),)
        waiting = [Call(cast("Task", None), self.shared, args, {}, self.shared.describe(args, {})) for _ in range(8)]
        return len(self.device.pick({waiting[0].kind: waiting}, 8))


def fail_at_nought(sample: Tensor) -> None:
    if (sample == 0).any():
        raise ZeroDivisionError


def fail_above(rows: int, error: type[Exception]) -> Callable[[Tensor], None]:
    def breaks(sample: Tensor) -> None:
        if len(sample) > rows:
            raise error

    return breaks


def test_calls_are_joined_once_two_of_them_were_seen_to_be_the_same() -> None:
    tried = Tried(lambda sample: None)
    assert tried.most_picked() == 2
    assert tried.call(1, 2) == [2, 4]
    assert tried.most_picked() == 8
    assert tried.call(1, 2, 3) == [2, 4, 6]
    assert tried.batches == [Batch(1, 1), Batch(1, 1), Batch(3, 3)]
    assert tried.policy.joined == [None, 3]


def test_a_call_that_fails_at_once_says_nothing_of_how_fast_they_are() -> None:
    tried = Tried(fail_at_nought)
    (error,) = tried.call(0)
    assert isinstance(error, ZeroDivisionError)
    assert (tried.policy.joined, tried.batches) == ([None], [])


def test_one_that_fails_keeps_the_others_from_nothing() -> None:
    tried = Tried(fail_at_nought)
    for _ in range(2):  # before they were ever joined, and after
        first, error, last = tried.call(1, 0, 3)
        assert (first, type(error), last) == (2, ZeroDivisionError, 6)
        assert tried.call(1, 2) == [2, 4]
    assert tried.most_picked() == 8


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_more_calls_than_can_be_joined_are_computed_apart_and_fewer_from_then_on(error: type[Exception]) -> None:
    tried = Tried(fail_above(2, error))
    tried.call(1, 2)
    assert tried.call(1, 2, 3, 4) == [2, 4, 6, 8]
    assert tried.most_picked() == 2


def test_what_fails_whenever_it_is_joined_is_said_with_the_error(caplog: pytest.LogCaptureFixture) -> None:
    tried = Tried(fail_above(1, ZeroDivisionError))
    assert tried.call(1, 2) == [2, 4]
    assert tried.most_picked() == 1
    assert caplog.messages == ["calls of Module fail with ZeroDivisionError() when they are joined, so they run one at a time"]
