"""What a transaction of the SQLite log does to groups: begin, retire, reset and drop them, and hold the best-effort ones to their quota.

Each function is a change inside the open transaction of a `Store` (`sqlite_store.py`); where many rows change at once its effects are a
snapshot of everything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from emp_pipe.buffers.sqlite_store import Effects, Store
from emp_pipe.log.group_ledger import Entry
from emp_pipe.log.protocol import Groups, GroupSpec, LossReason, Topic
from emp_pipe.logs import get_logger

_log = get_logger("sqlite")


def begin_groups(store: Store, specs: Groups | None) -> Effects:
    """Make the groups those of the configuration: begin new ones, then retire, loudly, those that are absent.

    None: the groups are those that the file knows."""
    known = {name: _parse_spec(name, spec) for name, spec in store.execute("SELECT name, spec FROM groups")}
    if callable(specs):
        specs = specs(list(known.values()))
    wanted = {spec.name: spec for spec in specs} if specs is not None else known
    for name, spec in wanted.items():
        if name in known:
            store.execute("UPDATE groups SET spec=? WHERE name=?", (_render_spec(spec), name))
        else:
            store.execute("INSERT INTO groups (name, spec) VALUES (?,?)", (name, _render_spec(spec)))
    store.specs = {}
    store.index_groups()
    for name, spec in wanted.items():  # before anything is freed: a renamed destination finds what its old name held
        if spec.start == "oldest":
            for topic in spec.topics - (known[name].topics if name in known else set()):
                _refill(store, name, topic.value)
    for name, spec in known.items():
        kept = wanted[name].topics if name in wanted else frozenset()
        for topic in sorted(spec.topics - kept):
            heirs = [store.group_ids[heir] for heir, its in wanted.items() if _inherits(topic, its, known.get(heir))]
            blocks, records = _held_alone(store, name, topic.value, heirs)
            _lose_topic(store, name, topic.value, LossReason.GROUP_DROPPED)
            if blocks:
                why = "no longer reads it" if name in wanted else "is not in the configuration"
                _log.warning("%s: group %s %s: %d held blocks (%d records) are given up", topic.value, name, why, blocks, records)
        if name not in wanted:
            _log.warning("group %s was retired: the configuration does not name it; should it return, it begins anew", name)
            _forget_group(store, name)
    if any(not spec.topics <= (wanted[name].topics if name in wanted else set()) for name, spec in known.items()):
        _free_unread(store)
    store.specs = wanted
    store.index_groups()
    return Effects(snapshot=store.snapshot())


def _inherits(topic: Topic, heir: GroupSpec, before: GroupSpec | None) -> bool:
    """Return whether what another group leaves of a topic is not lost while this one holds it: it has just begun to read the topic, or
    it is a deriver like the other."""
    return topic in heir.topics and (topic.derived != topic or before is None or topic not in before.topics)


def _held_alone(store: Store, name: str, topic: str, heirs: Sequence[int]) -> tuple[int, int]:
    """Return how many blocks and records a group holds of a topic that none of `heirs` holds."""
    marks = ",".join("?" * len(heirs))
    blocks, records = store.one(
        "SELECT count(*), coalesce(sum(records), 0) FROM blocks b JOIN pending p USING (offset) WHERE p.group_id=? AND b.topic=?"
        f" AND NOT EXISTS (SELECT 1 FROM pending h WHERE h.offset=b.offset AND h.group_id IN ({marks}))",
        (store.group_ids[name], topic, *heirs),
    )
    return blocks, records


def _forget_group(store: Store, name: str) -> None:
    store.execute("DELETE FROM state WHERE group_name=?", (name,))
    store.execute("DELETE FROM groups WHERE name=?", (name,))


def _refill(store: Store, name: str, topic: str) -> None:
    """Let a group read what is held of a topic and it does not hold yet."""
    id = store.group_ids[name]
    missing = "FROM blocks b WHERE topic=?1 AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.offset=b.offset AND p.group_id=?2)"
    records = store.one(f"SELECT coalesce(sum(records), 0) {missing}", (topic, id))[0]
    store.execute(f"INSERT INTO pending SELECT offset, ?2 {missing}", (topic, id))
    store.count("group", name, topic, "appended", records)


def _lose_topic(store: Store, name: str, topic: str, reason: LossReason) -> None:
    id = store.group_ids[name]
    _, records = _held_alone(store, name, topic, ())
    store.execute("DELETE FROM pending WHERE group_id=? AND offset IN (SELECT offset FROM blocks WHERE topic=?)", (id, topic))
    store.count("group", name, topic, reason.value, records)


def _free_unread(store: Store) -> None:
    store.execute("DELETE FROM blocks WHERE NOT EXISTS (SELECT 1 FROM pending WHERE pending.offset = blocks.offset)")


def reset_group(store: Store, name: str, start: Literal["oldest", "newest"]) -> Effects:
    for topic in store.specs[name].topics:
        if start == "oldest":
            _refill(store, name, topic.value)
        else:
            _lose_topic(store, name, topic.value, LossReason.GROUP_RESET)
    _free_unread(store)
    store.index_groups()
    return Effects(snapshot=store.snapshot())


def drop_group(store: Store, name: str) -> Effects:
    spec = store.specs.pop(name)
    for topic in spec.topics:
        _lose_topic(store, name, topic.value, LossReason.GROUP_DROPPED)
    _forget_group(store, name)
    _free_unread(store)
    store.index_groups()
    return Effects(snapshot=store.snapshot())


def trim(store: Store, name: str, in_flight: frozenset[int], now: int) -> Effects:
    """Give up a best-effort group's oldest blocks until it is within its quota; what is being sent is left alone."""
    effects = Effects()
    spec = store.specs.get(name)
    if spec is None:
        return effects
    id = store.group_ids[name]
    too_old = now - int(spec.quota_age_s * 1e9) if spec.quota_age_s is not None else 0
    oldest: list[Any] = store.execute(
        "SELECT b.offset, b.topic, b.bytes, b.records, b.appended_unix_nano FROM pending p CROSS JOIN blocks b ON b.offset=p.offset"
        " WHERE p.group_id=? ORDER BY p.offset LIMIT ?",
        (id, len(in_flight) + 1024),
    ).fetchall()
    for row in oldest:
        entry = Entry(*row)
        if entry.offset in in_flight:
            continue
        if store.held_bytes[name] <= spec.quota_bytes and entry.appended_unix_nano >= too_old:
            return effects
        _lose(store, id, name, entry, effects)
    effects.more = len(oldest) == len(in_flight) + 1024
    return effects


def relieve(store: Store, in_flight: frozenset[int], bytes_wanted: int) -> Effects:
    """Free space without stopping receivers: the oldest blocks that only best-effort groups still hold."""
    effects = Effects()
    required = [store.group_ids[name] for name, spec in store.specs.items() if spec.required]
    marks = ",".join("?" * len(required))
    offsets: list[Any] = store.execute(
        f"SELECT offset FROM pending GROUP BY offset HAVING sum(group_id IN ({marks})) = 0 ORDER BY offset LIMIT ?",
        (*required, len(in_flight) + 4096),
    ).fetchall()
    for (offset,) in offsets:
        if effects.freed_bytes >= bytes_wanted:
            break
        if offset in in_flight:
            continue
        row = store.one("SELECT offset, topic, bytes, records, appended_unix_nano FROM blocks WHERE offset=?", (offset,))
        for name, id in list(store.group_ids.items()):
            _lose(store, id, name, Entry(*row), effects)
    return effects


def _lose(store: Store, id: int, name: str, entry: Entry, effects: Effects) -> None:
    if store.release(id, name, entry, effects):
        store.count("group", name, entry.topic, LossReason.QUOTA.value, entry.records)
        effects.lost.append((name, entry, LossReason.QUOTA))


def _render_spec(spec: GroupSpec) -> str:
    return json.dumps({**asdict(spec), "topics": sorted(spec.topics)})


def _parse_spec(name: str, text: str) -> GroupSpec:
    fields = json.loads(text)
    return GroupSpec(**{**fields, "name": name, "topics": frozenset(Topic(topic) for topic in fields["topics"])})
