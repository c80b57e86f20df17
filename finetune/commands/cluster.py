"""``finetune cluster``: group images, and list labels that look wrong."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.options import Arguments, home_path, numeric
from finetune.counted import counted

if TYPE_CHECKING:
    from finetune.embeddings.clustering import Clusters
    from finetune.embeddings.embeddings import Embeddings
    from finetune.embeddings.label_errors import LabelErrors
    from finetune.plain import Json

ABOUT = """\
Group the images of a file of finetune embed, and list labels that their neighbours contradict. Writes a folder:

  clusters.csv    one row per image: its cluster, how typical it is, how near to another one
  summary.json    silhouette, and agreement with labels, if there are any: NMI, ARI, purity
  sheet.html      the most typical and the most doubtful images of each cluster, and the labels in doubt
  doubtful.csv    images whose neighbours have another label, the most doubtful first
  manifest.csv    all labelled images; train on it as it is (column label), or with the neighbours' labels where they agree:
                  finetune data=manifest data.path=DIR/manifest.csv data.label_column=suggested"""

_TYPICAL, _DOUBTFUL, _SHEET_CLUSTERS, _SHEET_DOUBTS = 10, 6, 60, 60


def run(argv: Sequence[str]) -> int:
    """Run ``finetune cluster`` and return the exit status."""
    parser = Arguments("cluster", ABOUT)
    parser.add_argument("embeddings", metavar="EMBEDDINGS")
    parser.add_argument("--method", choices=["kmeans", "hdbscan"], default="kmeans")
    parser.add_argument("--clusters", type=numeric(int), metavar="K", help="of kmeans (default: the best silhouette)")
    parser.add_argument(
        "--most-clusters", type=numeric(int, least=2), default=30, metavar="K", help="the largest number tried (30)"
    )
    parser.add_argument(
        "--least-members", type=numeric(int, least=2), default=5, metavar="N", help="of a cluster of hdbscan (5)"
    )
    parser.add_argument(
        "--neighbours", type=numeric(int, least=1), default=10, metavar="N", help="asked about each label (10)"
    )
    parser.add_argument("--metric", choices=["cosine", "l2"], default="cosine", help="cosine (default) or l2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=home_path, metavar="DIR", help="default: beside EMBEDDINGS, NAME-clusters")
    given = parser.read(argv)
    if given.clusters is not None and given.method != "kmeans":
        parser.error(f"--clusters {given.clusters}: belongs to --method kmeans; hdbscan finds the number itself")

    from finetune.embeddings.embeddings import errors_naming
    from finetune.embeddings.files import check_embeddings_file

    file = check_embeddings_file(given.embeddings)
    with errors_naming(file):
        return _cluster(given, file)


def _cluster(given: argparse.Namespace, file: Path) -> int:
    from finetune.commands.options import output_folder
    from finetune.embeddings.embeddings import Embeddings

    folder = output_folder(given.output, file.with_name(f"{file.stem}-clusters"))
    embeddings = Embeddings.load(file)

    from finetune.atomic_files import write_json, write_text
    from finetune.embeddings.cluster_tables import write_clusters, write_label_errors, write_relabelled
    from finetune.embeddings.clustering import cluster, quality
    from finetune.embeddings.label_errors import find_label_errors
    from finetune.plain import to_plain

    clusters = cluster(
        embeddings,
        method=given.method,
        clusters=given.clusters,
        most_clusters=given.most_clusters,
        least_members=given.least_members,
        metric=given.metric,
        seed=given.seed,
        show=print,
    )
    figures = quality(embeddings, clusters, metric=given.metric, seed=given.seed)
    doubts = None
    labelled = embeddings.labelled_rows()
    # labels of one class contradict none
    if len(labelled) > 2 and not embeddings.multi_label and len(set(embeddings.labels[labelled].tolist())) > 1:
        neighbours = min(given.neighbours, len(labelled) - 1)
        doubts = find_label_errors(embeddings, neighbours=neighbours, metric=given.metric)
        write_label_errors(folder / "doubtful.csv", embeddings, doubts)
        write_relabelled(folder / "manifest.csv", embeddings, doubts)
    write_clusters(folder / "clusters.csv", embeddings, clusters)
    summary: dict[str, Json] = {
        "method": given.method,
        "metric": given.metric,
        "seed": given.seed,
        **to_plain(figures),
        "sizes": [len(clusters.members(number)) for number in range(len(clusters))],
        "silhouette_by_count": {str(number): value for number, value in clusters.silhouette_by_count.items()},
        **({} if doubts is None else {"doubtful": doubts.likely}),
    }
    write_json(folder / "summary.json", summary)
    in_words = figures.in_words(outliers=given.method == "hdbscan")
    write_text(folder / "sheet.html", _sheet(embeddings, clusters, doubts, in_words, name=file.name))
    print(in_words)
    if doubts is not None:
        print(f"labels that their neighbours contradict: {doubts.likely} (doubtful.csv)")
    print(f"clusters: {folder}")
    return 0


def _sheet(
    embeddings: "Embeddings", clusters: "Clusters", doubts: "LabelErrors | None", in_words: str, *, name: str
) -> str:
    from finetune.commands.image_lookup import ImageLookup
    from finetune.embeddings.clustering import label_shares
    from finetune.report.contact_sheet import Group, Tile, contact_sheet

    groups = []
    if doubts is not None and doubts.likely:
        count = min(doubts.likely, _SHEET_DOUBTS)
        tiles = [
            Tile(
                path=embeddings.paths[row],
                lines=[f"is {embeddings.label(row)}", f"neighbours say {embeddings.classes[suggested]}"],
                mark="unsure",
            )
            for row, suggested in zip(doubts.rows[:count].tolist(), doubts.suggested[:count], strict=True)
        ]
        title = f"Labels that their neighbours contradict: {doubts.likely}"
        groups.append(Group(title=title, tiles=tiles, more=doubts.likely - count))
    for number in range(min(len(clusters), _SHEET_CLUSTERS)):
        members, unsure = clusters.members(number), clusters.doubtful(number)
        fractions = label_shares(embeddings, members)[:3] if not embeddings.multi_label else []
        labels = "; labels " + ", ".join(f"{label} {share:.0%}" for label, share in fractions) if fractions else ""
        tiles = [Tile(path=embeddings.paths[row], lines=[embeddings.label(row)]) for row in members[:_TYPICAL].tolist()]
        tiles += [
            Tile(path=embeddings.paths[row], lines=[embeddings.label(row)], mark="unsure")
            for row in unsure[:_DOUBTFUL].tolist()
            if row not in members[:_TYPICAL]
        ]
        groups.append(Group(title=f"Cluster {number}: {counted(len(members), 'image')}{labels}", tiles=tiles))
    facts = [f"{counted(len(embeddings), 'image')} in {in_words}."]
    facts += [f"The {_SHEET_CLUSTERS} largest clusters are shown."] if len(clusters) > _SHEET_CLUSTERS else []
    return contact_sheet(
        title=f"Clusters of {name}", facts=facts, groups=groups, pictures=ImageLookup(embeddings.metadata)
    )
