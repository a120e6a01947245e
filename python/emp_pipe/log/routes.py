"""Which topic rows are filed under, and which copies are made of them: the table of `docs/decisions/001-log.md` as code.

Not here: who reads a topic (`GroupSpec.topics`), how rows become blocks (`writer.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from emp_pipe.done import Done
from emp_pipe.log.protocol import Topic

if TYPE_CHECKING:
    from emp_pipe._core import Batch, Block


Batches = dict[tuple[Topic, Done], list["Batch"]]
"""What becomes blocks: by topic, and apart where different things have been done, for a block says it of all its rows."""


class Routes:
    """The topics of one process, from what its groups read. A topic that nobody reads is not written."""

    def __init__(self, topics: Iterable[Topic]) -> None:
        read = frozenset(topics)
        traces = Topic.TRACES_IN if Topic.TRACES_IN in read else Topic.TRACES
        metrics = Topic.METRICS_IN if Topic.METRICS_IN in read else Topic.METRICS
        self._read = read
        self._by_signal = {"logs": Topic.LOGS, "traces": traces, "metrics": metrics}
        self._events = Topic.EVENTS in read
        self._errors = Topic.ERRORS in read

    def add_batch(self, batch: Batch, done: Done, batches: Batches) -> bool:
        """File a batch, and copies of its event and error rows where somebody reads them; False when no one reads any of it."""
        topic = self._topic_of(batch.signal, done.decided, done.aggregated)
        filed = topic in self._read
        if filed:
            batches.setdefault((topic, done), []).append(batch)
        if self._events and batch.event_count and (copy := batch.select_flag("event")) is not None:
            batches.setdefault((Topic.EVENTS, done), []).append(copy)
            filed = True
        if self._errors and batch.error_count and (copy := batch.select_flag("error")) is not None:
            batches.setdefault((Topic.ERRORS, done), []).append(copy)
            filed = True
        return filed

    def file_block(self, block: Block) -> Block | None:
        """Return a block of another emp-pipe under its topic here, unopened; None when nobody reads that.

        The other side has made its event and error copies already: none are made here."""
        if block.topic in (Topic.EVENTS, Topic.ERRORS):
            topic = Topic(block.topic)
        else:
            topic = self._topic_of(block.signal, block.decided, block.aggregated)
        if topic not in self._read:
            return None
        return block if block.topic == topic.value else block.with_topic(topic.value)

    def _topic_of(self, signal: str, decided: bool, aggregated: bool) -> Topic:
        """Return the topic: undecided traces go to the sampler where there is one, metrics that are not aggregated to the aggregator."""
        if (decided and signal == "traces") or (aggregated and signal == "metrics"):
            return Topic(signal)
        return self._by_signal[signal]
