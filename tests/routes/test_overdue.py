"""Pictures that take longer than was measured, on the simulated clock of `test_admission.py`."""

import pytest

from app.routes.admission import DeadlineTooShort
from tests.routes.test_admission import Service


@pytest.mark.parametrize(("passed", "wait"), [(1, 3), (3, 3), (4, 4), (1000, 2)], ids=["on time", "late", "twice as late", "hangs"])
def test_who_is_overdue_shows_that_those_behind_will_take_longer_too_unless_it_hangs(passed: float, wait: float) -> None:
    service = Service(batch=1, rate=10)
    service.enter("takes as long as it takes", 20)
    service.enter("waits", 20)
    service.now += passed
    assert service.enter("comes", 20).expected_wait_s == pytest.approx(wait, rel=0.1)


def test_a_deadline_that_an_idle_service_could_meet_is_worth_another_try_although_it_is_slow_now() -> None:
    service = Service(batch=1, rate=10)
    service.enter("takes as long as it takes", 20)
    service.now += 5
    with pytest.raises(DeadlineTooShort) as raised:
        service.enter("a", 20, given_s=2.1)
    assert raised.value.retry_after_s


def test_who_runs_while_replicas_come_is_not_taken_for_overdue() -> None:
    service = Service(batch=2, rate=10)
    for name in "ab":
        service.enter(name, 20)
    service.now += 1
    service.line.changed_replicas(2)  # the second has nothing to do yet
    service.now += 3
    service.enter("comes", 20, given_s=2.5)
