"""The names of a shard's keys, and its groups as they are stored: what stands where in Redis.

Everything of a shard has one hash tag, `{prefix.shard}`, so that a script may touch all of it also on a cluster. Not here: what a script
does with the keys (`redis_script_*.lua`), the arguments that it is given (`redis_calls.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from emp_pipe.log.protocol import ChunkKey, GroupSpec, Topic

FORMAT = 1
"""The version of all this. Newer emp-pipes read older ones, an older one refuses with advice."""

_FIXED = ("meta", "books", "index", "groups", "named", "dead", "dead_index", "checkpoints", "bell")


class Keys:
    """The keys of one shard, for one process (`owner`): its operations' results have a key of their own."""

    def __init__(self, prefix: str, shard: int, owner: str) -> None:
        self.base = f"{{{prefix}.{shard}}}:"
        self.fixed = [*(self.base + name for name in _FIXED), f"{self.base}operations:{owner}"]
        self.streams = [self.stream(topic) for topic in Topic]
        self.meta, self.checkpoints = self.base + "meta", self.base + "checkpoints"
        self.dead, self.dead_index, self.bell = self.base + "dead", self.base + "dead_index", self.base + "bell"

    def stream(self, topic: str) -> str:
        return f"{self.base}stream:{topic}"

    def held(self, group: str) -> str:
        return f"{self.base}held:{group}"

    def state(self, group: str) -> str:
        return f"{self.base}state:{group}"

    def expiry(self, group: str) -> str:
        return f"{self.base}expiry:{group}"

    def chunk(self, chunk: ChunkKey) -> str:
        """A chunk's key: of one length, whatever a peer sends."""
        digest = hashlib.blake2b(b"%d:%b%b" % (len(chunk.peer), chunk.peer.encode(), chunk.chunk), digest_size=16)
        return f"{self.base}seen:{digest.hexdigest()}"

    def of_groups(self, groups: Iterable[str]) -> list[str]:
        """All keys of groups."""
        return [key for name in groups for key in (self.held(name), self.state(name), self.expiry(name))]


@dataclass(slots=True)
class View:
    """What a process knows of a shard before it asks: which instance, whose, which groups. A script refuses where it has changed."""

    id: bytes = b""
    """Made with the shard: another one means that everything before is gone."""
    operations: int = 0
    """How many had changed it: a server that has done fewer has data of an earlier moment."""
    groups_version: bytes = b"-"
    epoch: bytes = b""
    """The lease that this process holds; empty: none."""
    specs: dict[str, GroupSpec] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    """Of each group: where it stands among those that were begun before and after it."""
    readers: dict[str, list[str]] = field(default_factory=dict)
    """Groups by topic."""

    def set_groups(self, version: bytes, stored: Mapping[bytes, bytes]) -> None:
        """Know groups as they are stored. Raises, and knows what it knew before, where what stands there is no group."""
        places = {name.decode(): int(json.loads(spec).get("place", 0)) for name, spec in stored.items()}
        ordered = sorted(stored, key=lambda name: (places[name.decode()], name))
        specs = {name.decode(): parse_spec(name.decode(), stored[name]) for name in ordered}
        readers: dict[str, list[str]] = {}
        for name, spec in specs.items():
            for topic in spec.topics:
                readers.setdefault(topic.value, []).append(name)
        self.groups_version, self.specs, self.places, self.readers = version, specs, places, readers


def render_spec(spec: GroupSpec, place: int) -> str:
    return json.dumps({**asdict(spec), "topics": sorted(spec.topics), "place": place}, sort_keys=True)


def parse_spec(name: str, text: bytes) -> GroupSpec:
    """Return a stored group; topics and settings that only a later version knows are left out."""
    fields = json.loads(text)
    known = set(Topic)
    topics = frozenset(Topic(topic) for topic in fields["topics"] if topic in known)
    settings = {key: value for key, value in fields.items() if key in GroupSpec.__dataclass_fields__}
    return GroupSpec(**{**settings, "name": name, "topics": topics})
