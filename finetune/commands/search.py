"""``finetune search``: nearest images, near-duplicates, and how well neighbours agree with labels."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.options import TRUST, Arguments, home_path, numeric
from finetune.counted import counted
from finetune.errors import UserError
from finetune.runners.bundle_modules import modules_of

if TYPE_CHECKING:
    from finetune.embeddings.embeddings import Embeddings, Rows
    from finetune.embeddings.extractor import FeatureExtractor
    from finetune.embeddings.queries import Queries
    from finetune.embeddings.search import Distances
    from finetune.embeddings.search_hits import SearchHit

ABOUT = """\
Find similar images in a file of finetune embed.

  finetune search EMBEDDINGS QUERY... -k 5         the nearest images to files, folders, patterns, lists or stored names
  finetune search EMBEDDINGS QUERY... --radius R   all images within a distance
  finetune search EMBEDDINGS --radius R            near-duplicates among the embeddings themselves, in groups
  finetune search EMBEDDINGS --quality             recall at k and mean average precision, by the labels

Distances are 1 - cosine (--metric cosine) or Euclidean (--metric l2). The search is exact. Queries that the file lacks
are embedded by the model that made it, with the same transforms."""

# most groups on a page
_SHEET_GROUPS = 200


def run(argv: Sequence[str]) -> int:
    """Run ``finetune search`` and return the exit status."""
    parser = Arguments("search", ABOUT)
    parser.add_argument("embeddings", metavar="EMBEDDINGS")
    parser.add_argument("queries", metavar="QUERY", nargs="*")
    parser.add_argument("-k", type=numeric(int, least=1), default=5, metavar="K", help="neighbours of each query (5)")
    parser.add_argument("--radius", type=numeric(float, least=0), metavar="R", help="all within this distance instead")
    parser.add_argument("--quality", action="store_true", help="how well neighbours agree with labels")
    parser.add_argument("--split", choices=["train", "val", "test"], help="queries of --quality (test)")
    parser.add_argument("--metric", choices=["cosine", "l2"], default="cosine", help="cosine (default) or l2")
    parser.add_argument("--engine", choices=["numpy", "faiss"], default="numpy")
    parser.add_argument("--index", default="Flat", metavar="FACTORY", help="of faiss: Flat is exact, HNSW32 is not")
    parser.add_argument("--model", metavar="RUN", help="where the run is now, if it was moved")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    parser.add_argument("--output", type=home_path, metavar="FILE", help="found.csv or .json; .json for --quality")
    parser.add_argument("--sheet", type=home_path, metavar="FILE", help="a page of pictures, .html")
    given = parser.read(argv)
    _check(given, parser)

    from finetune.embeddings.embeddings import errors_naming
    from finetune.embeddings.files import check_embeddings_file
    from finetune.embeddings.search_hits import check_hits_output

    check_hits_output(given.output)
    check_embeddings_file(given.embeddings)
    with errors_naming(given.embeddings):
        return _search(given)


def _search(given: argparse.Namespace) -> int:
    from finetune.embeddings.embeddings import Embeddings
    from finetune.embeddings.search_hits import format_hits, write_hits

    embeddings = Embeddings.load(given.embeddings)
    if given.quality:
        return _quality(given, embeddings)
    queries, rows = _neighbours(given, embeddings) if given.queries else (None, _duplicates(given, embeddings))
    print(format_hits(rows, most=given.k if queries is not None else 10))
    if queries is None:
        groups = len({row.query for row in rows})
        print(f"{counted(groups, 'group')} of near-duplicates, {counted(len(rows), 'image')} of {len(embeddings):,}")
    for path, reason in queries.unreadable if queries is not None else ():
        print(f"unreadable: {path}: {reason}")
    if given.output:
        write_hits(rows, given.output)
        print(f"{counted(len(rows), 'row')}: {given.output}")
    if given.sheet:
        _write_sheet(given, embeddings, queries, rows)
    return 0


def _check(given: argparse.Namespace, parser: Arguments) -> None:
    if given.sheet and given.sheet.suffix != ".html":
        raise UserError(f"--sheet {given.sheet}: must end in .html.")
    if given.quality and (given.queries or given.radius is not None or given.sheet):
        parser.error("--quality takes no QUERY, --radius or --sheet")
    if given.quality and given.output and given.output.suffix != ".json":
        parser.error(f"--output {given.output}: --quality writes .json")
    if not given.queries and given.radius is None and not given.quality:
        parser.error("needs a QUERY, --radius for near-duplicates, or --quality")
    if given.engine == "faiss" and (given.radius is not None or given.quality):
        parser.error("--engine faiss: finds only nearest neighbours, without --radius or --quality")
    if given.index != "Flat" and given.engine != "faiss":
        parser.error(f"--index {given.index}: belongs to --engine faiss")


def _quality(given: argparse.Namespace, embeddings: "Embeddings") -> int:
    from finetune.atomic_files import write_json
    from finetune.embeddings.retrieval import queries_and_rest, retrieval_quality

    embeddings.require_labels("--quality")
    queries, among, words = queries_and_rest(embeddings, given.split)
    quality = retrieval_quality(embeddings, queries=queries, among=among, metric=given.metric)
    values = {**{f"recall@{k}": value for k, value in quality.recall.items()}, "map": quality.map}
    figures = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    print(f"{words}: {figures}")
    alone = f", {quality.alone} more have no other image of their class" if quality.alone else ""
    print(f"{counted(quality.queries, 'query', 'queries')} among {counted(quality.among, 'image')}{alone}")
    if given.output:
        write_json(given.output, quality.to_plain())
    return 0


def _neighbours(given: argparse.Namespace, embeddings: "Embeddings") -> "tuple[Queries, list[SearchHit]]":
    from finetune.embeddings.queries import QueryReader
    from finetune.embeddings.search import EXACT, FaissIndex, nearest, within

    def model() -> "FeatureExtractor":
        from finetune.embeddings.extractor import restore_extractor

        recorded = embeddings.metadata.get("model")
        place = given.model or (recorded.get("run") if isinstance(recorded, dict) else None)
        modules = modules_of(place, trust=True) if given.trust and place is not None else None
        return restore_extractor(embeddings.metadata, run=given.model, modules=modules)

    reader = QueryReader(embeddings, home_path(given.embeddings), model)
    queries = reader.read(reader.names(given.queries))
    if given.radius is not None:
        pairs = within(embeddings.features, queries.features, given.radius, metric=given.metric)
        hits = [
            (rows[rows != own], distances[rows != own])
            for own, (rows, distances) in zip(queries.rows, pairs, strict=True)
        ]
    elif given.engine == "faiss":
        if given.index != EXACT:
            print(f"--index {given.index}: is not exact; neighbours may be missing")
        index = FaissIndex(embeddings.features, metric=given.metric, factory=given.index)
        neighbours = index.nearest(queries.features, given.k, leave_out=queries.rows)
        hits = list(zip(neighbours.rows, neighbours.distances, strict=True))
    else:
        neighbours = nearest(
            embeddings.features, queries.features, given.k, metric=given.metric, leave_out=queries.rows
        )
        hits = list(zip(neighbours.rows, neighbours.distances, strict=True))
    named = zip(queries.paths, hits, strict=True)
    return queries, [row for query, (rows, distances) in named for row in _found(embeddings, query, rows, distances)]


def _duplicates(given: argparse.Namespace, embeddings: "Embeddings") -> "list[SearchHit]":
    from finetune.embeddings.near_duplicates import near_duplicates

    groups = near_duplicates(embeddings.features, given.radius, metric=given.metric)
    named = enumerate(groups, start=1)
    return [row for at, group in named for row in _found(embeddings, f"group {at}", group.rows, group.distances)]


def _found(embeddings: "Embeddings", query: str, rows: "Rows", distances: "Distances") -> "list[SearchHit]":
    from finetune.embeddings.search_hits import SearchHit

    return [
        SearchHit(
            query=query,
            rank=rank,
            path=embeddings.paths[int(row)],
            label=embeddings.label(int(row)),
            split=embeddings.split(int(row)),
            distance=float(distance),
        )
        for rank, (row, distance) in enumerate(zip(rows, distances, strict=True), start=1)
        if row >= 0
    ]


def _write_sheet(
    given: argparse.Namespace, embeddings: "Embeddings", queries: "Queries | None", rows: "Sequence[SearchHit]"
) -> None:
    from finetune.atomic_files import write_text
    from finetune.commands.image_lookup import ImageLookup
    from finetune.report.contact_sheet import Group, Tile, contact_sheet

    most = given.k if given.radius is None else 24
    by_query: dict[str, list[SearchHit]] = {path: [] for path in queries.paths} if queries is not None else {}
    for row in rows:
        by_query.setdefault(row.query, []).append(row)
    labels: dict[str, str] = {}
    if queries is not None:
        own = zip(queries.paths, queries.rows.tolist(), strict=True)
        labels = {path: embeddings.label(row) for path, row in own if row >= 0}
    groups = []
    for query, hits in list(by_query.items())[:_SHEET_GROUPS]:
        label = labels.get(query, "")
        first = [Tile(path=query, lines=[label] if label else [], mark="asked")] if queries is not None else []
        tiles = [
            Tile(
                path=row.path,
                lines=[" ".join(filter(None, (row.label, row.split))), f"{row.distance:.4f}"],
                mark="" if not label else "right" if row.label == label else "wrong",
            )
            for row in hits[:most]
        ]
        title = Path(query).name if queries is not None else query
        groups.append(Group(title=title, tiles=[*first, *tiles], more=len(hits) - len(tiles)))
    more = len(by_query) - len(groups)
    facts = [
        f"{counted(len(embeddings), 'image')}; distance: {'1 - cosine' if given.metric == 'cosine' else 'Euclidean'}."
    ]
    facts += [f"The first {len(groups)} of {len(by_query)} are shown."] if more else []
    title = f"Neighbours in {Path(given.embeddings).name}" if queries is not None else "Near-duplicates"
    page = contact_sheet(title=title, facts=facts, groups=groups, pictures=ImageLookup(embeddings.metadata))
    write_text(given.sheet, page)
    print(f"page: {given.sheet}")
