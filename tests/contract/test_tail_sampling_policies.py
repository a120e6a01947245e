"""Each policy of tail sampling through the deriver, over every log: what it keeps, what it counts as, which threshold it leaves."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.contract.conftest import OpenLog
from tests.contract.sampling import (
    DROPPED_BY_10_PERCENT,
    ERROR,
    KEPT_BY_10_PERCENT,
    TailSampling,
    numbers,
    random_ids,
    span,
    states,
    trace_id,
)

NORMAL = DROPPED_BY_10_PERCENT


async def decided(opened: OpenLog, policies: list[dict[str, Any]], *spans: Span, **settings: Any) -> list[Span]:
    """Return the spans that policies keep."""
    resource = settings.pop("resource", None)
    sampling = await TailSampling(opened, policies=policies, **settings).open()
    await sampling.send(*spans, resource=resource)
    return await sampling.after(30)


def of_type(type: str, **settings: Any) -> dict[str, Any]:
    return {"type": type, **settings}


def traces(count: int) -> list[bytes]:
    return [trace_id(number, high=number + 1) for number in range(count)]


async def test_error_keeps_a_trace_with_a_span_whose_status_is_an_error(opened: OpenLog) -> None:
    good, bad = traces(2)
    kept = await decided(opened, [of_type("error")], span(good, 1), span(bad, 2), span(bad, 3, status=ERROR))
    assert (numbers(kept), states(kept)) == ([2, 3], ["ot=th:0"] * 2)


async def test_slow_keeps_a_trace_that_lasts_from_its_earliest_start_to_its_latest_end(opened: OpenLog) -> None:
    quick, slow, too_slow = traces(3)
    spans = [
        *(span(quick, 1, start_ms=0, end_ms=400), span(quick, 2, start_ms=100, end_ms=999)),
        *(span(slow, 3, start_ms=600, end_ms=1000), span(slow, 4, start_ms=0, end_ms=10)),
        span(too_slow, 5, end_ms=9001),
    ]
    assert numbers(await decided(opened, [of_type("slow", min_duration_s=1, max_duration_s=9)], *spans)) == [3, 4]


@pytest.mark.parametrize(
    ("condition", "matches", "others"),
    [
        pytest.param({"values": ["acme*", "x"]}, ["acme", "acme-2", "x"], ["ACME", "y", 5], id="string-with-star"),
        pytest.param({"min": 500, "max": 599}, [500, 599, 550.5], [499, 600, "500"], id="number"),
        pytest.param({"is_true": True}, [True], [False, "true", 1], id="bool"),
        pytest.param({"is_true": False}, [False], [True], id="bool-false"),
        pytest.param({}, ["anything", 0, False], [], id="any-value"),
    ],
)
async def test_attribute_keeps_a_trace_by_the_value_on_a_span(
    opened: OpenLog, condition: dict[str, Any], matches: list[Any], others: list[Any]
) -> None:
    ids = traces(len(matches) + len(others) + 1)
    spans = [
        span(trace, at, attributes={"other": "acme", "key": value})
        for at, (trace, value) in enumerate(zip(ids, matches + others, strict=False))
    ]
    spans.append(span(ids[-1], 99))
    kept = await decided(opened, [of_type("attribute", key="key", **condition)], *spans)
    assert numbers(kept) == list(range(len(matches)))


@pytest.mark.parametrize(("where", "kept"), [("any", [1, 2]), ("resource", [1, 2]), ("span", [])])
async def test_attribute_keeps_a_trace_by_its_resource(opened: OpenLog, where: str, kept: list[int]) -> None:
    policy = of_type("attribute", key="tenant", values=["acme"], where=where)
    found = await decided(opened, [policy], span(NORMAL, 1), span(NORMAL, 2), resource={"tenant": "acme"})
    assert numbers(found) == kept


async def test_attribute_on_any_span_keeps_the_whole_trace(opened: OpenLog) -> None:
    sampling = await TailSampling(opened, policies=[of_type("attribute", key="paid", is_true=True)]).open()
    await sampling.send(span(NORMAL, 1))
    await sampling.send(span(NORMAL, 2, attributes={"paid": True}))
    await sampling.send(span(NORMAL, 3))
    assert numbers(await sampling.after(30)) == [1, 2, 3]


async def test_probability_keeps_its_part_of_random_traces_and_says_so(opened: OpenLog) -> None:
    ids = random_ids(3, 4000)
    kept = await decided(opened, [of_type("probability", percent=25)], *(span(trace, at) for at, trace in enumerate(ids)))
    assert 890 < len(kept) < 1110, "a quarter of 4,000, four standard deviations around"
    assert set(states(kept)) == {"ot=th:c"}


async def test_probability_decides_by_rv_where_the_trace_has_one(opened: OpenLog) -> None:
    high, low = "ot=rv:ffffffffffffff", "ot=rv:00000000000000"
    spans = [span(DROPPED_BY_10_PERCENT, 1, trace_state=high), span(KEPT_BY_10_PERCENT, 2, trace_state=low)]
    kept = await decided(opened, [of_type("probability", percent=10)], *spans)
    assert (numbers(kept), states(kept)) == ([1], ["ot=th:e666;rv:ffffffffffffff"])


async def test_always_keeps_everything(opened: OpenLog) -> None:
    kept = await decided(opened, [of_type("always")], span(NORMAL, 1))
    assert states(kept) == ["ot=th:0"]


@pytest.mark.parametrize("limit", [{"traces_per_s": 3}, {"spans_per_s": 6}])
async def test_rate_limit_keeps_so_much_a_second(opened: OpenLog, limit: dict[str, float]) -> None:
    sampling = await TailSampling(opened, policies=[of_type("rate_limit", **limit)]).open()
    for second in range(3):
        ids = random_ids(second, 10)
        await sampling.send(*(span(trace, at) for at, trace in enumerate(ids * 2)))
        sampling.now_s += 1
    sampling.now_s += 27
    for _ in range(3):
        kept = await sampling.after(1 if sampling.sent else 0)
        assert (len({found.trace_id for found in kept}), len(kept)) == (3, 6)
        assert set(states(kept)) == {""}, "a rate limit's chance is none that a threshold can tell"


async def test_and_keeps_what_all_of_its_policies_keep(opened: OpenLog) -> None:
    policy = of_type("and", policies=[of_type("slow", min_duration_s=1), of_type("attribute", key="tenant")])
    both, slow, tenant = traces(3)
    spans = [
        span(both, 1, end_ms=1000, attributes={"tenant": "a"}),
        span(slow, 2, end_ms=1000),
        span(tenant, 3, attributes={"tenant": "a"}),
    ]
    assert numbers(await decided(opened, [policy], *spans)) == [1]


async def test_or_keeps_what_any_of_its_policies_keeps(opened: OpenLog) -> None:
    policy = of_type("or", policies=[of_type("slow", min_duration_s=1), of_type("attribute", key="tenant")])
    neither, slow, tenant = traces(3)
    spans = [span(neither, 1), span(slow, 2, end_ms=1000), span(tenant, 3, attributes={"tenant": "a"})]
    assert numbers(await decided(opened, [policy], *spans)) == [2, 3]


async def test_not_keeps_what_its_policy_does_not_keep(opened: OpenLog) -> None:
    health = of_type("attribute", key="http.route", values=["/healthz"])
    checked, other = traces(2)
    spans = [span(checked, 1, attributes={"http.route": "/healthz"}), span(other, 2)]
    kept = await decided(opened, [of_type("not", policy=health)], *spans)
    assert (numbers(kept), states(kept)) == ([2], ["ot=th:0"])


async def test_policies_within_policies_keep_a_tenth_of_health_checks_and_all_else(opened: OpenLog) -> None:
    health = of_type("attribute", key="http.route", values=["/health*"])
    policies = [
        of_type("not", name="all but health", policy=health),
        of_type("and", name="some health", policies=[health, of_type("probability", percent=10)]),
    ]
    sampling = await TailSampling(opened, policies=policies).open()
    route = {"http.route": "/healthz"}
    await sampling.send(
        span(trace_id(1), 1), span(KEPT_BY_10_PERCENT, 2, attributes=route), span(DROPPED_BY_10_PERCENT, 3, attributes=route)
    )
    kept = await sampling.after(30)
    assert {found.name: found.trace_state for found in kept} == {"span 1": "ot=th:0", "span 2": "ot=th:e666"}
    assert sampling.metric("tail_sample_traces_total", policy="all but health") == 1
    assert sampling.metric("tail_sample_spans_total", policy="some health") == 1
    assert sampling.metric("tail_sample_traces_total", policy="dropped") == 1


async def test_the_first_policy_that_matches_is_the_reason_that_is_counted(opened: OpenLog) -> None:
    sampling = await TailSampling(opened, policies=[of_type("slow", min_duration_s=1), of_type("error")], decide_on_error=False).open()
    await sampling.send(span(NORMAL, 1, end_ms=1000, status=ERROR))
    await sampling.after(30)
    assert sampling.metric("tail_sample_traces_total", policy="slow") == 1
    assert sampling.metric("tail_sample_traces_total", policy="error") == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "ot=th:e666"),
        ("vendor=x", "ot=th:e666,vendor=x"),
        ("a=1,ot=th:8;x:y,b=2", "ot=th:e666;x:y,a=1,b=2"),
        ("ot=th:f", "ot=th:f"),
        ("ot=th:e666", "ot=th:e666"),
    ],
)
async def test_a_probability_raises_the_threshold_of_a_span_and_never_lowers_it(opened: OpenLog, before: str, after: str) -> None:
    trace = trace_id(0xFF_0000_0000_0000)
    kept = await decided(opened, [of_type("probability", percent=10)], span(trace, 1, trace_state=before))
    assert states(kept) == [after]


@pytest.mark.parametrize(
    ("before", "after"), [("", "ot=th:0"), ("ot=th:8", "ot=th:8"), ("ot=rv:01234567890123", "ot=th:0;rv:01234567890123")]
)
async def test_an_error_trace_says_th_0_only_where_no_earlier_threshold_stood(opened: OpenLog, before: str, after: str) -> None:
    assert states(await decided(opened, [of_type("error")], span(NORMAL, 1, trace_state=before, status=ERROR))) == [after]


@pytest.mark.parametrize("malformed", ["ot=th:XYZ", "ot=rv:1", "ot=th:8;th:8", "no member", "ot=th:8,ot=th:8"])
async def test_a_malformed_tracestate_is_left_as_it_is_and_counted(opened: OpenLog, malformed: str) -> None:
    sampling = await TailSampling(opened).open()
    await sampling.send(span(KEPT_BY_10_PERCENT, 1, trace_state=malformed))
    assert states(await sampling.after(30)) == [malformed]
    await sampling.tick()
    assert sampling.metric("tail_sample_odd_spans_total", reason="malformed_tracestate") == 1


async def test_everything_but_the_tracestate_of_a_kept_span_is_as_it_came(opened: OpenLog) -> None:
    given = span(KEPT_BY_10_PERCENT, 1, attributes={"a": 1, "b": "x"}, trace_state="vendor=x", flags=0x301, kind=Span.SPAN_KIND_SERVER)
    given.events.add(name="exception", time_unix_nano=5)
    given.links.add(trace_id=b"l" * 16, span_id=b"l" * 8, trace_state="ot=th:8")
    (kept,) = await decided(opened, [of_type("probability", percent=10)], given)
    given.trace_state = "ot=th:e666,vendor=x"
    assert kept == given
