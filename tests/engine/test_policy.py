"""Who shares the next call, on a simulated clock."""

import itertools
from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from app.engine.policy import MOST_KINDS, PICKS_UNTIL_MORE, FairShare


@dataclass(frozen=True)
class Waiting:
    name: str


def waiting(*names: str) -> list[Waiting]:
    return [Waiting(name) for name in names]


def test_the_oldest_go_first_up_to_the_largest_batch() -> None:
    calls = waiting("a", "b", "c", "d")
    assert [call.name for call in FairShare(3).pick({"kind": calls})] == ["a", "b", "c"]


def test_kinds_get_the_same_share_of_seconds_however_long_their_calls_are() -> None:
    policy, seconds, cost = FairShare(8), {"small": 0.0, "large": 0.0}, {"small": 1.0, "large": 10.0}
    for _ in range(1100):
        (call,) = policy.pick({kind: [Waiting(kind)] for kind in cost})
        policy.took(call.name, cost[call.name])
        seconds[call.name] += cost[call.name]
    assert abs(seconds["small"] - seconds["large"]) <= cost["large"]


@pytest.mark.parametrize("most", [None, 2], ids=["all of a kind", "two of a kind"])
def test_every_call_gets_the_same_share_of_seconds_whether_it_is_one_of_many_of_its_kind_or_the_only_one(most: int | None) -> None:
    policy, seconds = FairShare(8), {"small": 0.0, "large": 0.0}
    for _ in range(1000):
        picked = policy.pick({"small": waiting(*["small"] * 6), "large": waiting("large", "large")}, most)
        assert len(picked) <= (most or 6)
        name = picked[0].name
        policy.took(name, cost := 1.0 if name == "small" else 4.0)
        seconds[name] += cost
    assert abs(seconds["small"] / 6 - seconds["large"] / 2) <= 4.0


def test_who_is_left_of_a_batch_does_not_pay_for_those_who_have_ended() -> None:
    policy = FairShare(8)
    policy.pick({"large": waiting(*["large"] * 8)})
    policy.took("large", 8.0)
    order = []
    for _ in range(20):
        (call,) = policy.pick({"small": waiting("small"), "large": waiting("large")})
        policy.took(call.name, 0.1 if call.name == "small" else 1.0)
        order.append(call.name)
    assert order.index("large") <= 11


@pytest.mark.parametrize("large", [1, 7], ids=["one large one", "seven large ones that are computed as one"])
def test_a_small_call_waits_for_at_most_one_large_one(large: int) -> None:
    policy, order = FairShare(8), []
    for _ in range(50):
        name = policy.pick({"large": [Waiting("large")] * large, "small": [Waiting("small")]})[0].name
        policy.took(name, 4.0 if name == "large" else 1.0)
        order.append(name)
    assert "large large" not in " ".join(order)
    assert "large" in order[-10:]


def test_many_short_kinds_do_not_shut_out_a_long_one() -> None:
    policy, seconds = FairShare(8), {"a": 1.0, "b": 1.0, "long": 10.0}
    got = dict.fromkeys(seconds, 0.0)
    for _ in range(500):
        name = policy.pick({name: waiting(name) for name in seconds})[0].name
        policy.took(name, seconds[name])
        got[name] += seconds[name]
    assert max(got.values()) - min(got.values()) <= seconds["long"]


@pytest.mark.parametrize("before", [0, 1], ids=["a newcomer", "one that was away for long"])
def test_who_comes_later_has_no_more_of_the_device_than_those_that_were_there(before: int) -> None:
    policy = FairShare(8)
    for name in ["late"] * before + ["old"] * 100:
        policy.pick({name: waiting(name)})
        policy.took(name, 1.0)
    picked = []
    for _ in range(10):
        (call,) = policy.pick({"old": waiting("old"), "late": waiting("late")})
        policy.took(call.name, 1.0)
        picked.append(call.name)
    assert 4 <= picked.count("old") <= 6


def test_a_lowered_limit_holds_for_its_kind_only_and_never_reaches_zero() -> None:
    policy = FairShare(8)
    policy.lower_limit("big", 0)
    assert len(policy.pick({"big": waiting("a", "b")})) == 1
    policy.took("big", 1.0)
    assert len(policy.pick({"other": waiting("a", "b")})) == 2


def test_a_limit_for_want_of_memory_is_tried_again_now_and_then_and_any_other_stays() -> None:
    policy, sizes = FairShare(8), list[int]()
    policy.lower_limit("full", 2, for_good=False)
    policy.lower_limit("wrong", 1)
    for _ in range(3 * PICKS_UNTIL_MORE - 1):
        assert len(policy.pick({"wrong": waiting(*"abcdefgh")})) == 1
        sizes.append(len(policy.pick({"full": waiting(*"abcdefgh")})))
        if sizes[-1] == 4 and sizes.count(4) == 1:  # it does not fit yet
            policy.lower_limit("full", 2, for_good=False)
    assert [size for size, _ in itertools.groupby(sizes)] == [2, 4, 2, 4]


def test_of_more_kinds_than_are_remembered_those_that_cannot_be_joined_still_are() -> None:
    policy = FairShare(8)
    policy.lower_limit("wrong", 1)
    for number in range(2 * MOST_KINDS):
        policy.took(number, 1.0)
    assert len(policy.pick({"wrong": waiting("a", "b")})) == 1
    assert len(policy._kinds) <= MOST_KINDS + 1


def test_however_many_kinds_cannot_be_joined_the_shares_of_others_are_kept_and_no_more_is_remembered() -> None:
    policy, seconds, cost = FairShare(8), {"small": 0.0, "large": 0.0}, {"small": 1.0, "large": 10.0}
    for number in range(2 * MOST_KINDS):
        policy.lower_limit(number, 1)
    for _ in range(1100):
        (call,) = policy.pick({kind: [Waiting(kind)] for kind in cost})
        policy.took(call.name, cost[call.name])
        seconds[call.name] += cost[call.name]
    assert seconds["large"] == pytest.approx(seconds["small"], rel=0.05)
    assert len(policy._kinds) <= MOST_KINDS + 1


def test_what_cannot_be_joined_is_remembered_as_long_as_it_is_used() -> None:
    policy = FairShare(8)
    policy.lower_limit("used", 1)
    for number in range(2 * MOST_KINDS):
        policy.lower_limit(number, 1)
        policy.took("used", 1.0)
    assert policy.limit("used") == 1


class Device:
    """Up to `best` calls take one second together, every further one another second."""

    def __init__(self, best: int) -> None:
        self.best = best

    def seconds(self, calls: int) -> float:
        return 1.0 + max(0, calls - self.best)


def picks(policy: FairShare, device: Device, waiting_calls: int, count: int) -> Counter[int]:
    """How often each batch size was picked while so many calls always waited."""
    sizes: Counter[int] = Counter()
    for _ in range(count):
        picked = policy.pick({"kind": waiting(*["call"] * waiting_calls)})
        policy.took("kind", device.seconds(len(picked)), joined=len(picked))
        sizes[len(picked)] += 1
    return sizes


def test_it_finds_the_batch_size_of_highest_throughput_and_finds_it_again_when_the_device_changes() -> None:
    policy, device = FairShare(8), Device(best=3)
    picks(policy, device, 8, 400)
    assert picks(policy, device, 8, 100)[3] >= 90
    device.best = 6
    picks(policy, device, 8, 800)
    assert picks(policy, device, 8, 100)[6] >= 90


def test_a_device_that_gains_from_every_call_is_given_all_of_them() -> None:
    assert picks(FairShare(8), Device(best=8), 8, 200)[8] >= 190


class NoisyDevice(Device):
    """Other programs run on it too: whatever it does takes up to half as long again. A call costs little beside the others."""

    def __init__(self) -> None:
        super().__init__(best=0)
        self.random = Random(0)

    def seconds(self, calls: int) -> float:
        return (0.3 + 0.14 * calls) * self.random.uniform(1.0, 1.5)


def test_noise_is_not_taken_for_a_better_batch_size() -> None:
    policy, device = FairShare(8), NoisyDevice()
    for waiting_calls in (1, 8, 5, 3, 8, 6, 7):
        picks(policy, device, waiting_calls, 100)
    assert picks(policy, device, 8, 2000)[8] >= 1800


@pytest.mark.parametrize("waiting_calls", [1, 2, 5])
def test_fewer_calls_than_the_best_number_do_not_wait_for_more(waiting_calls: int) -> None:
    policy, device = FairShare(8), Device(best=6)
    picks(policy, device, 8, 200)
    assert picks(policy, device, waiting_calls, 100)[waiting_calls] >= 90
