"""Step-level continuous batching: the pipelines of all requests take turns in one thread, where their calls of a module meet.

Each is the stock pipeline, untouched. It runs until it calls a module, and goes on when the answer is there; calls that fit are computed
as one. So requests join and leave at any step, and no two pipelines ever run at the same time; only what they tell their callers, and
modules that would hold up the steps of others for long, run in other threads. Continuous batching is from Yu et al. 2022 (Orca); here a
denoising step is the unit.
"""

import functools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from app.engine.device import ALONE, Batch, Call, Device
from app.engine.joining import SharedMethod
from app.engine.policy import FairShare
from app.engine.task import StopReason, Task, settle
from app.engine.threads import compute_with
from app.schemas import EngineStopped

logger = logging.getLogger(__name__)

SHORT = 0.25  # of a step: so much may be computed between two of them, because beside them it would take more away from them
PATIENCE_S = 0.2  # after which the others go on without a request whose caller takes long over what it is told
SECONDS_BETWEEN_LOOKS = 0.02  # at whether a request that waits was cancelled
STUCK_AFTER_S = 300.0


class Batcher:
    """Runs up to `max_tasks` at once, others in the order they came, and computes with `cpu_threads`; `on_batch` is told of every step."""

    def __init__(self, max_tasks: int, cpu_threads: int, on_batch: Callable[[Batch], None]) -> None:
        self._max_tasks = max_tasks
        self._policy = FairShare(max_tasks)
        self._device = Device(self._policy, on_batch)
        self._warned_of_lists = False
        self._changed = threading.Condition()
        self._queue: deque[Task] = deque()
        self._tasks: list[Task] = []
        self._calls: list[Call] = []  # that wait
        self._cpu_threads = cpu_threads
        self._room = 0.0  # seconds until the next step that are left for what is none
        self._aside = ThreadPoolExecutor(1, "aside", compute_with, (1,))
        self._call_aside: Call | None = None
        self._busy_since: float | None = None
        self._aside_since: float | None = None
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="batching", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Raises `EngineStopped` if the thread has ended, or has been at one call for far too long."""
        if self._end is not None:
            raise EngineStopped("the batching thread has ended")
        for since in (self._busy_since, self._aside_since):
            if since is not None and time.monotonic() - since > STUCK_AFTER_S:
                raise EngineStopped(f"a call has taken more than {STUCK_AFTER_S:g} s")

    def run(self, function: Callable[[Task], Any], stopped: StopReason) -> Any:  # noqa: ANN401
        """What `function` returns, which runs in the batching thread. It ends with what `stopped` gives, at its next wait."""
        task = Task(function, stopped)
        with self._changed:
            if self._end is not None:
                raise EngineStopped("the engine has stopped") from self._end
            self._queue.append(task)
            self._changed.notify()
        return task.result(on_told=self._wake)

    def share(
        self, module: nn.Module, name: str, *, alone: Callable[..., Any] | None = None, is_denoiser: bool = False
    ) -> Callable[..., Any]:
        """What to call instead of the method `name` of `module`, so that calls by tasks meet; all others go straight to it."""
        shared = SharedMethod(module, name, alone=alone, is_denoiser=is_denoiser)

        @functools.wraps(shared.together)
        def meet(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            task = next((task for task in self._tasks if task.is_current()), None)
            if task is None:
                return shared.alone(*args, **kwargs)
            return self._answer_to(Call(task, shared, args, kwargs, shared.describe(args, kwargs)))

        return meet

    def close(self) -> None:
        """End the threads; whatever runs or waits fails with `EngineStopped`."""
        with self._changed:
            self._end = self._end or EngineStopped("closed")
            self._changed.notify()
        self._thread.join()

    def _answer_to(self, call: Call) -> Any:  # noqa: ANN401
        task = call.task
        task.stop_if_asked()
        if call.shared.is_denoiser:
            task.loop_began = task.loop_began or time.monotonic()
            if call.arguments.signature is None and not self._warned_of_lists:
                self._warned_of_lists = True
                logger.warning("%s takes lists of samples, so its calls run one at a time", type(call.shared.module).__name__)
        self._calls.append(call)
        return task.wait_for(call.future)

    def _serve(self) -> None:
        try:
            compute_with(self._cpu_threads)
            with torch.inference_mode():
                while self._end is None:
                    self._busy_since = time.monotonic()
                    self._drop_stopped()
                    self._go_on()
                    if calls := self._next_calls():
                        self._device.compute(calls)
                        del calls  # or they would keep their tensors while the tasks go on
                    else:
                        self._busy_since = None
                        self._wait_for_news()
        except BaseException as error:
            logger.exception("the batching thread has died")
            self._end = error
        with self._changed:
            for task in (*self._tasks, *self._queue):
                task.end(EngineStopped("the engine has stopped"))
            self._tasks, self._calls, self._call_aside = [], [], None
            self._queue.clear()
        self._aside.shutdown(cancel_futures=True)

    def _drop_stopped(self) -> None:
        for task in self._tasks:
            task.give_up_if_stopped()
        self._calls = [call for call in self._calls if not call.future.done()]
        if (aside := self._call_aside) is not None and aside.is_over_aside:
            self._call_aside = None
            self._calls += [] if aside.future.done() or aside.task.stop_reason() else [aside]
        with self._changed:
            for task in list(self._queue):
                if reason := task.stop_reason():
                    self._queue.remove(task)
                    task.end(reason)

    def _go_on(self) -> None:
        """Every task that can goes on, until all of them wait."""
        while self._has_room or any(task.can_go_on for task in self._tasks):
            while self._has_room:
                self._tasks.append(self._queue.popleft())
            for task in [task for task in self._tasks if task.can_go_on]:
                task.go_on()
            self._tasks = [task for task in self._tasks if not task.ended]

    @property
    def _has_room(self) -> bool:
        return bool(self._queue) and len(self._tasks) < self._max_tasks

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _wait_for_news(self) -> None:
        with self._changed:
            self._changed.wait_for(self._has_news, SECONDS_BETWEEN_LOOKS if self._tasks or self._queue else None)

    def _has_news(self) -> bool:
        over_aside = self._call_aside is not None and self._call_aside.is_over_aside
        return self._end is not None or self._has_room or over_aside or any(task.can_go_on for task in self._tasks)

    def _next_calls(self) -> list[Call]:
        """Those that the policy picks, if any is due. What is no step goes first."""
        if in_need := [call for call in self._calls if call.needs_room]:
            return self._pick({ALONE: in_need})
        others = [call for call in self._calls if not call.shared.is_denoiser]
        in_loop = {task for task in self._tasks if task.step_kind is not None} - {call.task for call in others}
        to_come = self._kinds_to_come()
        if others and not in_loop:
            if None in to_come:
                return []
            if calls := self._pick(self._not_aside(_by_kind(others))):
                return calls
        elif short := self._pick(self._fit_before_the_next_step(others)):
            self._room -= sum(self._device.seconds_each[call.kind] for call in short)
            return short
        self._room = SHORT * self._device.step_seconds
        steps = _by_kind(call for call in self._calls if call.shared.is_denoiser)
        return self._pick({kind: calls for kind, calls in steps.items() if kind == ALONE or kind not in to_come})

    def _fit_before_the_next_step(self, others: Iterable[Call]) -> dict[Hashable, list[Call]]:
        """As many of each kind as there is room for, the rest before a later one. What never finds room, or may not, goes aside."""
        seconds, largest_room = self._device.seconds_each, SHORT * self._device.step_seconds
        kinds: dict[Hashable, list[Call]] = {}
        for kind, calls in _by_kind(others).items():
            if kind != ALONE and seconds.get(kind, math.inf) <= largest_room:
                kinds[kind] = calls[: int(max(self._room, 0.0) / max(seconds[kind], 1e-9))]
            elif self._call_aside is None:  # one at a time: those that wait may go together once nobody is in the loop
                self._call_aside = calls[0]
                self._calls.remove(calls[0])
                self._aside.submit(self._compute_aside, calls[0])
        return self._not_aside({kind: calls for kind, calls in kinds.items() if calls})

    def _not_aside(self, kinds: dict[Hashable, list[Call]]) -> dict[Hashable, list[Call]]:
        """Without those of the module that is at work aside: no module is in two threads at once."""
        if self._call_aside is None:
            return kinds
        at_work = self._call_aside.shared.module
        return {kind: calls for kind, calls in kinds.items() if calls[0].shared.module is not at_work}

    def _pick(self, ready: dict[Hashable, list[Call]]) -> list[Call]:
        picked = self._device.first_of(self._policy.pick(ready)) if ready else []
        self._calls = [call for call in self._calls if call not in picked]
        return picked

    def _kinds_to_come(self) -> set[Hashable | None]:
        """Of the next calls of requests whose callers are being told of a step, none for a decoding. Who takes long is not waited for."""
        long_ago = time.monotonic() - PATIENCE_S
        return {task.step_kind for task in self._tasks if task.telling_since > long_ago}

    def _compute_aside(self, call: Call) -> None:
        start = self._aside_since = time.monotonic()
        if call.task.stop_reason():
            call.future.cancel()
        try:
            with torch.inference_mode():
                settle(call.future, functools.partial(call.shared.together, *call.args, **call.kwargs), but=(torch.OutOfMemoryError,))
        except torch.OutOfMemoryError:
            call.needs_room = True
        self._aside_since = None
        if call.future.done() and not call.future.cancelled() and call.future.exception() is None:
            self._device.seconds_each[call.kind] = (time.monotonic() - start) / self._cpu_threads  # or a little longer, between two steps
        self._wake()


def _by_kind(calls: Iterable[Call]) -> dict[Hashable, list[Call]]:
    kinds: dict[Hashable, list[Call]] = {}
    for call in calls:
        kinds.setdefault(call.kind, []).append(call)
    return kinds
