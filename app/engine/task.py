"""One request in the batching thread: a greenlet, which stops where it has to wait for something and goes on when that is there."""

import math
import time
import traceback
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from greenlet import getcurrent, greenlet

from app.schemas import GenerationCancelled

StopReason = Callable[[], GenerationCancelled | None]


class Task(greenlet):
    """Runs `function(task)` between two threads: what it computes belongs to the batching thread, what it tells to the caller's."""

    def __init__(self, function: "Callable[[Task], Any]", stopped: StopReason) -> None:
        super().__init__()
        self._function = function
        self.stop_reason = stopped  # why nothing further should be computed for it, if so
        self._to_tell: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._result: Future[Any] = Future()
        self._waits_for: Future[Any] | None = None
        self.moments = {"queue": time.monotonic()}  # when each phase began
        self.step_kind: Hashable | None = None  # while it is at a step or between two
        self.telling_since = -math.inf  # if it waits for its caller

    def result(self, on_told: Callable[[], None]) -> Any:  # noqa: ANN401
        """In the caller's thread: wait until the end. `on_told` is called after everything that was told here. What that raises ends it."""
        try:
            while tell := self._to_tell.get():
                tell()
                on_told()
            return self._result.result()
        finally:
            self.stop_reason = lambda: GenerationCancelled("its caller has left")
            del self  # as in `run`

    def tell(self, function: Callable[[], object]) -> None:
        """In the task: have the caller's thread call `function`, however long that takes."""
        told: Future[object] = Future()
        self._to_tell.put(lambda: told.set_result(function()))
        self.telling_since = time.monotonic()
        self.wait_for(told)
        self.telling_since = -math.inf

    def wait_for(self, future: Future[Any]) -> Any:  # noqa: ANN401
        """In the task: others go on until `future` has its result, or is given up. Raises what it is ended with, if so."""
        self._waits_for = future
        try:
            self.parent.switch()  # type: ignore[union-attr]  # it runs
        finally:
            self._waits_for = None  # or it would keep the answer until the end
        return future.result()

    @property
    def can_go_on(self) -> bool:
        return self._waits_for is None or self._waits_for.done()

    @property
    def ended(self) -> bool:
        return self._result.done()

    def go_on(self) -> None:
        """In the batching thread: run until it waits again, or ends."""
        self.parent = getcurrent()
        self.switch()

    def end(self, error: BaseException) -> None:
        """In the batching thread: it ends with `error`, wherever it is."""
        if self:  # it has begun
            self.throw(error)
        if not self.ended:
            self._result.set_exception(error)
            self._to_tell.put(None)

    def run(self) -> None:
        try:
            self._result.set_result(self._function(self))
        except BaseException as error:
            forget_variables(error)
            self._result.set_exception(error)
        self._to_tell.put(None)
        del self  # an error's frames lead to this one, and it would lead to the error


def forget_variables(error: BaseException) -> None:
    """The frames in its traceback would keep them, tensors among them, for as long as somebody keeps the error."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        with suppress(RuntimeError):  # it still runs
            frame.clear()
            frame.f_locals.keys()  # pipelines ask for their `locals()`, which would stay as they were then
