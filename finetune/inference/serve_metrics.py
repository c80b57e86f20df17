"""Counters of a server, in the text format that Prometheus reads (exposition format 0.0.4)."""

from collections import Counter, deque

# upper bounds in seconds
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PREFIX = "finetune"
# images of the share that is like the training images: enough that a few odd ones do not move it by a point
WINDOW = 1000


class Metrics:
    """Counters of one process since its start."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.images: Counter[str] = Counter({"classified": 0, "unreadable": 0})
        self.seconds = 0.0
        self.unknown = 0
        self._known: deque[bool] = deque(maxlen=WINDOW)
        self._within: Counter[float] = Counter()

    def request(self, status: int, seconds: float, *, predict: bool) -> None:
        """Count an answered request; times are recorded for predictions only."""
        self.requests[status] += 1
        if predict:
            self.seconds += seconds
            self._within[next((bound for bound in BUCKETS if seconds <= bound), float("inf"))] += 1

    def classified(self, known: bool) -> None:
        """Count an image of a model that tells whether it is like the training images."""
        self.unknown += not known
        self._known.append(known)

    def text(self, *, waiting: int, batches: int) -> str:
        """Return the metrics page.

        Args:
            waiting: Number of images accepted but not yet answered.
            batches: Number of batches computed.
        """
        lines = [f"# TYPE {_PREFIX}_requests_total counter"]
        lines += [f'{_PREFIX}_requests_total{{status="{s}"}} {count}' for s, count in sorted(self.requests.items())]
        lines.append(f"# TYPE {_PREFIX}_images_total counter")
        lines += [f'{_PREFIX}_images_total{{outcome="{name}"}} {count}' for name, count in self.images.items()]
        if self._known:
            lines += [
                f"# TYPE {_PREFIX}_unknown_images_total counter",
                f"{_PREFIX}_unknown_images_total {self.unknown}",
            ]
            lines.append(f"# HELP {_PREFIX}_known_share of the last {WINDOW} images, those like the training images")
            share = sum(self._known) / len(self._known)
            lines += [f"# TYPE {_PREFIX}_known_share gauge", f"{_PREFIX}_known_share {share:.6f}"]
        lines += [f"# TYPE {_PREFIX}_batches_total counter", f"{_PREFIX}_batches_total {batches}"]
        lines += [f"# TYPE {_PREFIX}_waiting_images gauge", f"{_PREFIX}_waiting_images {waiting}"]
        name, total = f"{_PREFIX}_predict_seconds", 0
        lines.append(f"# TYPE {name} histogram")
        for bound in BUCKETS:
            total += self._within[bound]
            lines.append(f'{name}_bucket{{le="{bound:g}"}} {total}')
        total += self._within[float("inf")]
        lines += [f'{name}_bucket{{le="+Inf"}} {total}', f"{name}_sum {self.seconds:.6f}", f"{name}_count {total}"]
        return "\n".join(lines) + "\n"
