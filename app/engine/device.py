"""Where calls are computed: several as one if that gives everybody what they would have had alone, and in halves if it does not fit."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
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

    @cached_property
    def kind(self) -> Hashable:
        """Calls of a kind can be joined, but for those that are alone."""
        return self.arguments.signature or ALONE


class Device:
    """Computes calls in the threads that ask. Tells `policy` how long they took, and `on_batch` of those of the denoiser."""

    def __init__(self, policy: FairShare, on_batch: Callable[[Batch], None]) -> None:
        policy.lower_limit(ALONE, 1)
        self._lock = threading.RLock()  # for all that several threads change
        self._policy = policy
        self._on_batch = on_batch
        self._joinable: set[Hashable] = set()  # the kinds whose joined output was compared, and was the same

    def pick(self, ready: Mapping[Hashable, Sequence[Call]], most: int) -> list[Call]:
        """The calls to compute next, at `most` so many, of those that are `ready` by kind.

        Two, if calls of their kind have never been joined: that is enough to see whether they can be, and soon over.
        """
        with self._lock:
            calls = self._policy.pick(ready, most) if ready else []
            return calls if not calls or calls[0].kind in self._joinable else calls[:2]

    @torch.inference_mode()
    def compute(self, calls: list[Call]) -> None:
        """Run the calls as one and give each its part. If that fails, try two halves: only a call that fails alone fails."""
        start = time.monotonic()
        failure: Exception | None = None
        joined = len(calls) > 1 and calls[0].kind in self._joinable
        try:
            outputs = self._joined(calls) if joined else [call.shared.alone(*call.args, **call.kwargs) for call in calls]
            if len(calls) > 1 and not joined:
                self._check(calls, outputs)
        except Exception as error:
            failure = error
            traceback.clear_frames(error.__traceback__)  # which hold on to tensors that others need room for
        seconds = time.monotonic() - start
        with self._lock:
            self._policy.took(calls[0].kind, seconds, joined=len(calls) if failure is None and (joined or len(calls) == 1) else None)
        if failure is None:
            self._hand_out(calls, outputs, joined)
        elif len(calls) == 1:
            calls[0].future.set_exception(failure)
        else:
            half = len(calls) // 2
            if isinstance(failure, torch.OutOfMemoryError):
                self._lower_limit(calls[0].kind, half, for_good=False)
                torch.cuda.empty_cache()
            self.compute(calls[:half])
            self.compute(calls[half:])
        calls.clear()  # the traceback of an error leads here, and must hold no tensors

    def _hand_out(self, calls: list[Call], outputs: list[Any], joined: bool) -> None:
        if calls[0].shared.is_denoiser:
            with self._lock:
                for shared in [calls] if joined else [[call] for call in calls]:
                    self._on_batch(Batch(len(shared), sum(call.arguments.rows for call in shared)))
        for call, output in zip(calls, outputs, strict=True):
            call.future.set_result(output)

    def _joined(self, calls: list[Call]) -> list[Any]:
        return run_joined(calls[0].shared.together, [call.arguments for call in calls])

    def _check(self, calls: list[Call], apart: list[Any]) -> None:
        """The first time calls of a kind meet they are run joined as well as apart. If that differs, this kind is never joined."""
        kind = calls[0].kind
        try:
            same = all(map(same_output, self._joined(calls), apart))
        except torch.OutOfMemoryError:
            self._lower_limit(kind, len(calls) // 2, for_good=False)
            return
        except Exception as error:
            same = False
            logger.info("joining failed: %s", error)
        if same:
            with self._lock:
                self._joinable = {*self._joinable, kind} if len(self._joinable) < MOST_KINDS else {kind}
        else:
            level = logging.WARNING if calls[0].shared.is_denoiser else logging.INFO
            logger.log(level, "calls of %s change when they are joined, so they run one at a time", type(calls[0].shared.module).__name__)
            self._lower_limit(kind, 1)

    def _lower_limit(self, kind: Hashable, calls: int, *, for_good: bool = True) -> None:
        with self._lock:
            self._policy.lower_limit(kind, calls, for_good=for_good)
