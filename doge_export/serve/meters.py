"""What is counted for those who watch the server, in the format of Prometheus.

The names that begin with `vllm:` are those that routers and dashboards know already.
"""

__all__ = ["CONTENT_TYPE", "Meters", "ModelMeters"]

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from doge_export.runtime import Event
from doge_export.serve.contracts import snapshot
from doge_export.serve.registry import State
from doge_export.serve.requests import TextRequest

_FIRST = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
_BETWEEN = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_WHOLE = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 240, 480, 960)
_ENDS = {"eos": "stop", "stop": "stop", "length": "length"}


_LABELS = ("model_name",)


class Meters:
    """The server's counters. `states` says what there is of each model at the moment."""

    def __init__(self, version: str, states: Callable[[], Mapping[str, State]]) -> None:
        registry = self._registry = CollectorRegistry()

        def counter(name: str, meaning: str, *more: str) -> Counter:
            return Counter(name, meaning, (*_LABELS, *more), registry=registry)

        def histogram(name: str, meaning: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, meaning, _LABELS, registry=registry, buckets=buckets)

        self._prompt = counter("vllm:prompt_tokens", "Tokens of prompts that were read to their end.")
        self._generated = counter("vllm:generation_tokens", "New tokens.")
        self._first = histogram(
            "vllm:time_to_first_token_seconds", "From the body's end to the first token.", _FIRST
        )
        self._between = histogram(
            "vllm:inter_token_latency_seconds", "From a choice's token to its next one.", _BETWEEN
        )
        self._whole = histogram(
            "vllm:e2e_request_latency_seconds", "From the body's end to the last token.", _WHOLE
        )
        self._ended = counter(
            "vllm:request_success", "Choices that ended, by their reason.", "finished_reason"
        )
        self._cut = counter("doge_export_generations_cut", "Generations that an error or their client ended.")
        self._pings = counter("doge_export_stream_pings", "Comments sent into streams that had to wait.")
        info = Gauge("doge_export_info", "1.", (*_LABELS, "version"), registry=registry)
        self._responses = Counter(
            "doge_export_http_responses",
            "Responses, by route and status.",
            ("path", "status"),
            registry=registry,
        )
        self._models = {name: self._labelled(name) for name in states()}
        for name in self._models:
            info.labels(name, version).set(1)
        registry.register(_Now(states))

    def _labelled(self, model: str) -> "ModelMeters":
        return ModelMeters(
            prompt=self._prompt.labels(model),
            generated=self._generated.labels(model),
            first=self._first.labels(model),
            between=self._between.labels(model),
            whole=self._whole.labels(model),
            ended={reason: self._ended.labels(model, said) for reason, said in _ENDS.items()},
            cut=self._cut.labels(model),
            pings=self._pings.labels(model),
        )

    def of(self, model: str) -> "ModelMeters":
        """Those of one model, by its own name."""
        return self._models[model]

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    def responded(self, path: str, status: int) -> None:
        """Count a response; `path` is that of the route, not what the client wrote."""
        self._responses.labels(path, status).inc()


@dataclass(frozen=True)
class ModelMeters:
    """The counters of one model."""

    prompt: Counter
    generated: Counter
    first: Histogram
    between: Histogram
    whole: Histogram
    ended: Mapping[str, Counter]
    cut: Counter
    pings: Counter

    def pinged(self) -> None:
        """Count a comment in a stream."""
        self.pings.inc()

    async def watched(
        self, request: TextRequest, arrived: float, events: AsyncGenerator[list[Event]]
    ) -> AsyncGenerator[list[Event]]:
        """Yield `events` and count them. `arrived`: when the request was there, by `time.perf_counter`."""
        last: dict[int, float] = {}
        whole = False
        try:
            async for batch in events:
                now = time.perf_counter()
                if not last:
                    self.first.observe(now - arrived)
                    self.prompt.inc(request.prompt_tokens)
                self.generated.inc(len(batch))
                self._gaps(batch, now, last)
                yield batch
            whole = True
        finally:
            await events.aclose()
            if whole:
                self.whole.observe(time.perf_counter() - arrived)
            else:
                self.cut.inc()

    def _gaps(self, batch: list[Event], now: float, last: dict[int, float]) -> None:
        counts: dict[int, int] = {}
        for event in batch:
            counts[event.row] = counts.get(event.row, 0) + 1
            if event.finish_reason is not None:
                self.ended[event.finish_reason].inc()
        for row, count in counts.items():
            # Tokens that come together share the time since the one before; with the first one they came at
            # once.
            gap = (now - last[row]) / count if row in last else 0.0
            for _ in range(count - (row not in last)):
                self.between.observe(gap)
            last[row] = now


class _Now(Collector):
    """What is so at the moment when it is asked for."""

    def __init__(self, states: Callable[[], Mapping[str, State]]) -> None:
        self._states = states

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        states = self._states()
        loaded = GaugeMetricFamily("doge_export_model_loaded", "1 where it is in memory.", labels=_LABELS)
        loads = CounterMetricFamily("doge_export_model_loads", "Times that it was loaded.", labels=_LABELS)
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for model, state in states.items():
            loaded.add_metric((model,), state.service is not None)
            loads.add_metric((model,), state.loads)
            for kind, name, meaning, value in _figures(
                _NOTHING if state.service is None else snapshot(state.service)
            ):
                family = families.setdefault(name, kind(name, meaning, labels=_LABELS))
                family.add_metric((model,), value)
        yield from (loaded, loads, *families.values())


_NOTHING: Mapping[str, Any] = {"running": 0, "waiting": 0, "slots": ()}  # of a model that is not loaded
_Kind = type[GaugeMetricFamily] | type[CounterMetricFamily]


def _figures(now: Mapping[str, Any] | None) -> Iterator[tuple[_Kind, str, str, float]]:
    """Yield the kind, name, meaning and value of what a service's snapshot says."""
    if now is None:
        return
    slots = now["slots"]
    taken = sum(bool(slot["is_processing"]) for slot in slots)
    for name, meaning, value in (
        ("vllm:num_requests_running", "Requests that generate.", now["running"]),
        ("vllm:num_requests_waiting", "Requests that wait for a slot.", now["waiting"]),
        (
            "vllm:kv_cache_usage_perc",
            "Share of slots in use, 0 to 1: each has a cache of its own.",
            taken / len(slots) if slots else 0,
        ),
        ("doge_export_slots", "Slots.", len(slots)),
        ("doge_export_pool_bytes", "Bytes of the slots' caches.", now.get("pool_bytes", 0)),
        ("doge_export_prefix_bytes", "Bytes of kept beginnings of texts.", now.get("prefix_bytes", 0)),
    ):
        yield GaugeMetricFamily, name, meaning, value
    for name, meaning, value in (
        ("doge_export_prefix_lookups", "Texts whose beginning was looked for.", "prefix_lookups"),
        ("doge_export_prefix_hits", "Texts of which one was found.", "prefix_hits"),
        ("doge_export_prefix_tokens", "Tokens that were not read again.", "prefix_tokens"),
    ):
        yield CounterMetricFamily, name, meaning, now.get(value, 0)
