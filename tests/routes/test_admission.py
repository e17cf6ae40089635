"""The queue on a simulated clock: whoever runs gets an equal share of the rate, exactly as the estimates assume, or not at all."""

import pytest

from app.routes.admission import DeadlineTooShort, Line, Overloaded, Ticket
from app.routes.estimate import Load, Rates, Room, simulate

FOREVER = 1e9


class Service:
    """A `Line` whose running requests do `rate` work a second together. Small work is 10, and the model's own picture 20."""

    def __init__(self, batch: int = 2, rate: float = 10.0, max_queued: int = 64, max_queue_s: float = 30.0) -> None:
        self.now, self.rate = 0.0, rate
        self.line = Line(
            batch=batch, rates=Rates(rate), native_work=20, max_queued=max_queued, max_queue_s=max_queue_s, clock=lambda: self.now
        )
        self.left: dict[str, tuple[Ticket, float]] = {}
        self.started: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    def enter(self, name: str, work: float, pictures: int = 1, given_s: float = FOREVER) -> Ticket:
        ticket = self.line.enter(work, pictures, given_s)
        self.left[name] = (ticket, work)
        self._note_starts()
        return ticket

    def run(self, until: float = FOREVER) -> None:
        while running := [name for name in self.left if name in self.started]:
            speed = self.rate / len(running)
            first = min(running, key=lambda name: self.left[name][1])
            passes = min(self.left[first][1] / speed, until - self.now)
            self.now += passes
            for name in running:
                self.left[name] = (self.left[name][0], self.left[name][1] - passes * speed)
            if self.now >= until:
                return
            self.ended[first] = self.now
            self.line.leave(self.left.pop(first)[0], done=True)
            self._note_starts()

    def make_one_slowly(self, work: float, seconds: float) -> None:
        """Alone, whatever the rate."""
        ticket = self.line.enter(work, 1, FOREVER)
        self.now += seconds
        self.line.leave(ticket, done=True)

    def _note_starts(self) -> None:
        self.started |= {name: self.now for name, (ticket, _) in self.left.items() if ticket.started.is_set() and name not in self.started}


def test_a_request_that_finds_a_place_starts_at_once() -> None:
    service = Service(batch=2)
    service.enter("a", 10)
    service.enter("b", 10)
    assert service.started == {"a": 0, "b": 0}


def test_the_wait_that_is_told_is_the_wait_there_is() -> None:
    service = Service(batch=2)
    told = {name: service.enter(name, 20).expected_wait_s for name in "abcdef"}
    service.run()
    assert service.started == pytest.approx(told)
    assert told == pytest.approx({"a": 0, "b": 0, "c": 4, "d": 4, "e": 8, "f": 8})


def test_the_wait_follows_the_measured_rate() -> None:
    service = Service(batch=1, rate=10)
    service.line._rates = Rates(1000)  # what it measured on starting was far too good
    for number in range(6):
        service.enter(f"warm {number}", 20)
        service.run()
    service.enter("a", 20)
    assert service.enter("b", 20).expected_wait_s == pytest.approx(2, rel=0.2)


def test_the_wait_follows_the_rate_of_a_crowd_and_the_number_of_replicas() -> None:
    service = Service(batch=2, rate=20)
    service.line._rates = Rates(10)  # of one replica
    service.line.changed_replicas(2)
    told = {name: service.enter(name, 20).expected_wait_s for name in "abcdefgh"}
    service.run()
    assert service.started == pytest.approx(told)
    for name in "ijkl":
        service.enter(name, 20)
    assert service.enter("m", 20).expected_wait_s == pytest.approx(4), "what was learned is of one replica too"


def test_who_leaves_before_the_end_teaches_no_rate() -> None:
    service = Service(batch=1)
    left = service.enter("left", 20)
    service.now += 0.1
    service.line.leave(left, done=False)
    service.enter("a", 20)
    assert service.enter("b", 20).expected_wait_s == pytest.approx(2)


def test_another_model_is_measured_anew() -> None:
    service = Service(batch=2)
    service.line.changed_model(native_work=200, rate=100)
    service.enter("small for the new model", 400)
    service.enter("another one", 400)
    assert set(service.started) == {"small for the new model", "another one"}, "neither counts as large"
    assert service.enter("waits", 400).expected_wait_s == pytest.approx(8)


def test_one_slow_picture_does_not_shut_out_for_ever_those_who_give_less_time() -> None:
    service = Service(batch=1)
    service.enter("first", 20)
    service.run()
    service.make_one_slowly(20, seconds=20)
    service.enter("a", 20, given_s=2.5)  # which nothing else shows to be enough
    with pytest.raises(DeadlineTooShort):
        service.enter("b", 20, given_s=2.5)  # while somebody else runs it is not
    service.run()
    with pytest.raises(DeadlineTooShort):
        service.enter("c", 20, given_s=1.5)  # never was there a picture as fast as that


def test_who_was_let_in_by_the_best_rate_and_misses_is_the_last_to_be() -> None:
    service = Service(batch=1)
    for _ in range(2):
        service.make_one_slowly(20, seconds=20)
    late = service.enter("late", 20, given_s=2.5)
    service.now += 2.4  # a little of it was gone before
    service.line.leave(late, done=False)
    with pytest.raises(DeadlineTooShort):
        service.enter("another", 20, given_s=2.5)


def test_a_picture_of_the_model_before_teaches_nothing_about_this_one() -> None:
    service = Service(batch=1)
    before = service.enter("before", 20)
    service.line.changed_model(native_work=20, rate=1)
    service.now += 1.0
    service.line.leave(before, done=True)
    service.enter("a", 20)
    assert service.enter("b", 20).expected_wait_s == pytest.approx(20)


def test_those_that_wait_are_told_their_place_and_when_it_is_their_turn() -> None:
    service = Service(batch=1)
    service.enter("a", 20)
    tickets = [service.enter(name, 20) for name in "bc"]
    assert [service.line.outlook(ticket).position for ticket in tickets] == [1, 2]
    service.run(until=1)
    assert service.line.outlook(tickets[0]).expected_wait_s == pytest.approx(1)
    service.run(until=2.5)
    assert [service.line.outlook(ticket).position for ticket in tickets] == [0, 1]


def test_beyond_the_longest_wait_a_request_is_refused_with_the_time_until_there_is_room() -> None:
    service = Service(batch=1, max_queue_s=5)
    for name in "abc":
        service.enter(name, 20)  # two seconds each
    with pytest.raises(Overloaded) as refused:
        service.enter("d", 20)
    assert (refused.value.expected_wait_s, refused.value.retry_after_s) == pytest.approx((6, 1))
    service.run(until=1.01)
    service.enter("d", 20)


def test_beyond_the_largest_number_a_request_is_refused_until_the_first_has_started() -> None:
    service = Service(batch=1, max_queued=2)
    for name in "abc":
        service.enter(name, 20)
    with pytest.raises(Overloaded) as refused:
        service.enter("d", 20)
    assert refused.value.retry_after_s == pytest.approx(2)
    service.run(until=2.01)
    service.enter("d", 20)


def test_an_idle_service_takes_a_request_of_any_size() -> None:
    assert Service(max_queue_s=1).enter("huge", 10_000).started.is_set()


def test_a_deadline_that_cannot_be_met_is_refused_and_says_whether_waiting_helps() -> None:
    service = Service(batch=1)
    service.enter("a", 20)
    with pytest.raises(DeadlineTooShort) as refused:
        service.enter("b", 20, given_s=3)
    assert refused.value.retry_after_s == pytest.approx(1)
    with pytest.raises(DeadlineTooShort) as refused:
        service.enter("b", 40, given_s=3)
    assert refused.value.retry_after_s is None
    service.enter("b", 20, given_s=4.1)


def test_a_small_request_passes_large_ones_and_no_large_one_is_passed_for_longer_than_its_own_work_takes() -> None:
    service = Service(batch=1, max_queue_s=FOREVER, max_queued=1000)
    service.enter("running", 100)
    service.enter("large", 100)  # ten seconds
    for number in range(100):
        service.enter(f"small {number}", 10)
        service.run(until=service.now + 1)
    service.run()
    assert service.ended["small 0"] < service.started["large"]
    assert 10 <= service.started["large"] <= 21


def test_large_requests_leave_places_to_small_ones() -> None:
    service = Service(batch=4)
    for name in "abcd":
        service.enter(f"large {name}", 100)
    service.enter("small", 10)
    assert set(service.started) == {"large a", "large b", "large c", "small"}


def test_large_pictures_asked_for_together_are_not_passed_by_single_ones_that_come_long_after_them() -> None:
    service = Service(batch=4, max_queue_s=FOREVER)
    for name in "abc":
        service.enter(f"large {name}", 100)
    service.enter("two", 200, pictures=2)
    for number in range(20):
        service.run(until=5 * number)
        service.enter(f"large {number}", 100)
    service.run()
    came_later = [service.started[f"large {number}"] for number in range(5, 20)]
    assert service.started["two"] < min(came_later)


def test_a_picture_that_is_overdue_still_makes_those_who_wait_wait() -> None:
    service = Service(batch=1)
    service.enter("a", 20)
    service.now = 60  # it should have taken two seconds
    assert 0.1 < service.enter("b", 20).expected_wait_s < 1


def test_many_large_pictures_asked_for_together_start_beside_small_ones() -> None:
    service = Service(batch=8)
    service.enter("small", 10)
    assert service.enter("seven", 350, pictures=7).started.is_set()


def test_pictures_asked_for_together_start_together() -> None:
    service = Service(batch=4)
    service.enter("a", 20)
    service.enter("four", 80, pictures=4)
    service.enter("b", 90)
    assert set(service.started) == {"a"}
    service.run(until=2.01)
    assert set(service.started) == {"a", "four"}


def test_those_who_leave_the_queue_make_room() -> None:
    service = Service(batch=1, max_queued=1)
    running, waiting = service.enter("a", 20), service.enter("b", 20)
    service.line.leave(waiting, done=False)
    last = service.enter("c", 20)
    service.line.leave(running, done=False)
    assert last.started.is_set()


def test_another_replica_takes_as_many_again() -> None:
    service = Service(batch=1)
    service.enter("a", 20)
    second = service.enter("b", 20)
    service.line.changed_replicas(2)
    assert second.started.is_set()
    service.line.changed_replicas(0)  # the last one has died: its successor will have its places
    assert not service.enter("c", 20).started.is_set()


def test_after_a_storm_the_queue_is_as_before() -> None:
    service = Service(batch=2, max_queued=5)
    for number in range(50):
        try:
            service.enter(f"{number}", 20)
        except Overloaded:
            continue
    service.run()
    assert (service.line.waiting, service.line.running) == (0, 0)
    assert service.enter("after", 20).expected_wait_s == 0


def test_the_rate_of_a_crowd_is_told_from_that_of_one() -> None:
    rates = Rates(first=10)
    rates.learn(at_once=8, rate=40)
    assert (rates.at(1), rates.at(7), rates.at(8)) == (10, 40, 40)


def test_a_simulation_shares_the_rate_among_the_pictures_that_run() -> None:
    times = simulate([Load(10, 1)], [Load(10, 1), Load(10, 1)], Room(2, 2), rate=lambda pictures: 10)
    assert [one.start for one in times] == pytest.approx([0, 2])
    assert [one.end for one in times] == pytest.approx([2, 3])
