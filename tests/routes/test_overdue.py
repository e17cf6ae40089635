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


def test_a_picture_that_had_to_wait_for_a_replica_does_not_make_the_service_look_slow() -> None:
    service = Service(batch=1, rate=10)
    waited = service.enter("waits for a replica", 20)
    service.now += 40
    service.line.leave(waited, done=True, at_work=False)
    service.enter("runs", 20)
    assert service.enter("waits", 20).expected_wait_s == pytest.approx(2)


def test_pictures_that_are_left_at_once_do_not_make_the_service_look_fast() -> None:
    service = Service(batch=2, rate=10)
    left = service.line.enter(80, 2, given_s=1000)
    service.now += 0.05
    service.line.leave(left, done=False)
    with pytest.raises(DeadlineTooShort):
        service.enter("comes", 80, pictures=2, given_s=1)
