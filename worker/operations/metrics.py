"""Metrics for Prometheus: a registry for each worker, and the page on which it is scraped.

What each means is in deploy/grafana/README.md. The values of labels are bounded: targets are those of TEAMTURN_TEAMS,
models the first fifty, everything else an enum's, and what is none of them is `other`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from schemas.errors import DEAD_LETTERED, ErrorCode
from schemas.ids import Target
from schemas.replies import RunStatus
from worker.executors.model_calls import ModelCall
from worker.measures import CommitRefusal, Measures, Tried
from worker.operations.histograms import Histograms
from worker.operations.probes import Answer

OTHER: Final = "other"
MOST_MODELS: Final = 50
"""A provider can name its models anew with each response."""
_LONGEST_MODEL_CHARACTERS: Final = 100

_EXECUTION: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_WAIT: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600)
_SERVERS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LAG: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Metrics(Measures):
    """What has happened in one worker, told to Prometheus. Used in one event loop."""

    def __init__(self, targets: Collection[Target]) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._targets = {target: str(target) for target in targets}
        self._models: set[str] = set()
        self._turns = _Counters(
            "teamturn_turns", "Requests answered, refused ones included.", ("target", "status", "code"), registry
        )
        for name in self._targets.values():
            self._turns.of(name, RunStatus.COMPLETED.value, "none")
        self._execution = Histograms(
            "teamturn_turn_seconds", "Execution of a turn.", registry, buckets=_EXECUTION, label="target"
        )
        self._queue = Histograms(
            "teamturn_queue_seconds", "From the request's publishing to its start.", registry, buckets=_WAIT
        ).of()
        self._claim = Histograms("teamturn_claim_seconds", "One claim.", registry, buckets=_SERVERS).of()
        self._commit = Histograms("teamturn_commit_seconds", "One commit.", registry, buckets=_SERVERS).of()
        self._reply = Histograms(
            "teamturn_reply_seconds", "From the stored answer to its confirm.", registry, buckets=_SERVERS
        ).of()
        self._tokens = _Counters(
            "teamturn_tokens", "Tokens that models counted.", ("target", "model", "direction"), registry
        )
        self._cost = _Counters("teamturn_cost_dollars", "What they cost in US dollars.", ("target", "model"), registry)
        self._redeliveries = Counter("teamturn_redeliveries", "Requests delivered before.", registry=registry)
        self._replays = Counter("teamturn_replays", "Requests answered with a stored reply.", registry=registry)
        self._resumed = Counter("teamturn_resumed_steps", "Steps given from a journal.", registry=registry)
        self._refused = _Counters(
            "teamturn_commits_refused", "Commits that stored nothing.", ("reason",), registry, CommitRefusal
        )
        self._retries = _Counters("teamturn_retries", "Tries beyond the first.", ("what",), registry, Tried)
        self._dead = _Counters(
            "teamturn_dead_letters",
            "Messages put in the dead-letter queue.",
            ("code",),
            registry,
            [*DEAD_LETTERED, ErrorCode.ATTEMPTS_EXHAUSTED],
        )
        self._rows = Histograms(
            "teamturn_batch_rows", "Rows in one statement.", registry, buckets=_ROWS, label="statement"
        )
        self._lag = Histograms("teamturn_event_loop_lag_seconds", "How late a timer came.", registry, buckets=_LAG).of()

    def page(self) -> Answer:
        """Answer a scrape, in Prometheus's text format."""
        return Answer(200, generate_latest(_WithoutTimes(self.registry)), CONTENT_TYPE_PLAIN_0_0_4)

    @override
    def redelivered(self) -> None:
        self._redeliveries.inc()

    @override
    def answered(self, target: Target, status: RunStatus, code: ErrorCode | None) -> None:
        self._turns.of(self._name(target), status.value, "none" if code is None else code.value).inc()

    @override
    def executed(self, target: Target, *, seconds: float, queued_seconds: float) -> None:
        self._execution.of(self._name(target)).observe(seconds)
        self._queue.observe(queued_seconds)

    @override
    def claimed(self, seconds: float) -> None:
        self._claim.observe(seconds)

    @override
    def committed(self, seconds: float) -> None:
        self._commit.observe(seconds)

    @override
    def replied(self, seconds: float) -> None:
        self._reply.observe(seconds)

    @override
    def replayed(self) -> None:
        self._replays.inc()

    @override
    def steps_resumed(self, steps: int) -> None:
        self._resumed.inc(steps)

    @override
    def commit_refused(self, reason: CommitRefusal) -> None:
        self._refused.of(reason.value).inc()

    @override
    def retried(self, what: Tried) -> None:
        self._retries.of(what.value).inc()

    @override
    def dead_lettered(self, code: ErrorCode) -> None:
        self._dead.of(code.value).inc()

    @override
    def batched(self, statement: str, rows: int) -> None:
        self._rows.of(statement).observe(rows)

    @override
    def model_called(self, target: Target, call: ModelCall) -> None:
        name, model = self._name(target), self._model(call.model)
        self._tokens.of(name, model, "input").inc(max(call.input_tokens, 0))
        self._tokens.of(name, model, "output").inc(max(call.output_tokens, 0))
        if call.dollars is not None:
            self._cost.of(name, model).inc(max(call.dollars, 0.0))

    @override
    def loop_lagged(self, seconds: float) -> None:
        self._lag.observe(seconds)

    def _name(self, target: Target) -> str:
        return self._targets.get(target, OTHER)

    def _model(self, named: str | None) -> str:
        if named in self._models:
            return named
        if named is None or len(self._models) >= MOST_MODELS or not _is_name(named):
            return OTHER
        self._models.add(named)
        return named


def _is_name(named: str) -> bool:
    """Whether a provider's word for its model can be one: a lone surrogate in it would break the page."""
    return len(named) <= _LONGEST_MODEL_CHARACTERS and named.isprintable()


class _Counters:
    """A counter with labels, each of whose children is looked up once."""

    def __init__(
        self,
        name: str,
        meaning: str,
        labels: tuple[str, ...],
        registry: CollectorRegistry,
        known: Iterable[str] = (),
    ) -> None:
        """Those of the known values begin at 0: a first fault is then an increase."""
        self._counter = Counter(name, meaning, labels, registry=registry)
        self._children: dict[tuple[str, ...], Counter] = {}
        for value in known:
            self.of(str(value))

    def of(self, *values: str) -> Counter:
        """Return the one with these values of the labels."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._counter.labels(*values)
        return child


class _WithoutTimes(CollectorRegistry):
    """A registry without the times at which its series were made, which would be as many series again."""

    def __init__(self, registry: Collector) -> None:
        super().__init__()
        self._of = registry

    @override
    def collect(self) -> Iterator[Metric]:
        for metric in self._of.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
