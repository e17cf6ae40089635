"""Who shares the next call, on a simulated clock."""

from dataclasses import dataclass

from app.engine.policy import FairShare


@dataclass(frozen=True)
class Waiting:
    name: str
    since: float


def waiting(*names: str) -> list[Waiting]:
    return [Waiting(name, since=number) for number, name in enumerate(names)]


def test_the_oldest_go_first_up_to_the_largest_batch() -> None:
    calls = waiting("a", "b", "c", "d")
    assert [call.name for call in FairShare(3).pick({"kind": calls[::-1]})] == ["a", "b", "c"]


def test_kinds_get_the_same_share_of_seconds_however_long_their_calls_are() -> None:
    policy, seconds, cost = FairShare(8), {"small": 0.0, "large": 0.0}, {"small": 1.0, "large": 10.0}
    for _ in range(1100):
        (call,) = policy.pick({kind: [Waiting(kind, 0)] for kind in cost})
        policy.took(call.name, cost[call.name])
        seconds[call.name] += cost[call.name]
    assert abs(seconds["small"] - seconds["large"]) <= cost["large"]


def test_a_small_call_waits_for_at_most_one_large_one() -> None:
    policy, order = FairShare(8), []
    for _ in range(50):
        (call,) = policy.pick({"small": [Waiting("small", 1)], "large": [Waiting("large", 0)]})
        policy.took(call.name, 10.0 if call.name == "large" else 1.0)
        order.append(call.name)
    assert "large large" not in " ".join(order)


def test_a_newcomer_does_not_hold_up_those_that_were_there_before() -> None:
    policy = FairShare(8)
    for _ in range(100):
        policy.pick({"old": waiting("old")})
        policy.took("old", 1.0)
    picked = []
    for _ in range(10):
        (call,) = policy.pick({"old": waiting("old"), "new": waiting("new")})
        policy.took(call.name, 1.0)
        picked.append(call.name)
    assert 4 <= picked.count("old") <= 6


def test_a_lowered_limit_holds_for_its_kind_only_and_never_reaches_zero() -> None:
    policy = FairShare(8)
    policy.lower_limit("big", 0)
    assert len(policy.pick({"big": waiting("a", "b")})) == 1
    policy.took("big", 1.0)
    assert len(policy.pick({"other": waiting("a", "b")})) == 2
