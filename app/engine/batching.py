"""Step-level continuous batching: the pipelines of all requests take turns in one thread, where their calls of a module meet.

Each is the stock pipeline, untouched. It runs until it calls a module, and goes on when the answer is there; calls that fit are computed
as one. So requests join and leave at any step, and no two pipelines ever run at the same time; only what they tell their callers, and on
a CPU the calls themselves, are in other threads. Continuous batching is from Yu et al. 2022 (Orca); here a denoising step is the unit.

CPU threads that share one call meet after each of its hundreds of parts, and if another process needs one of the CPUs, all of them wait
for it every time. So as soon as there is a request for each thread, each computes its own share of the calls: these meet nowhere.
"""

import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from greenlet import getcurrent

from app.engine.device import Batch, Call, Computed, Device
from app.engine.joining import SharedMethod
from app.engine.policy import FairShare
from app.engine.task import StopReason, Task
from app.engine.threads import compute_with
from app.schemas import EngineStopped

logger = logging.getLogger(__name__)

PATIENCE_S = 0.2  # after which the others go on without a request whose caller takes long over what it is told
SECONDS_BETWEEN_LOOKS = 0.02  # at whether a request that waits was cancelled
STUCK_AFTER_S = 300.0


class Batcher:
    """Runs up to `max_tasks` at once, others in the order they came, and computes with `cpu_threads`; `on_batch` is told of every step.

    With `apart`, which is for CPUs, several calls are computed at the same time by a thread each, while there are requests for all threads.
    """

    def __init__(self, max_tasks: int, cpu_threads: int, on_batch: Callable[[Batch], None], *, apart: bool = False) -> None:
        self._max_tasks = max_tasks
        self._device = Device(FairShare(max_tasks), on_batch)
        self._news = threading.Event()
        self._lock = threading.Lock()  # for the end: nobody may come after it
        self._tasks: list[Task] = []  # in the order they came; the first `max_tasks` of them run
        self._calls: list[Call] = []  # that wait
        self._cpu_threads = cpu_threads
        self._most_lanes = max(2, cpu_threads) if apart else 0  # a long decoding leaves one to the steps of others
        self._lanes = ThreadPoolExecutor(max(1, self._most_lanes), "lane", compute_with, (1,))
        self._at_work: dict[Future[Computed], tuple[list[Call], float]] = {}  # what is computed in lanes, and since when
        self._busy_since: float | None = None
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="batching", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check_health(self) -> None:
        """Raises `EngineStopped` if the thread has ended, or has been at one call for far too long."""
        if self._end is not None:
            raise EngineStopped("the batching thread has ended")
        for since in (self._busy_since, *(since for _, since in list(self._at_work.values()))):
            if since is not None and time.monotonic() - since > STUCK_AFTER_S:
                raise EngineStopped(f"a call has taken more than {STUCK_AFTER_S:g} s")

    def run(self, function: Callable[[Task], Any], stopped: StopReason) -> Any:  # noqa: ANN401
        """What `function` returns, which runs in the batching thread. It ends with what `stopped` gives, at its next wait."""
        return self._enter(Task(function, stopped)).result(on_told=self._news.set)

    def _enter(self, task: Task) -> Task:
        with self._lock:
            if self._end is not None:
                raise EngineStopped("the engine has stopped") from self._end
            self._tasks.append(task)
        self._news.set()
        return task

    def share(self, shared: SharedMethod) -> Callable[..., Any]:
        """What to call instead of that method, so that calls by tasks meet; all others go straight to it."""

        @functools.wraps(shared.together)
        def meet(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            task = getcurrent()
            if task not in self._tasks:
                return shared.alone(*args, **kwargs)
            call = Call(task, shared, args, kwargs, shared.describe(args, kwargs))
            task.step_kind = None
            if shared.is_denoiser:
                task.step_kind = call.kind
                task.moments.setdefault("denoise", time.monotonic())
            self._calls.append(call)
            return task.wait_for(call.future)

        return meet

    def close(self) -> None:
        """End the threads; whatever runs or waits fails with `EngineStopped`."""
        self._end = self._end or EngineStopped("closed")
        self._news.set()
        self._thread.join()

    def _serve(self) -> None:
        try:
            compute_with(self._cpu_threads)
            with torch.inference_mode():
                while self._end is None:
                    self._busy_since = time.monotonic()
                    self._look_at_lanes()
                    self._drop_ended()
                    if not self._go_on() and not self._begin_next():
                        self._busy_since = None
                        self._news.wait(SECONDS_BETWEEN_LOOKS if self._tasks else None)
                        self._news.clear()  # before looking again: what comes later ends the next wait
        except BaseException as error:
            logger.exception("the batching thread has died")
            self._end = error
        with self._lock:
            for task in self._tasks:
                task.end(EngineStopped("the engine has stopped"))
            self._tasks, self._calls = [], []
        self._lanes.shutdown(cancel_futures=True)
        self._at_work.clear()

    def _look_at_lanes(self) -> None:
        """What one of them died of ends this thread."""
        for lane in [lane for lane in self._at_work if lane.done()]:
            calls, _ = self._at_work.pop(lane)
            self._device.finish(calls, lane.result())

    def _drop_ended(self) -> None:
        for task in list(self._tasks):
            if reason := task.stop_reason():
                task.end(reason)
            if task.ended:
                self._tasks.remove(task)
        self._calls = [call for call in self._calls if not call.task.ended]

    def _go_on(self) -> bool:
        """Every task that can goes on, until it waits. Whether there was one."""
        able = [task for task in self._tasks[: self._max_tasks] if task.can_go_on]
        for task in able:
            task.go_on()
        return bool(able)

    def _begin_next(self) -> bool:
        """Compute what the policy picks: with all CPU threads here, or in a lane. Whether anything was due."""
        at_work = [calls[0].shared for calls, _ in self._at_work.values()]
        running = min(len(self._tasks), self._max_tasks)
        in_lanes = self._should_use_lanes(at_work, running)
        if len(at_work) >= (self._most_lanes if in_lanes else 1):
            return False
        most = math.ceil(running / self._cpu_threads) if in_lanes else running
        calls = self._device.pick(self._due(at_work, in_lanes, most), most)
        self._calls = [call for call in self._calls if call not in calls]
        if not calls:
            return False
        threads = 1 if in_lanes else self._cpu_threads
        if torch.get_num_threads() != threads:
            compute_with(threads)  # MKL takes the last number that any thread of the process was given
        if in_lanes:
            lane = self._lanes.submit(self._device.compute, calls)
            self._at_work[lane] = calls, time.monotonic()
            lane.add_done_callback(lambda lane: self._news.set())
        else:
            self._device.finish(calls, self._device.compute(calls))
        return True

    def _should_use_lanes(self, at_work: Sequence[SharedMethod], running: int) -> bool:
        """Also until a text or a decoding in one of them is over, which would keep everybody waiting."""
        if any(not shared.is_denoiser for shared in at_work):
            return True
        return 0 < self._most_lanes <= running and any(task.step_kind for task in self._tasks)

    def _due(self, at_work: Sequence[SharedMethod], in_lanes: bool, most: int) -> dict[Hashable, list[Call]]:
        """The calls that could go next, by kind. What is no step goes first, pictures that end together at the same time.

        In lanes no module is in two of them but for the denoiser, which every lane computes for its share of the requests: `most` so many.
        """
        busy, to_come = {shared.module for shared in at_work}, self._kinds_to_come()
        others = [call for call in self._calls if not call.shared.is_denoiser and call.shared.module not in busy]
        if others:
            more_to_come = None in to_come and not in_lanes and not any(task.step_kind for task in self._tasks)
            return {} if more_to_come else _by_kind(others[:1] if in_lanes else others)
        if sum(shared.is_denoiser for shared in at_work) >= self._cpu_threads:
            return {}
        steps = _by_kind([call for call in self._calls if call.shared.is_denoiser])
        return {kind: calls for kind, calls in steps.items() if kind not in to_come or len(calls) >= min(most, self._device.limit(kind))}

    def _kinds_to_come(self) -> set[Hashable | None]:
        """Of the next calls of requests whose callers are being told of a step, none for a decoding. Who takes long is not waited for."""
        long_ago = time.monotonic() - PATIENCE_S
        return {task.step_kind for task in self._tasks if task.telling_since > long_ago}


def _by_kind(calls: Sequence[Call]) -> dict[Hashable, list[Call]]:
    return {kind: [call for call in calls if call.kind == kind] for kind in dict.fromkeys(call.kind for call in calls)}
