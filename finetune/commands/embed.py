"""``finetune embed``: compute image features with a run, a bundle or a pretrained backbone."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.options import TRUST, Arguments, home_path
from finetune.config import check_overrides, compose
from finetune.config.schema import Config, DataConfig
from finetune.counted import counted
from finetune.errors import UserError
from finetune.runners.bundle_modules import modules_of

if TYPE_CHECKING:
    from finetune.data.image_source import Source
    from finetune.embeddings.extractor import FeatureExtractor
    from finetune.embeddings.image_records import ImageRecords
    from finetune.plain import Json

ABOUT = """\
Write features of images to a file that finetune search, cluster and classify read: .npz or .parquet by the suffix of --output.

  finetune embed RUN IMAGES... --output FILE              files, folders, patterns, lists, or - (as finetune predict)
  finetune embed RUN [data=... key=value] --output FILE   a data set with its labels and splits; alone, the run's own
  finetune embed backbone=resnet50 [key=value] IMAGES... --output FILE   a pretrained network, never trained here

If FILE exists, only images whose content it lacks are computed, and rows whose image is no longer given are removed.
If interrupted, run the same command to continue. Unreadable images are left out and listed beside FILE."""

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


@dataclass(frozen=True)
class EmbedArguments:
    """The words of the command line, sorted by kind."""

    run: str | None
    images: list[str]
    overrides: list[str]


def split_words(words: Sequence[str]) -> EmbedArguments:
    """Separate RUN, IMAGES and key=value; a word that names an existing file is an image even if it looks like key=value.

    Raises:
        UserError: There is neither a run nor a backbone, or there are both images and a data set.

    >>> split_words(["my_run", "a.png", "data=digits"]) # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    finetune.errors.UserError: finetune embed: takes images or a data set. Both are given: a.png and data=digits...
    >>> split_words(["backbone=resnet50", "photos"])
    EmbedArguments(run=None, images=['photos'], overrides=['backbone=resnet50'])
    """
    overrides = [word for word in words if _OVERRIDE.match(word) and not os.path.exists(word)]
    others = [word for word in words if word not in overrides]
    run = None
    if not any(word.startswith(("backbone=", "backbone.")) for word in overrides):
        if not others:
            raise UserError("finetune embed: needs a RUN, or a network as backbone=NAME.")
        run = others.pop(0)
    data = [word for word in overrides if word.startswith(("data=", "data."))]
    if others and data:
        raise UserError(f"finetune embed: takes images or a data set. Both are given: {others[0]} and {data[0]}.")
    return EmbedArguments(run, others, overrides)


def run(argv: Sequence[str]) -> int:
    """Run ``finetune embed`` and return the exit status."""
    parser = Arguments("embed", ABOUT)
    parser.add_argument(
        "words", metavar="RUN | IMAGES | key=value", nargs="+", help="what is embedded, and by which model"
    )
    parser.add_argument("--output", required=True, type=home_path, metavar="FILE", help="embeddings.npz or .parquet")
    parser.examples["--output"] = ("embeddings.npz", "embeddings.parquet")
    parser.add_argument("--stage", metavar="NAME", help="pool the output of this stage (default: the last)")
    parser.add_argument("--normalize", action="store_true", help="scale features to length one (L2)")
    parser.add_argument("--whiten", action="store_true", help="PCA whitening, fitted once and kept beside FILE")
    parser.add_argument("--directions", type=int, metavar="N", help="of --whiten (default: all that images differ in)")
    parser.add_argument("--precision", default="float16", metavar="TYPE", help="float16 (default) or float32")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    given = parser.read(argv)
    if given.directions is not None and not given.whiten:
        parser.error(f"--directions {given.directions}: belongs to --whiten, which is not given")
    line = split_words(given.words)
    output = given.output
    config = _checked(line, output)

    from finetune.embeddings.embed import Settings, check_settings, embed_to_file

    settings = Settings(
        normalize=given.normalize,
        whiten=given.whiten,
        directions=given.directions,
        precision=given.precision,
        batch_size=given.batch_size,
    )
    check_settings(settings, output)
    extractor = _extractor(line, config, given.stage, trust=given.trust)
    samples = _samples(line, config, extractor)
    try:
        summary = embed_to_file(extractor, samples, output, settings=settings)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("\nStopped. Finished rows are kept; run the same command to continue.") from None
    parts = [f"{summary.computed} computed"]
    parts += [f"{summary.images - summary.computed} kept from before"] if summary.images > summary.computed else []
    parts += [f"{summary.changed} of them changed"] if summary.changed else []
    parts += [f"{summary.gone} removed because they are no longer given"] if summary.gone else []
    parts += [f"{len(summary.unreadable)} unreadable"] if summary.unreadable else []
    print(f"{counted(summary.images, 'image')} ({', '.join(parts)}): {output}")
    return 0


def _checked(line: EmbedArguments, output: Path) -> Config | None:
    """Return the configuration, or None if none is needed; report wrong paths before torch is imported."""
    from finetune.build.paths import check_paths
    from finetune.embeddings.files import check_embeddings_path
    from finetune.inference.image_paths import STDIN, find_images

    check_embeddings_path(output, name="--output")
    own_data = not line.images
    for word in line.images:
        if word != STDIN:
            next(find_images([word]))
    if line.run is not None:
        if not Path(line.run).expanduser().exists():
            raise UserError(
                f"RUN='{line.run}': no such folder. For a network that was not trained here, give backbone=NAME."
            )
        if line.images:
            if line.overrides:
                raise UserError(
                    f"{line.overrides[0]}: a run decides how its images are read. Leave it out, or give a data set "
                    "instead of images."
                )
            return None
        from finetune.runners.run_data import data_config

        config = data_config(line.run, check_overrides(line.overrides))
    else:
        if own_data and not any(word.startswith("data=") for word in line.overrides):
            raise UserError("finetune embed: needs images, or a data set as data=DIR.")
        # the configuration's data is not used if images are named
        config = compose([*line.overrides, *(["data=digits"] if line.images else [])])
    check_paths(config if own_data else replace(config, data=DataConfig(source="digits")), use="test")
    return config


def _extractor(line: EmbedArguments, config: Config | None, stage: str | None, *, trust: bool) -> "FeatureExtractor":
    if line.run is not None:
        from finetune.bundle import find_bundle

        find_bundle(line.run)

        from finetune.embeddings.extractor import extractor_from_run

        return extractor_from_run(line.run, stage=stage, modules=modules_of(line.run, trust=trust))
    assert config is not None, "a network that was not trained here has a configuration"
    from finetune.build.classifier import build_pretrained, image_size
    from finetune.build.data import decode_options_from
    from finetune.data.sources import source_kind
    from finetune.embeddings.extractor import extractor_from_backbone

    native = 3 if line.images else source_kind(config.data.source).channels
    return extractor_from_backbone(
        build_pretrained(config, print, trusted=True),
        weights=config.backbone.weights,
        seed=config.seed,
        channels=config.input.given_channels or native,
        adapt=config.input.adapt,
        size=image_size(config.input.size),
        stage=stage,
        decode_options=decode_options_from(config),
    )


def _samples(line: EmbedArguments, config: Config | None, extractor: "FeatureExtractor") -> "ImageRecords":
    from finetune.embeddings.image_records import DatasetRecords, FileRecords

    if line.images:
        from finetune.inference.image_paths import find_images

        return FileRecords(find_images(line.images))
    assert config is not None, "a data set has a configuration"
    source, data = data_set(config, line, extractor)
    for note in source.index.notes:
        print(note)
    if extractor.stage != extractor.stages[-1]:
        return DatasetRecords(source, data=data)
    from finetune.activation_cache.cached_features import CachedFeatures

    cached = CachedFeatures(extractor.backbone, input_spec=extractor.spec, adapt=extractor.adapt, source=source)
    return DatasetRecords(source, data=data, cached=cached)


def data_set(
    config: Config, line: EmbedArguments, extractor: "FeatureExtractor"
) -> "tuple[Source, Mapping[str, Json]]":
    """Return the data set of a command line, and the values that recreate it."""
    from finetune.build.data import build_source
    from finetune.runners.run_data import read_as_trained

    config.input.channels = extractor.spec.channels
    if line.run is not None:
        read_as_trained(config, line.overrides, extractor.decode_options)
    # features need no training split; problems that would prevent training are reported as the audit reports them
    typed = line.run is None or any(word.startswith("data=") for word in line.overrides)
    source = build_source(config, use="audit", download=typed)
    for problem in source.index.problems:
        if problem.severity == "error":
            print(f"warning: {problem.text}. Embedding it anyway.")
    return source, {"seed": config.seed, "data": asdict(config.data)}
