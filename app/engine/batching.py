"""Step-level continuous batching: the denoiser calls of all requests meet in one thread, which runs those that fit as one call.

Requests join and leave at any step. Continuous batching is from Yu et al. 2022 (Orca); here a denoising step is the unit.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn
from torch.utils._pytree import tree_flatten

from app.engine.joining import Arguments, Joiner, run_joined, same_output
from app.engine.policy import FairShare
from app.engine.threads import compute_with
from app.schemas import GenerationCancelled

logger = logging.getLogger(__name__)

PATIENCE_S = 0.2  # after which the others go on without a request that takes unusually long to its next call
LONGEST_TURN_S = 0.002
STUCK_AFTER_S = 300.0
ALONE = "alone"  # the kind of all calls that cannot be joined
ERRAND = "errand"  # and of what is no call of the denoiser
NO_ARGUMENTS = Arguments([], tree_flatten(())[1], rows=0, batched=frozenset(), signature=ERRAND)
StopReason = Callable[[], GenerationCancelled | None]


class EngineStopped(RuntimeError):
    """The denoiser thread has ended; no further picture can be made by this engine."""


@dataclass(eq=False)
class Member:
    """A request whose denoising loop is running. `stopped` is asked before each call of its own is computed: why it should not be."""

    stopped: StopReason
    before_first_call: Callable[[], None]
    signature: Hashable | None = None  # of its last call
    expected: bool = False  # whether others wait for its next call
    answered: float | None = None  # when its last call was


@dataclass(eq=False)
class Call:
    member: Member
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    arguments: Arguments
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> Hashable:
        return self.arguments.signature or ALONE


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call of the denoiser was: how many requests shared it, their rows together, and its time on the device's thread."""

    requests: int
    rows: int
    seconds: float


current_member: ContextVar[Member | None] = ContextVar("current_member", default=None)


class Denoiser(ModelHook):  # type: ignore[misc]  # diffusers has no type hints
    """Stands in front of `module`: calls made by a member go through one thread, all others straight to the module."""

    def __init__(self, module: nn.Module, policy: FairShare, on_batch: Callable[[Batch], None], cpu_threads: int) -> None:
        super().__init__()
        self._policy = policy
        policy.lower_limit(ALONE, 1)
        self._on_batch = on_batch
        self._joiner = Joiner(module)
        self._checked: set[Hashable] = set()  # signatures whose joined output was compared
        self._changed = threading.Condition()
        self._arriving: set[Member] = set()  # whose text is being encoded
        self._members: set[Member] = set()
        self._waiting: list[Call] = []
        self._said = False  # that calls cannot be joined
        self._free_since = 0.0  # when the last batch was answered
        self._busy_since: float | None = None
        self._end: BaseException | None = None
        HookRegistry.check_if_exists_or_initialize(module).register_hook(self, "batching")
        self._thread = threading.Thread(target=self._serve, args=(cpu_threads,), name="denoiser", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Raises `EngineStopped` if the thread has ended, or has been at one call for far too long."""
        if self._end is not None:
            raise EngineStopped("the denoiser thread has ended")
        busy_since = self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > STUCK_AFTER_S:
            raise EngineStopped(f"a call of the denoiser has taken more than {STUCK_AFTER_S:g} s")

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """What `module(...)` does from now on."""
        member = current_member.get()
        if member is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        if member.answered is None:
            member.before_first_call()
        if reason := member.stopped():
            raise reason
        call = Call(member, self.fn_ref.original_forward, args, kwargs, self._joiner.describe(args, kwargs))
        if call.kind == ALONE and not self._said:
            self._said = True
            logger.warning("%s takes lists of samples, so its calls run one at a time", type(module).__name__)
        with self._changed:
            if self._end is not None:
                raise EngineStopped("the engine has stopped") from self._end
            self._welcome(call)
        return call.future.result()

    def errand(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Compute something else. As long as nobody is between two steps the denoiser's thread does it, with all its CPU threads."""
        member = current_member.get()
        if member is None:
            return function(*args, **kwargs)
        call = Call(member, function, args, kwargs, NO_ARGUMENTS)
        with self._changed:
            lent = self._end is None and self._no_loop_under_way
            if lent:
                self._waiting.append(call)
                self._changed.notify()
        return call.future.result() if lent else function(*args, **kwargs)

    def expect(self, member: Member) -> None:
        """Its first call will come soon. Others that are about to begin wait for it, so that they begin, and end, together."""
        with self._changed:
            self._arriving.add(member)

    def leave(self, member: Member) -> None:
        """Nobody waits for this member's next call any more."""
        with self._changed:
            self._arriving.discard(member)
            self._members.discard(member)
            self._changed.notify()

    def close(self) -> None:
        """End the thread; waiting calls fail with `EngineStopped`."""
        with self._changed:
            self._end = self._end or EngineStopped("closed")
            self._changed.notify()
        self._thread.join()

    def _welcome(self, call: Call) -> None:
        member = call.member
        member.signature, member.expected = call.kind, call.kind != ALONE
        self._arriving.discard(member)
        self._members.add(member)
        self._waiting.append(call)
        self._changed.notify()

    def _serve(self, cpu_threads: int) -> None:
        batch: list[Call] = []
        compute_with(cpu_threads)
        try:
            with torch.inference_mode():
                while batch := self._next_batch():
                    self._busy_since = time.monotonic()
                    self._compute(batch)
                    self._busy_since, self._free_since = None, time.monotonic()
        except BaseException as error:
            logger.exception("the denoiser thread has died")
            self._end = error
        with self._changed:
            for call in (*batch, *self._waiting):
                if not call.future.done():
                    call.future.set_exception(EngineStopped("the engine has stopped"))
            self._waiting.clear()

    def _next_batch(self) -> list[Call]:
        """Waits until calls are ready, and takes those that the policy picks; empty at the end."""
        with self._changed:
            while self._end is None:
                self._drop_stopped()
                ready = self._ready()
                if ready:
                    batch = self._policy.pick(ready)
                    self._waiting = [call for call in self._waiting if call not in batch]
                    return batch
                self._changed.wait(PATIENCE_S if self._waiting else None)
            return []

    def _drop_stopped(self) -> None:
        for call in list(self._waiting):
            if reason := call.member.stopped():
                self._waiting.remove(call)
                call.future.set_exception(reason)

    def _ready(self) -> dict[Hashable, list[Call]]:
        """Waiting calls by kind, of those kinds for which no further call is expected soon."""
        kinds: dict[Hashable, list[Call]] = {}
        for call in self._waiting:
            kinds.setdefault(call.kind, []).append(call)
        if ERRAND in kinds:
            return {ERRAND: kinds[ERRAND][:1]}
        oldest = min((call.since for call in self._waiting), default=0.0)
        if self._arriving and self._no_loop_under_way and time.monotonic() - oldest < PATIENCE_S:
            return {}  # those that are about to begin should begin together
        busy = {call.member for call in self._waiting}
        patient = time.monotonic() - self._free_since < PATIENCE_S
        ready = {}
        for kind, calls in kinds.items():
            missing = [member for member in self._members - busy if member.expected and member.signature == kind]
            if missing and patient:
                continue
            for member in missing:
                member.expected = False  # it has something else to do; until it is back nobody waits for it
            ready[kind] = calls
        return ready

    @property
    def _no_loop_under_way(self) -> bool:
        return all(member.answered is None for member in self._members)

    def _compute(self, calls: list[Call]) -> None:
        """Run the calls as one and give each its part. If that fails, try two halves: only a call that fails alone fails."""
        start = time.monotonic()
        failure: Exception | None = None
        outputs: list[Any] = []
        joined = len(calls) > 1 and calls[0].kind in self._checked
        try:
            outputs = self._joined(calls) if joined else self._apart(calls)
        except Exception as error:
            failure = error.with_traceback(None)  # its frames hold on to tensors that the halves need room for
        seconds = time.monotonic() - start
        self._policy.took(calls[0].kind, seconds, joined=len(calls) if failure is None and (joined or len(calls) == 1) else None)
        if failure is None:
            for shared in [] if calls[0].kind == ERRAND else [calls] if joined else [[call] for call in calls]:
                self._on_batch(Batch(len(shared), sum(call.arguments.rows for call in shared), seconds * len(shared) / len(calls)))
            self._hand_out(calls, outputs)
        elif len(calls) == 1:
            self._answer(calls[0]).set_exception(failure)
        else:
            half = len(calls) // 2
            if isinstance(failure, torch.OutOfMemoryError):
                self._policy.lower_limit(calls[0].kind, half)
                torch.cuda.empty_cache()
            self._compute(calls[:half])
            self._compute(calls[half:])

    def _hand_out(self, calls: list[Call], outputs: list[Any]) -> None:
        """One after another: to its next call a request runs a millisecond of Python, and all at once would fight for the interpreter."""
        for call, output in zip(calls, outputs, strict=True):
            self._answer(call).set_result(output)
            if len(calls) > 1:
                self._wait_for(call.member)

    def _wait_for(self, member: Member) -> None:
        """Until its next call is here, or it has left the loop, or it takes too long."""
        with self._changed:
            self._changed.wait_for(
                lambda: member not in self._members or any(call.member is member for call in self._waiting), LONGEST_TURN_S
            )

    def _answer(self, call: Call) -> Future[Any]:
        if call.kind != ERRAND:
            call.member.answered = time.monotonic()
        return call.future

    def _joined(self, calls: list[Call]) -> list[Any]:
        return run_joined(self.fn_ref.original_forward, [call.arguments for call in calls])

    def _apart(self, calls: list[Call]) -> list[Any]:
        outputs = [call.function(*call.args, **call.kwargs) for call in calls]
        if len(calls) > 1:
            self._check(calls, outputs)
        return outputs

    def _check(self, calls: list[Call], apart: list[Any]) -> None:
        """The first time calls of a kind meet they are run joined as well as apart. If that differs, this kind is never joined."""
        kind = calls[0].kind
        self._checked.add(kind)
        try:
            joined = self._joined(calls)
            same = all(same_output(one, other) for one, other in zip(joined, apart, strict=True))
        except torch.OutOfMemoryError:
            self._checked.discard(kind)
            self._policy.lower_limit(kind, len(calls) // 2)
            return
        except (RuntimeError, ValueError, TypeError) as error:
            same = False
            logger.info("joining failed: %s", error)
        if not same:
            logger.warning("calls of %s change when they are joined, so they run one at a time", type(self._joiner.module).__name__)
            self._policy.lower_limit(kind, 1)
