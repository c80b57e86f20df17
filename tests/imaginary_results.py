"""Results of a run that never was, for tests of what is made from them."""

from finetune.results import BackboneOrigin, DataFacts, Imbalance, PhaseResult, Results, Seconds, SplitMetrics


def imaginary_phase(name: str, **best: float) -> PhaseResult:
    """A phase of one epoch with these monitored metrics, ``val_acc`` for ``val/acc``."""
    return PhaseResult(
        name=name,
        train=("head",),
        frozen=(),
        epochs=1,
        steps=1,
        restored="best",
        weights="raw",
        best_epoch=0,
        best={key.replace("_", "/"): value for key, value in best.items()},
        rates={},
    )


def imaginary_metrics(**confusion: list[list[int]]) -> SplitMetrics:
    """Metrics with this ``confusion``, or these ``confusion_cells``."""
    classes = len(confusion.get("confusion", ()))
    recall = (0.8,) * classes
    return SplitMetrics(
        acc=0.9,
        ece=0.0,
        f1_macro=0.9,
        recall=recall,
        loss=0.1,
        confusion=confusion.get("confusion"),
        confusion_cells=confusion.get("confusion_cells"),
    )


def imaginary_results(confusion: list[list[int]]) -> Results:
    """Results with this confusion matrix on the test images."""
    metrics = imaginary_metrics(confusion=confusion)
    counts = {split: (5,) * len(confusion) for split in ("train", "val", "test")}
    return Results(
        test=metrics,
        val=metrics,
        phases=(),
        seconds=Seconds(training=1.0, phases={}),
        data=DataFacts(fingerprint="", classes=(), counts=counts, skipped=0, max_pixels=1, high_depth="full"),
        versions={},
        backbone=BackboneOrigin(source="timm", name="resnet10t", weights="none"),
        schedule="full",
        imbalance=Imbalance(loss="cross_entropy", class_weights="none", sampling="each image once"),
        precision="32-true",
        compiled=False,
        seed=0,
        weights_hash="",
        threads=1,
    )
