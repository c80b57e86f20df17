"""The validation metrics that may choose an epoch, and which values of them are better."""

# built-in metrics, and those that only data with several labels per image has
BUILT_IN = ("val/acc", "val/f1_macro", "val/loss", "val/ece")
OF_SEVERAL_LABELS = ("val/f1_micro", "val/map")


def minimizes(monitor: str, *, higher_is_better: bool | None = None) -> bool:
    """Return whether smaller values of a metric are better.

    Args:
        monitor: Name of the metric.
        higher_is_better: What a user-supplied metric says of itself, as torchmetrics' do; None if it says nothing, or for a
            built-in metric.

    >>> minimizes("val/loss"), minimizes("val/acc"), minimizes("val/mae", higher_is_better=False)
    (True, False, True)
    """
    return monitor.endswith(("loss", "ece")) if higher_is_better is None else not higher_is_better


def built_in(*, multi_label: bool) -> tuple[str, ...]:
    """Return the names of the built-in metrics of a data set, with one or with several labels per image."""
    return (*BUILT_IN, *(OF_SEVERAL_LABELS if multi_label else ()))
