"""One rollout, from the deploy to the version that serves, or back."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scripts.release import plan
from scripts.release.outcome import Exit, Failed, Refused, Unreachable
from scripts.release.service import Service
from scripts.release.target import ALL, BROKEN, GOING_BACK, Observed, Target, Version
from scripts.release.tell import Teller

TRIES = 3  # of what may be repeated
BROKEN_LOOKS = 2  # in a row, before a version is given up: one may be a moment between two states
BY_DEPLOYING = "check out the commit that served before, and deploy it"
REFUSED_LOOKS = 3  # in a row, before nobody is believed to be listening


@dataclass(frozen=True, slots=True)
class Patience:
    timeout_s: float = 1800.0  # for the new version to come up, and for the old one to come back
    poll_s: float = 5.0


class Rollout:
    """`steps` are percentages of the traffic that the new version gets one after the other; with none, the target decides.

    `check` is called after each step and raises `Failed` if the version is not fit.
    """

    def __init__(
        self,
        target: Target,
        service: Service,
        folder: Path,
        tell: Teller,
        *,
        check: Callable[[Observed], None],
        steps: Sequence[int] = (),
        patience: Patience = Patience(),
        command_line: Callable[[str], str],
    ) -> None:
        self._target, self._service, self._folder, self._tell = target, service, folder, tell
        self._check, self._wanted_steps, self._patience = check, tuple(steps), patience
        self._command_line = command_line  # of another command on the same service
        self._version = service.version
        self._seen = False
        self._broken_looks = 0
        self.stage = "nothing was deployed"
        self.goes_on = True  # with `run` again, if it is interrupted

    def run(self) -> Exit:
        """Raises `Refused` and `Unreachable` only if nothing was changed."""
        before = self._look()
        if before is not None and before.settled_on(self._version):
            return self._check_again(before)
        under_way = self._under_way(before)
        try:
            for percent in self._steps(before, under_way):
                self._advance(percent, before, under_way)
                under_way = True
                observed = self._wait(partial(self._reached, percent), self._raise_if_lost)
                self._check(observed)
        except Exception as error:
            if not under_way and not self._seen:
                raise
            if not isinstance(error, Failed | Refused | Unreachable):
                self._tell.quote(traceback.format_exc())
            return self._take_back(before, error)
        self._tell.say(f"done: {self._version} serves all requests at {observed.url}")
        return Exit.DONE

    def back_to(self, name: str) -> Exit:
        """Stop the rollout that is going on, whoever began it."""
        self._repeat(partial(self._stop, name))
        try:
            self._wait(lambda seen: seen.settled_on(name), _raise_if_terminated)
        except (Failed, Refused) as trouble:
            self._tell.say(f"{name} is not back: {trouble}")
            return Exit.STUCK
        self._tell.say(f"{name} serves all requests again")
        return Exit.DONE

    def _stop(self, name: str) -> None:
        seen = self._look()
        if seen is None or seen.state == GOING_BACK or seen.settled_on(name):
            return  # the answer was lost, not the call
        if seen.canary is None:
            raise Refused(f"the rollout has ended meanwhile ({seen})")
        self._target.roll_back()

    def _check_again(self, observed: Observed) -> Exit:
        if changed := plan.changed_settings(self._service, observed):
            raise Refused(f"{self._version} is serving already with other settings ({'; '.join(changed)}); give these another --version")
        self._tell.say(f"{self._version} is serving already; only checking it")
        try:
            self._check(observed)
        except Failed as error:
            self._tell.say(f"{self._version} is not fit: {error}. Nothing was changed; deploy another commit.")
            return Exit.STUCK
        return Exit.DONE

    def _under_way(self, before: Observed | None) -> bool:
        """Whether an interrupted rollout of this very version is to be taken up. Raises `Refused` for somebody else's."""
        if before is None or (before.canary is None and before.state != GOING_BACK):
            return before is not None and before.version(self._version) is not None
        if before.canary is None or before.canary.name != self._version or before.state == GOING_BACK:
            stop = f", or stop it: {self._command_line('rollback')}" if self._target.takes_canaries else ""
            raise Refused(f"another rollout is going on ({before}); wait for its end{stop}")
        self._tell.say(f"taking up the rollout of {self._version} where it is: {before}")
        if not self._wanted_steps:
            self._tell.say("its share of the traffic moves on by itself unless --canary has set it; then say --canary again")
        self._seen = True
        return True

    def _steps(self, before: Observed | None, under_way: bool) -> list[int | None]:
        if not self._wanted_steps or not self._target.takes_canaries:
            return [None]
        if before is None or before.primary is None or before.primary.name == self._version:
            self._tell.say("there is no version yet that could share the traffic: no canary")
            return [None]
        done = (before.canary.percent or 0) if under_way and before.canary else 0
        # The one it has reached again: whether it was checked there is not known.
        steps = [percent for percent in self._wanted_steps if percent >= done or percent == ALL]
        return [*steps, *([] if steps and steps[-1] == ALL else [ALL])]

    def _advance(self, percent: int | None, before: Observed | None, under_way: bool) -> None:
        if not under_way:
            self._apply(percent)
        elif percent is not None:
            self._shift(percent, before)
        self.stage = f"the rollout of {self._version} goes on without this terminal" + (f", up to {percent} %" if percent else "")

    def _apply(self, percent: int | None) -> None:
        """Once. If the answer is lost, the service itself is asked whether the deploy has arrived."""
        self._tell.say(f"deploying {self._version}" + (f", {percent} % of the traffic first" if percent else ""))
        self.stage = f"whether the deploy of {self._version} has arrived is not known"
        try:
            self._target.apply(self._service, self._folder, percent)
        except Refused as error:
            if not self._is_there():
                self.stage = "nothing was deployed"
                raise
            self._tell.say(f"{error}; but {self._version} has arrived")
        except Unreachable as error:
            self._tell.say(f"{error}; looking whether the deploy has arrived")
            if not self._arrived():
                self.stage = "nothing was deployed"
                raise Unreachable(f"{error}; {self._version} has not arrived: nothing was deployed, so try again") from error
            self._tell.say(f"{self._version} has arrived; it is not sent again")

    def _arrived(self) -> bool:
        for _ in range(TRIES):
            time.sleep(self._patience.poll_s)
            try:
                if self._is_there():
                    return True
            except Unreachable as error:
                raise Unreachable(f"{error}; {self.stage}, {self._command_line('status')} tells") from error
        return False

    def _is_there(self) -> bool:
        observed = self._target.observe()
        self._seen = observed is not None and observed.version(self._version) is not None
        return self._seen

    def _shift(self, percent: int, before: Observed | None) -> None:
        """The same shares twice do no harm, so this may be repeated."""
        other = before.primary.name if before and before.primary else ""
        self._tell.say(f"{percent} % of the traffic to {self._version}")
        self._repeat(lambda: self._target.shift([(self._version, percent), (other, ALL - percent)]))

    def _repeat(self, act: Callable[[], None]) -> None:
        for left in reversed(range(TRIES)):
            try:
                return act()
            except Unreachable as error:
                if not left:
                    raise
                self._tell.say(f"{error}; trying again")
                time.sleep(self._patience.poll_s)
        return None

    def _look(self) -> Observed | None:
        observed = self._target.observe()
        self._tell.keep_secret(observed.token if observed else None)
        if observed is not None:
            self._tell.say_once(str(observed))
        return observed

    def _reached(self, percent: int | None, observed: Observed) -> bool:
        if percent in (None, ALL):
            return observed.settled_on(self._version)
        canary = observed.canary
        return canary is not None and canary.name == self._version and canary.state == "RUNNING" and (canary.percent or 0) >= percent

    def _wait(self, reached: Callable[[Observed], bool], raise_if_lost: Callable[[Observed | None], object]) -> Observed:
        deadline = time.monotonic() + self._patience.timeout_s
        last: Observed | None = None
        refused = 0
        while True:
            try:
                last, refused = self._look(), 0
                raise_if_lost(last)
                if last is not None and reached(last):
                    return last
            except (Refused, Unreachable) as error:
                refused += isinstance(error, Refused)
                if refused == REFUSED_LOOKS:
                    raise
                self._tell.say_once(f"{error}; still waiting")
            if time.monotonic() > deadline:
                raise Failed(f"it did not come about within {self._patience.timeout_s:g} s; last seen: {last}")
            time.sleep(self._patience.poll_s)

    def _raise_if_lost(self, observed: Observed | None) -> None:
        seen = _raise_if_terminated(observed)
        ours = seen.version(self._version)
        if seen.state == GOING_BACK or (ours is None and self._seen):
            raise Failed("the platform itself is taking it back")
        self._seen = self._seen or ours is not None
        self._broken_looks = self._broken_looks + 1 if ours and ours.state in BROKEN else 0
        if ours and self._broken_looks >= BROKEN_LOOKS:
            raise Failed(f"it is {ours.state}" + (f": {seen.note}" if seen.note else ""))

    def _take_back(self, before: Observed | None, error: Exception) -> Exit:
        self._tell.say(f"{self._version} failed: {error}")
        self._show_logs()
        self.stage, self.goes_on = f"{self._version} failed and is being taken back", False
        old = before.primary if before else None
        if before is None or old is None or old.name == self._version:
            self._tell.say("there is no version before it to go back to that is known here, so it was left as it is.")
            self._tell.say(f"If one served before: {BY_DEPLOYING}. To end it: {self._command_line('terminate --yes')}")
            return Exit.STUCK
        as_before = {"RUNNING"} | ({before.state} & BROKEN)
        try:
            self._repeat(lambda: self._undo(old))
            end = self._wait(
                lambda seen: seen.state in as_before and seen.canary is None and seen.version(old.name) is not None, _raise_if_terminated
            )
        except (Failed, Refused, Unreachable) as trouble:
            self._tell.say(f"{self._version} could not be taken back: {trouble}. Look: {self._command_line('status')}")
            return Exit.STUCK
        if end.state != "RUNNING":
            self._tell.say(f"taken back: {old.name} is what it was, {end.state}. The reason: {error}")
            return Exit.STUCK
        self._tell.say(f"taken back: {old.name} serves all requests again. The reason: {error}")
        return Exit.TAKEN_BACK

    def _undo(self, old: Version) -> None:
        observed = self._look()
        if observed is None or observed.state == GOING_BACK or observed.version(self._version) is None:
            return  # the target has begun by itself
        if observed.canary is not None and observed.canary.name == old.name:
            return  # the answer was lost, not the call
        self._tell.say(f"going back to {old.name}")
        if observed.canary is not None:
            self._target.roll_back()
        else:
            self._target.put_back(old)

    def _show_logs(self) -> None:
        try:
            observed = self._target.observe()
            if observed is not None:
                self._tell.say(f"its last lines ({self._version}):")
                self._tell.quote(self._target.logs(observed, self._version))
        except (Refused, Unreachable) as error:
            self._tell.say(f"no logs: {error}")


def _raise_if_terminated(observed: Observed | None) -> Observed:
    if observed is None:
        raise Failed("the service was terminated meanwhile")
    return observed
