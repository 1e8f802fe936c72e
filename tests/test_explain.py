"""Which slice is named as the cause: in small worlds where the cause is known."""

from __future__ import annotations

import pytest

from pipeline.incidents.explain import Investigation, Slice
from schemas.alarm import Direction, Rate
from schemas.incident import Cause
from tests.support.alarms import Traffic, look_at, make_alarm, observe

QUIET = Rate(10, 1_000)


def world_of(*changed: tuple[dict[str, str], float]) -> list[Traffic]:
    """Two providers, three tenants, two prompts: 12 kinds, of 1,000 before and 500 since.

    A `changed` slice has the rate given since the change, everything else 1 %.
    """
    kinds = [
        {"provider": p, "request_model": f"{p}-1", "tenant": t, "prompt_name": n, "route": "chat"}
        for p in ("a", "b")
        for t in ("t1", "t2", "t3")
        for n in ("ask", "sum")
    ]
    world = []
    for kind in kinds:
        labels = {**kind, "prompt_version": "v1", "region": "eu", "response_model": "m"}
        rate = next((r for slice_, r in changed if slice_.items() <= labels.items()), 0.01)
        world.append(Traffic(labels, QUIET, Rate(round(rate * 500), 500)))
    return world


def cause_of(world: list[Traffic], monitor: dict[str, str]) -> Cause:
    alarm = observe(world, 1, monitor)
    return look_at(alarm, world).explain(alarm).cause


@pytest.mark.parametrize("monitor", [{"route": "chat"}, {"tenant": "t2"}, {"prompt_name": "ask"}])
def test_a_provider_is_named_by_whichever_monitor_sees_it(monitor: dict[str, str]) -> None:
    cause = cause_of(world_of(({"provider": "b"}, 0.3)), monitor)
    # Its only model has the very same requests: of equals, the provider.
    assert cause.labels == {"provider": "b"}
    assert cause.share == pytest.approx(1.0, abs=0.02)
    assert cause.before == Rate(60, 6_000)
    assert cause.after == Rate(900, 3_000)


def test_a_new_prompt_version_is_named_though_it_has_no_past() -> None:
    world = world_of()
    new = {**world[0].labels, "prompt_version": "v2"}
    world.append(Traffic(new, Rate(0, 0), Rate(170, 500)))
    cause = cause_of(world, {"route": "chat"})
    assert cause.labels == {"prompt_name": "ask", "prompt_version": "v2"}
    assert (cause.before, cause.after) == (Rate(0, 0), Rate(170, 500))


@pytest.mark.parametrize("past", [Rate(0, 0), Rate(3, 8), Rate(12, 30)])
def test_a_new_version_that_replaced_the_old_one_is_named(past: Rate) -> None:
    """Also when the change point is a little late, and its first events count as its past."""
    world = []
    for traffic in world_of():
        if traffic.labels["prompt_name"] == "ask":
            world.append(Traffic(traffic.labels, traffic.before, Rate(0, 0)))
            new = {**traffic.labels, "prompt_version": "v2"}
            world.append(Traffic(new, past, Rate(150, 500)))
        else:
            world.append(traffic)
    for monitor in ({"route": "chat"}, {"prompt_name": "ask"}):
        assert cause_of(world, monitor).labels == {"prompt_name": "ask", "prompt_version": "v2"}


def test_of_what_has_the_same_requests_an_old_version_is_named_last() -> None:
    """A version of a prompt does not change; what answers it does."""
    world = [
        Traffic({**t.labels, "prompt_name": f"for-{t.labels['provider']}"}, t.before, t.after)
        for t in world_of(({"provider": "b"}, 0.3))
    ]
    assert cause_of(world, {"route": "chat"}).labels == {"provider": "b"}


@pytest.mark.parametrize("tenant", ["t1", "t3"])
def test_one_tenant_is_named(tenant: str) -> None:
    cause = cause_of(world_of(({"tenant": tenant}, 0.2)), {"route": "chat"})
    assert cause.labels == {"tenant": tenant}


@pytest.mark.parametrize("monitor", [{"route": "chat"}, {"tenant": "t2"}, {"provider": "a"}])
def test_what_strikes_everything_alike_has_no_slice(monitor: dict[str, str]) -> None:
    """Not even the one that happened to see it, nor the one that has most of the traffic."""
    cause = cause_of(world_of(({}, 0.3)), monitor)
    assert cause == Cause({}, 1.0, Rate(120, 12_000), Rate(1_800, 6_000))


def test_a_slice_with_most_of_the_traffic_is_not_the_cause_for_that() -> None:
    world = world_of(({}, 0.3))
    crowd = [t for t in world if t.labels["provider"] == "a"] * 9
    assert cause_of([*world, *crowd], {"route": "chat"}).labels == {}


def test_what_no_single_dimension_tells_is_told_by_the_monitor() -> None:
    """One model on one route: neither the model elsewhere nor the route's other model."""
    pair = {"request_model": "a-1", "route": "chat"}
    world = world_of((pair, 0.3))
    world += [t._replace(labels={**t.labels, "route": "other"}, after=Rate(5, 500)) for t in world]
    cause = cause_of(world, pair)
    assert cause == Cause(pair, 1.0, Rate(60, 6_000), Rate(900, 3_000))


@pytest.mark.parametrize("slice_", [{"provider": "b"}, {"tenant": "t2"}, {"prompt_name": "sum"}])
def test_a_fall_is_explained_as_a_rise_is(slice_: dict[str, str]) -> None:
    world = [t._replace(before=Rate(300, 1_000), after=Rate(150, 500)) for t in world_of()]
    world = [
        t._replace(after=Rate(5, 500)) if slice_.items() <= t.labels.items() else t for t in world
    ]
    alarm = observe(world, 1, {"route": "chat"})
    assert alarm.direction is Direction.FALL
    cause = look_at(alarm, world).explain(alarm).cause
    assert cause.labels.items() >= slice_.items()
    assert not look_at(alarm, world).is_mix_shift(alarm)


def test_an_hour_that_went_the_other_way_explains_nothing() -> None:
    """The detector saw a rise against weeks; against the last hour it is a fall, of one tenant."""
    world = [
        t._replace(before=Rate(200, 1_000)) if t.labels["tenant"] == "t1" else t
        for t in world_of(({}, 0.05))
    ]
    alarm = observe(world, 1, {"route": "chat"}, baseline=QUIET, direction=Direction.RISE)
    assert look_at(alarm, world).explain(alarm).cause.labels == {"route": "chat"}
    assert not look_at(alarm, world).is_mix_shift(alarm)


# --- Traffic that moved ------------------------------------------------------------------------


def mixed_world() -> list[Traffic]:
    """Tenant t3 always had 30 %; since the change it sends ten times as much."""
    return [
        t._replace(before=Rate(300, 1_000), after=Rate(1_500, 5_000))
        if t.labels["tenant"] == "t3"
        else t
        for t in world_of()
    ]


@pytest.mark.parametrize("monitor", [{"route": "chat"}, {"provider": "a"}])
def test_a_change_of_mix_is_no_change_of_behaviour(monitor: dict[str, str]) -> None:
    alarm = observe(mixed_world(), 1, monitor)
    assert alarm.current.value > 1.5 * alarm.baseline.value
    assert look_at(alarm, mixed_world()).is_mix_shift(alarm)


def test_a_change_of_behaviour_is_no_change_of_mix() -> None:
    for changed in ({}, {"provider": "b"}, {"tenant": "t2"}, {"prompt_name": "sum"}):
        world = world_of((changed, 0.3))
        alarm = observe(world, 1, {"route": "chat"})
        assert not look_at(alarm, world).is_mix_shift(alarm)


@pytest.mark.parametrize("unused", ["region", "tenant", "prompt_name", "provider", "request_model"])
def test_a_dimension_that_nobody_fills_in_is_no_mix(unused: str) -> None:
    world = [
        t._replace(labels={**t.labels, unused: ""}) for t in world_of(({"route": "chat"}, 0.3))
    ]
    alarm = observe(world, 1, {"route": "chat"})
    assert not look_at(alarm, world).is_mix_shift(alarm)


@pytest.mark.parametrize("lost", ["response_model", "provider", "region"])
def test_requests_that_fail_before_they_get_a_value_are_no_mix(lost: str) -> None:
    """Those without a value all fail, before as since; only now there are many of them."""
    world = world_of()
    some = [
        Traffic({**t.labels, lost: ""}, Rate(20, 20), Rate(250, 250))
        for t in world
        if t.labels["tenant"] == "t1"
    ]
    alarm = observe([*world, *some], 1, {"route": "chat"})
    found = look_at(alarm, [*world, *some])
    assert not found.is_mix_shift(alarm)
    assert found.explain(alarm).cause.labels == {"tenant": "t1"}


def test_nothing_stored_yet_names_the_monitor() -> None:
    alarm = make_alarm(1)
    for found in (Investigation(()), look_at(alarm, [])):
        cause = found.explain(alarm).cause
        assert cause == Cause({"route": "support"}, 1.0, Rate(0, 0), Rate(0, 0))
        assert not found.is_mix_shift(alarm)
        assert not found.explains((), 0.0)


def test_thousands_of_slices_are_explained_in_one_go() -> None:
    empty = Rate(0, 0)
    slices = [
        Slice((), Rate(100, 10_000), Rate(2_100, 10_000), Rate(100, 10_000), Rate(2_100, 10_000))
    ]
    slices += [
        Slice((("tenant", f"t{i}"),), Rate(0, 4), Rate(0, 4), Rate(0, 4), Rate(0, 4))
        for i in range(2_000)
    ]
    bad = Slice((("tenant", "bad"),), empty, Rate(2_000, 2_000), empty, Rate(2_000, 2_000))
    found = Investigation((*slices, bad))
    alarm = make_alarm(1, baseline=Rate(100, 10_000), current=Rate(2_100, 10_000))
    assert found.explain(alarm).cause.labels == {"tenant": "bad"}
