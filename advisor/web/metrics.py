"""Metrics for Prometheus: trials, jobs, slots and answers, read of the database when it is asked. No label has a secret."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from advisor.daemon.job import STATES
from advisor.storage.counts import Counts
from advisor.storage.roster import STATES as SLOT_STATES
from advisor.version import __version__
from advisor.web.served import Served

#: What the text of an answer is, for the header.
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

#: Bounds that requests are counted between, seconds: an answer is to take ten milliseconds at most.
_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The metrics of a daemon's database."""

    def __init__(self, served: Served) -> None:
        """Read what a daemon is answered from."""
        self._served, self._counts = served, Counts(served.store)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._requests = Histogram(
            "advisor_request_seconds",
            "Seconds that this daemon's requests took until their answers began, by route",
            ["route"],
            buckets=_BOUNDS_S,
            registry=self._registry,
        )

    def count(self, route: str, took_s: float) -> None:
        """Count a request: the template of its route, and how many seconds it took."""
        self._requests.labels(route).observe(took_s)

    def text(self) -> bytes:
        """Return all of them in Prometheus' words. Raises StoreError."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Describe nothing: registering asks for no database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield each metric, as it is now."""
        trials = CounterMetricFamily("advisor_trials", "Trials, by outcome; running ones too", labels=["outcome"])
        for outcome, count in sorted(self._counts.trials().items()):
            trials.add_metric([outcome], count)
        yield trials
        yield from self._jobs()
        yield from self._slots()
        if (age_s := self._counts.newest_answer_age_s()) is not None:
            words = "Seconds since the newest recommendation of any study was made"
            yield GaugeMetricFamily("advisor_newest_recommendation_age_seconds", words, value=age_s)
        about = GaugeMetricFamily("advisor_build_info", "The version that serves", labels=["version"])
        about.add_metric([__version__], 1)
        yield about

    def _jobs(self) -> Iterator[Metric]:
        counts = self._served.jobs.counts()
        jobs = GaugeMetricFamily("advisor_jobs", "Jobs, by state", labels=["state"])
        for state in STATES:
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        depth = GaugeMetricFamily("advisor_queue_depth", "Jobs that wait, by kind of device", labels=["device_class"])
        for device_class in sorted({slot.device_class for slot in self._served.roster.slots()}):
            depth.add_metric([device_class], self._served.jobs.waiting(device_class))
        yield depth

    def _slots(self) -> Iterator[Metric]:
        found = self._served.roster.slots()
        spent = CounterMetricFamily(
            "advisor_gpu_seconds", "Seconds that a slot has spent on jobs, a CPU's too", labels=["slot", "host"]
        )
        for slot in found:
            spent.add_metric([slot.name, slot.host], slot.busy_s)
        yield spent
        states = Counter(slot.payload["state"] for slot in found)
        slots = GaugeMetricFamily("advisor_slots", "Slots, by state", labels=["state"])
        for state in SLOT_STATES:
            slots.add_metric([state], states[state])
        yield slots
