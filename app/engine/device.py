"""Where calls are computed: several as one if that gives everybody what they would have had alone, else apart."""

import functools
import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from app.engine.joining import Arguments, SharedMethod, run_joined, same_output
from app.engine.policy import MOST_KINDS, FairShare
from app.engine.task import Task, forget_variables

logger = logging.getLogger(__name__)


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

    @functools.cached_property
    def kind(self) -> Hashable:
        """Calls of a kind can be joined, as far as their arguments tell. Those without a signature fail when they are."""
        return self.arguments.signature or self.shared


@dataclass(frozen=True, slots=True)
class Computed:
    """What came of calls: for each its output or error, and whether all outputs are of one call of the module."""

    parts: list[Any]
    seconds: float
    in_one_call: bool
    as_one: bool | Exception | None = None  # whether it was the same as apart, or the error of trying, if either was seen


class Device:
    """Computes calls in any thread, one of which does all else. Tells `policy` how long they took, and `on_batch` of the denoiser's."""

    def __init__(self, policy: FairShare, on_batch: Callable[[Batch], None]) -> None:
        self._policy = policy
        self._on_batch = on_batch
        self._joinable: set[Hashable] = set()  # the kinds whose joined output was compared, and was the same

    def limit(self, kind: Hashable) -> int:
        """How many calls of this kind to compute as one at most. Two, if that has never been tried: enough to see whether they can be, and
        soon over."""
        limit = self._policy.limit(kind)
        return limit if kind in self._joinable else min(2, limit)

    def pick(self, ready: Mapping[Hashable, Sequence[Call]], most: int) -> list[Call]:
        """The calls to compute next, at `most` so many, of those that are `ready` by kind."""
        calls = self._policy.pick(ready, most) if ready else []
        return calls[: self.limit(calls[0].kind)] if calls else []

    @torch.inference_mode()
    def compute(self, calls: Sequence[Call]) -> Computed:
        """Run the calls as one. The first time calls of a kind meet they run apart as well, and so they do if that fails: only a call that
        fails alone fails. What was learned is only read."""
        start, joinable = time.monotonic(), calls[0].kind in self._joinable
        as_one = _tried(functools.partial(_joined, calls)) if joinable and len(calls) > 1 else None
        if isinstance(as_one, list):
            return Computed(as_one, time.monotonic() - start, in_one_call=True)
        # Not in a comprehension: an error's frames lead to the frame of one, which is not forgotten with them and would hold the last call.
        apart = list(map(_tried, (functools.partial(call.shared.alone, *call.args, **call.kwargs) for call in calls)))
        succeeded = not any(isinstance(part, Exception) for part in apart)
        if succeeded and not joinable and len(calls) > 1:
            as_one = _tried(lambda: all(map(same_output, _joined(calls), apart)))
        as_one = as_one if succeeded else None  # it may have failed as they did
        return Computed(apart, time.monotonic() - start, in_one_call=succeeded and len(calls) == 1, as_one=as_one)

    def finish(self, calls: list[Call], computed: Computed) -> None:
        """Give each its part, and learn."""
        kind, as_one = calls[0].kind, computed.as_one
        self._policy.took(kind, computed.seconds, joined=len(calls) if computed.in_one_call else None)
        if as_one is True:
            self._joinable = {*self._joinable, kind} if len(self._joinable) < MOST_KINDS else {kind}
        elif isinstance(as_one, torch.OutOfMemoryError) or (isinstance(as_one, Exception) and kind in self._joinable):
            logger.info("%d calls of %s failed as one: %s", len(calls), type(calls[0].shared.module).__name__, as_one)
            self._policy.lower_limit(kind, len(calls) // 2, for_good=False)
        elif as_one is not None:
            self._never_join(calls[0], "change" if as_one is False else f"fail with {as_one!r}")
        self._count(calls, computed)
        for call, part in zip(calls, computed.parts, strict=True):
            settle = call.future.set_exception if isinstance(part, Exception) else call.future.set_result
            settle(part)
        calls.clear()
        computed.parts.clear()  # the frames of an error lead to both, and must hold no tensors

    def _never_join(self, call: Call, reason: str) -> None:
        level = logging.WARNING if call.shared.is_denoiser else logging.INFO
        logger.log(level, "calls of %s %s when they are joined, so they run one at a time", type(call.shared.module).__name__, reason)
        self._policy.lower_limit(call.kind, 1)

    def _count(self, calls: Sequence[Call], computed: Computed) -> None:
        if calls[0].shared.is_denoiser:
            done = [call for call, part in zip(calls, computed.parts, strict=True) if not isinstance(part, Exception)]
            for together in [done] if computed.in_one_call else [[call] for call in done]:
                self._on_batch(Batch(len(together), sum(call.arguments.rows for call in together)))


def _joined(calls: Sequence[Call]) -> list[Any]:
    if calls[0].arguments.signature is None:
        raise TypeError("it takes more than tensors and values")
    return run_joined(calls[0].shared.together, [call.arguments for call in calls])


def _tried(function: Callable[[], Any]) -> Any:  # noqa: ANN401
    """What it returns, or raises."""
    try:
        return function()
    except Exception as error:
        del function  # this frame is in the traceback, and must hold no tensors
        forget_variables(error)  # others need their room
        return error
