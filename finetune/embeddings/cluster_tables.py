"""Tables that ``finetune cluster`` writes: clusters, doubtful labels, and manifests to train from."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finetune.atomic_files import write_text
from finetune.embeddings.clustering import Clusters
from finetune.embeddings.embeddings import Embeddings
from finetune.embeddings.label_errors import LabelErrors
from finetune.file_schema import CLUSTERS, DOUBTFUL, MANIFEST

# an image is relabelled in manifest.csv if its doubt is above this
LIKELY = 0.5


def write_clusters(path: Path, embeddings: Embeddings, clusters: Clusters) -> None:
    """Write one row per image, in the order of the embeddings."""
    _write(
        path,
        CLUSTERS,
        (
            [
                *_image(embeddings, row),
                int(clusters.of_row[row]),
                f"{clusters.distances[row]:.6g}",
                f"{clusters.margins[row]:.6g}",
            ]
            for row in range(len(embeddings))
        ),
    )


def write_label_errors(path: Path, embeddings: Embeddings, doubts: LabelErrors) -> None:
    """Write the images whose label most neighbours contradict, most doubtful first; the table is also a manifest."""
    _write(
        path,
        DOUBTFUL,
        (
            [
                *_image(embeddings, int(row)),
                embeddings.classes[suggested],
                f"{doubt:.6f}",
                int(agreeing),
                doubts.neighbours,
            ]
            for row, suggested, doubt, agreeing in zip(
                doubts.rows, doubts.suggested, doubts.doubts, doubts.agreeing, strict=True
            )
            if doubt > 0
        ),
    )


def write_relabelled(path: Path, embeddings: Embeddings, doubts: LabelErrors) -> None:
    """Write all labelled images in the order of the embeddings; a doubtful label is replaced by the neighbours' label."""
    other = {
        int(row): embeddings.classes[suggested]
        for row, suggested, doubt in zip(doubts.rows, doubts.suggested, doubts.doubts, strict=True)
        if doubt > LIKELY
    }
    rows = embeddings.labelled_rows().tolist()
    _write(path, MANIFEST, ([*_image(embeddings, row), other.get(row, embeddings.label(row))] for row in rows))


def _image(embeddings: Embeddings, row: int) -> list[Any]:
    # in the form of finetune.data.manifest: names are not escaped, because the file is read again
    return [embeddings.paths[row], embeddings.label(row), embeddings.split(row)]


def _write(path: Path, columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())
