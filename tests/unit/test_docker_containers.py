"""What a daemon says of containers and events becomes attributes and records, whatever it says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_pipe.receivers.docker_containers import Container, event_record, of_config_file, of_inspect, read_event, split_image

ID = "a" * 64
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def event(action: str, **attributes: str) -> Any:
    said = {"Type": "container", "Action": action, "timeNano": 5, "Actor": {"ID": ID, "Attributes": attributes}}
    found = read_event(said)
    assert found is not None
    return event_record(found, Container(ID, "web"))


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("nginx", ("nginx", "")),
        ("nginx:1.27", ("nginx", "1.27")),
        ("registry:5000/team/web", ("registry:5000/team/web", "")),
        ("registry:5000/team/web:2@sha256:ab", ("registry:5000/team/web", "2")),
        ("web@sha256:ab", ("web", "sha256:ab")),
        ("sha256:abc", ("sha256:abc", "")),
    ],
)
def test_an_images_reference_is_name_and_tag(image: str, parts: tuple[str, str]) -> None:
    assert split_image(image) == parts


@pytest.mark.parametrize(
    ("code", "level"), [("0", "info"), ("143", "info"), ("130", "info"), ("1", "error"), ("137", "error"), ("", "error")]
)
def test_an_end_is_an_error_unless_somebody_asked_for_it(code: str, level: str) -> None:
    record = event("die", exitCode=code)
    assert (record["event_type"], record["level"]) == ("service_stopped", level)


def test_other_actions_are_no_operational_events() -> None:
    assert event("exec_start: ls") is None


def test_labels_are_bounded_in_number_and_length() -> None:
    container = Container(ID, labels={f"{n:04d}" + "k" * 5000: "v" * 5000 for n in range(1000)})
    labels = [item for item in container.resource().items() if item[0].startswith("container.label.")]
    assert len(labels) == 48
    assert max(len(key) + len(value) for key, value in labels) < 2100


@given(JSON, JSON, JSON)
def test_nothing_that_a_daemon_may_say_can_break_it(one: Any, two: Any, three: Any) -> None:
    of_inspect(one)
    found = of_inspect({"Id": ID, "Name": one, "Config": {"Labels": two, "Image": three, "Tty": one}, "State": two, "HostConfig": three})
    assert found is not None
    found.resource()
    try:
        said = read_event({"Type": "container", "Action": "die", "timeNano": 7, "Actor": {"ID": ID, "Attributes": one}, "more": two})
        assert said is not None
        event_record(said, found)
        read_event(three)
        read_event({"Actor": one, "Action": two, "timeNano": three})
    except ValueError:
        return


@given(st.binary(max_size=60))
def test_a_file_beside_a_log_may_hold_anything(data: bytes) -> None:
    of_config_file(data)
    of_config_file(b'{"ID":' + data)
