"""Where calls are computed: several as one if that gives everybody what they would have had alone, and in halves if it does not fit."""

import logging
import time
import traceback
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from app.engine.joining import Arguments, SharedMethod, run_joined, same_output
from app.engine.policy import MOST_KINDS, FairShare
from app.engine.task import Task

logger = logging.getLogger(__name__)

ALONE = "alone"  # the kind of all calls that cannot be joined


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call of the denoiser was: how many requests shared it, and their rows together."""

    requests: int
    rows: int


@dataclass(eq=False)
class Call:
    task: Task
    shared: SharedMethod
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    arguments: Arguments
    future: Future[Any] = field(default_factory=Future)
    needs_room: bool = False  # beside a step it ran out of memory

    @cached_property
    def kind(self) -> Hashable:
        """Calls of a kind can be joined, but for those that are alone."""
        return ALONE if self.arguments.signature is None else (self.shared, self.arguments.signature)

    @property
    def is_over_aside(self) -> bool:
        """Answered there, or given back."""
        return self.future.done() or self.needs_room

    def alone(self) -> Any:  # noqa: ANN401
        return self.shared.alone(*self.args, **self.kwargs)


class Device:
    """Computes calls in the thread that asks. Tells `policy` how long they took, and `on_batch` of those of the denoiser."""

    def __init__(self, policy: FairShare, on_batch: Callable[[Batch], None]) -> None:
        policy.lower_limit(ALONE, 1)
        self._policy = policy
        self._on_batch = on_batch
        self._checked: set[Hashable] = set()  # kinds whose joined output was compared
        self.seconds_each: dict[Hashable, float] = {}  # by kind: of a call, when some were last computed
        self.step_seconds = 0.0  # of the last step

    def first_of(self, calls: list[Call]) -> list[Call]:
        """Two, if calls of their kind have never been joined: that is enough to see whether they can be, and soon over."""
        return calls if calls and calls[0].kind in self._checked else calls[:2]

    def compute(self, calls: list[Call]) -> None:
        """Run the calls as one and give each its part. If that fails, try two halves: only a call that fails alone fails."""
        start = time.monotonic()
        failure: Exception | None = None
        outputs: list[Any] = []
        joined = len(calls) > 1 and calls[0].kind in self._checked
        try:
            outputs = self._joined(calls) if joined else [call.alone() for call in calls]
            if len(calls) > 1 and not joined:
                self._check(calls, outputs)
        except Exception as error:
            failure = error
            traceback.clear_frames(error.__traceback__)  # which hold on to tensors that others need room for
        seconds = time.monotonic() - start
        self._policy.took(calls[0].kind, seconds, joined=len(calls) if failure is None and (joined or len(calls) == 1) else None)
        if failure is None:
            self._hand_out(calls, outputs, seconds, joined)
        elif len(calls) == 1:
            calls[0].future.set_exception(failure)
        else:
            half = len(calls) // 2
            if isinstance(failure, torch.OutOfMemoryError):
                self._policy.lower_limit(calls[0].kind, half, for_good=False)
                torch.cuda.empty_cache()
            self.compute(calls[:half])
            self.compute(calls[half:])

    def _hand_out(self, calls: list[Call], outputs: list[Any], seconds: float, joined: bool) -> None:
        if len(self.seconds_each) > MOST_KINDS:
            self.seconds_each.clear()
        self.seconds_each[calls[0].kind] = seconds / len(calls)
        if calls[0].shared.is_denoiser:
            self.step_seconds = seconds
            for shared in [calls] if joined else [[call] for call in calls]:
                self._on_batch(Batch(len(shared), sum(call.arguments.rows for call in shared)))
        for call, output in zip(calls, outputs, strict=True):
            if call.shared.is_denoiser:
                call.task.step_kind = call.kind
            call.future.set_result(output)

    def _joined(self, calls: list[Call]) -> list[Any]:
        return run_joined(calls[0].shared.together, [call.arguments for call in calls])

    def _check(self, calls: list[Call], apart: list[Any]) -> None:
        """The first time calls of a kind meet they are run joined as well as apart. If that differs, this kind is never joined."""
        kind = calls[0].kind
        if len(self._checked) > MOST_KINDS:
            self._checked.clear()
        try:
            same = all(map(same_output, self._joined(calls), apart))
        except torch.OutOfMemoryError:
            self._policy.lower_limit(kind, len(calls) // 2, for_good=False)
            return
        except Exception as error:
            same = False
            logger.info("joining failed: %s", error)
        self._checked.add(kind)
        if not same:
            level = logging.WARNING if calls[0].shared.is_denoiser else logging.INFO
            logger.log(level, "calls of %s change when they are joined, so they run one at a time", type(calls[0].shared.module).__name__)
            self._policy.lower_limit(kind, 1)
