"""Scores by which a network can tell images of no class it knows, measured on finished runs.

    uv run --with pytorch-ood python tests/benchmarks/unknown_scores.py RUN [RUN ...] --sets DIR [DIR ...] --work DIR

Each set is a folder with ``test`` above its classes. Of each, the images whose class a run does not know are unknown to it:
*near* if the set shares classes with the run's data (classes that were held out of it), *far* if not. The scores are fitted on
the training images of the run. Printed for each run: how well each score tells unknown images from the run's test images (area
under the ROC curve; the mean over sets), the share of test images that are accepted at the threshold that accepts 95 % of the
validation images, and the share of unknown images that are rejected there. ``--images N ...`` fits on N training images.
Features are kept in ``--work``.

Means of five runs of EfficientNet-Lite0 with its ImageNet weights (``schedule=probe input.size=128``): photographs, and
photographs, drawings, clothes and digits without some of their classes; unknown to each: the other sets, and the classes held
out. "unit" scales features to length one, "rank" keeps so many directions:

    score                           near     far  accepted  near rejected  far rejected
    max softmax                    0.752   0.791     0.950          0.246         0.387
    energy                         0.766   0.744     0.920          0.395         0.525
    nearest mean                   0.715   0.710     0.933          0.197         0.391
    unit nearest mean              0.799   0.984     0.907          0.442         0.941
    Mahalanobis LedoitWolf         0.766   0.825     0.953          0.242         0.549
    Mahalanobis OAS                0.766   0.826     0.953          0.240         0.550
    unit Mahalanobis LedoitWolf    0.821   0.986     0.918          0.429         0.946
    unit Mahalanobis rank 16       0.819   0.985     0.933          0.417         0.929
    unit Mahalanobis rank 64       0.823   0.986     0.937          0.418         0.939
    unit Mahalanobis rank 128      0.827   0.986     0.919          0.450         0.950
    relative                       0.260   0.199     0.953          0.012         0.005
    1 neighbours                   0.832   0.983     0.944          0.351         0.929
    5 neighbours                   0.825   0.984     0.926          0.433         0.933
    20 neighbours                  0.799   0.973     0.944          0.291         0.872
    ViM                            0.793   0.830     0.953          0.263         0.569
    pytorch-ood MaxSoftmax         0.752   0.791     0.950          0.246         0.387
    pytorch-ood EnergyBased        0.766   0.744     0.920          0.395         0.525
    pytorch-ood Mahalanobis        0.481   0.601     0.925          0.157         0.369
    pytorch-ood RMD                0.481   0.526     0.916          0.177         0.303
    pytorch-ood KNN 5              0.825   0.984     0.926          0.433         0.933
    pytorch-ood KNN 50             0.763   0.956     0.928          0.322         0.828
    pytorch-ood ViM                0.791   0.842     0.958          0.256         0.564
    pytorch-ood SHE                0.659   0.938     0.908          0.251         0.795

The package has "unit Mahalanobis rank 64": with the nearest neighbours the best, within their differences between runs, and it
stores no image. Why "relative" is worse than chance here was not looked into. The accepted share is the lowest (0.86) where
validation has 30 images, for which the package fits no score. Fine-tuned runs and the embedded ResNet-18 are not in this table.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.covariance import oas as oas_of
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

import finetune
from finetune.build.data import build_source
from finetune.data.datamodule import ImageDataModule
from finetune.data.transforms import eval_view
from finetune.inference.given_images import given_images
from finetune.models.chunks import run_in_chunks
from finetune.runners.run_data import data_config

# N = images, D = features, K = classes

Floats = npt.NDArray[np.float64]
Score = Callable[[Floats, Floats], Floats]  # features (N, D) and logits (N, K) to (N,), more for unknown images
MOST, ACCEPT = 500, 0.95


def squared_distances(features_ND: Floats, means_KD: Floats) -> Floats:
    """Return squared distances (N, K)."""
    cross = features_ND @ means_KD.T
    return np.maximum((features_ND**2).sum(1)[:, None] - 2 * cross + (means_KD**2).sum(1), 0)


def unit(features_ND: Floats) -> Floats:
    """Return features of length one."""
    return np.asarray(features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), 1e-12))


def class_means(features_ND: Floats, targets: npt.NDArray[np.int64]) -> Floats:
    """Return the mean of each class (K, D)."""
    return np.stack([features_ND[targets == number].mean(0) for number in range(targets.max() + 1)])


class Gaussians:
    """Normal distributions of the classes with one covariance, fitted on training images.

    Args:
        train_ND: Features.
        targets: Class numbers (N,).
        scaled: Whether features are scaled to length one.
        relative: Whether one normal distribution of all classes is fitted instead.
    """

    def __init__(
        self, train_ND: Floats, targets: npt.NDArray[np.int64], *, scaled: bool, relative: bool = False
    ) -> None:
        self.prepare = unit if scaled else np.asarray
        train_ND = self.prepare(train_ND)
        targets = np.zeros_like(targets) if relative else targets
        self.means_KD = class_means(train_ND, targets)
        self.centred_ND = train_ND - self.means_KD[targets]
        _, roots, self.vectors_RD = np.linalg.svd(self.centred_ND, full_matrices=False)
        self.values_R = roots**2 / len(train_ND)

    def score(self, *, rank: int | None = None, oas: bool = False) -> Score:
        """Return the squared distance to the nearest mean; with a rank, all further directions have one variance, their mean."""
        wide = self.centred_ND.shape[1]
        mean = float((self.centred_ND**2).mean())
        if oas:
            shrinkage = oas_of(self.centred_ND, assume_centered=True)[1]
        else:
            shrinkage = ledoit_wolf_shrinkage(self.centred_ND, assume_centered=True)
        values_R, vectors_RD = (1 - shrinkage) * self.values_R + shrinkage * mean, self.vectors_RD
        rest = shrinkage * mean
        if rank is not None and rank < len(values_R):
            values_R, vectors_RD = values_R[:rank], vectors_RD[:rank]
            rest = (wide * mean - values_R.sum()) / (wide - rank)

        def score(features: Floats, logits: Floats) -> Floats:
            x_ND = self.prepare(features)
            inside = squared_distances(x_ND @ vectors_RD.T, self.means_KD @ vectors_RD.T)
            scaled = squared_distances(
                x_ND @ vectors_RD.T / np.sqrt(values_R), self.means_KD @ vectors_RD.T / np.sqrt(values_R)
            )
            return np.asarray((scaled + (squared_distances(x_ND, self.means_KD) - inside) / rest).min(1))

        return score


def less(one: Score, other: Score) -> Score:
    """Return the difference of two scores."""
    return lambda features, logits: one(features, logits) - other(features, logits)


def nearest_mean(train_ND: Floats, targets: npt.NDArray[np.int64], *, scaled: bool) -> Score:
    """Return the squared distance to the nearest class mean."""
    prepare = unit if scaled else np.asarray
    means_KD = class_means(prepare(train_ND), targets)
    return lambda features, logits: np.asarray(squared_distances(prepare(features), means_KD).min(1))


def neighbours(train: Floats, *, k: int) -> Score:
    """Return the distance of directions to the k-th nearest training image (Sun et al. 2022)."""
    tree = NearestNeighbors(n_neighbors=min(k, len(train))).fit(unit(train))
    return lambda features, logits: np.asarray(tree.kneighbors(unit(features))[0][:, -1])


def vim(train: Floats, logits_NK: Floats, weight: Floats, bias: Floats) -> Score:
    """Return the energy and the residual outside the largest directions (Wang et al. 2022)."""
    origin = -np.linalg.pinv(weight) @ bias
    wide = train.shape[1]
    size = 1000 if wide >= 2048 else 512 if wide >= 768 else wide // 2
    vectors_RD = np.linalg.svd(train - origin, full_matrices=False)[2][:size]

    def residual(features: Floats) -> Floats:
        x_ND = features - origin
        return np.sqrt(np.maximum((x_ND**2).sum(1) - ((x_ND @ vectors_RD.T) ** 2).sum(1), 0))

    # with fewer images than directions training images have no residual
    alpha = logits_NK.max(1).mean() / max(residual(train).mean(), 1e-6)
    return lambda features, logits: alpha * residual(features) - logsumexp(logits, axis=1)


def softmax_of(logits_NK: Floats) -> Floats:
    """Return probabilities (N, K)."""
    return np.exp(logits_NK - logsumexp(logits_NK, axis=1, keepdims=True))


def scores(train: dict[str, Any]) -> dict[str, Score]:
    """Fit every score on training images."""
    x, y = train["features"], train["targets"]
    plain, scaled = Gaussians(x, y, scaled=False), Gaussians(x, y, scaled=True)
    found: dict[str, Score] = {
        "max softmax": lambda features, logits: -softmax_of(logits).max(1),
        "max logit": lambda features, logits: -logits.max(1),
        "energy": lambda features, logits: -logsumexp(logits, axis=1),
        "nearest mean": nearest_mean(x, y, scaled=False),
        "unit nearest mean": nearest_mean(x, y, scaled=True),
        "Mahalanobis LedoitWolf": plain.score(),
        "Mahalanobis OAS": plain.score(oas=True),
        **{f"Mahalanobis rank {rank}": plain.score(rank=rank) for rank in (32, 128)},
        "unit Mahalanobis LedoitWolf": scaled.score(),
        **{f"unit Mahalanobis rank {rank}": scaled.score(rank=rank) for rank in (16, 32, 64, 128)},
        "relative": less(plain.score(), Gaussians(x, y, scaled=False, relative=True).score()),
        "unit relative": less(scaled.score(), Gaussians(x, y, scaled=True, relative=True).score()),
        **{f"{k} neighbours": neighbours(x, k=k) for k in (1, 5, 20)},
    }
    if "weight" in train:
        found["ViM"] = vim(x, train["logits"], train["weight"], train["bias"])
    return found | oracle(train)


def oracle(train: dict[str, Any]) -> dict[str, Score]:
    """Fit the detectors of pytorch-ood, where it is installed."""
    try:
        from pytorch_ood.detector import KNN, RMD, SHE, EnergyBased, Mahalanobis, MaxLogit, MaxSoftmax, ViM
    except ImportError:
        return {}
    x, y = torch.from_numpy(train["features"]).float(), torch.from_numpy(train["targets"])

    def by_features(detector: Any, *, double: bool = False) -> Score:
        detector.fit_features(x.double() if double else x, y)

        def score(features: Floats, logits: Floats) -> Floats:
            given = torch.from_numpy(features)
            return np.asarray(detector.predict_features(given if double else given.float()).double().numpy())

        return score

    def by_logits(detector: Any) -> Score:
        return lambda features, logits: np.asarray(detector.score(torch.from_numpy(logits)).numpy())

    found = {
        "pytorch-ood MaxSoftmax": by_logits(MaxSoftmax),
        "pytorch-ood MaxLogit": by_logits(MaxLogit),
        "pytorch-ood EnergyBased": by_logits(EnergyBased),
        "pytorch-ood Mahalanobis": by_features(Mahalanobis(None)),
        "pytorch-ood RMD": by_features(RMD(None)),
        **{f"pytorch-ood KNN {k}": by_features(KNN(None, k=min(k, len(x)))) for k in (5, 50)},
    }
    if "weight" in train:
        weight, bias = (torch.from_numpy(train[name]).float() for name in ("weight", "bias"))
        size = 512 if x.shape[1] >= 768 else x.shape[1] // 2
        found["pytorch-ood ViM"] = by_features(ViM(None, d=size, w=weight, b=bias))
        she = SHE(None, lambda features: features @ weight.T + bias)
        found["pytorch-ood SHE"] = by_features(she)
    return found


@torch.inference_mode()
def outputs_of_run(folder: Path) -> dict[str, dict[str, Any]]:
    """Compute features and logits of the splits of a run."""
    model = finetune.load(folder)
    config = data_config(str(folder), [])
    config.input.channels = model.input_spec.channels
    source = build_source(config)
    data = ImageDataModule(source=source, spec=model.input_spec, num_workers=0)
    found: dict[str, dict[str, Any]] = {}
    for split in ("train", "val", "test"):
        parts = [
            (run_in_chunks(model.embed, batch.images), batch.targets)
            for batch in data.rows_dataloader(source.index.rows(split))
        ]
        features_ND = torch.cat([features for features, _ in parts])
        found[split] = {
            "features": features_ND.double().numpy(),
            "logits": model.head(features_ND).double().numpy(),
            "targets": torch.cat([targets for _, targets in parts]).numpy(),
        }
    state = dict(model.head.named_parameters())
    weights = [value for value in state.values() if value.ndim == 2]
    if len(weights) == 1:
        biases = [value for value in state.values() if value.ndim == 1]
        found["train"] |= {"weight": weights[0].double().numpy(), "bias": biases[0].double().numpy()}
    return found


@torch.inference_mode()
def outputs_of_files(folder: Path, files: list[str]) -> dict[str, Any]:
    """Compute features and logits of files by the network of a run."""
    model = finetune.load(folder)
    views, parts = eval_view(model.input_spec), []
    waiting = []
    for image in given_images(files, options=model.decode_options, view=views):
        if image.pixels_CHW is not None:
            waiting.append(image.pixels_CHW)
        if len(waiting) == 32:
            parts.append(model.embed(torch.stack(waiting)))
            waiting.clear()
    if waiting:
        parts.append(model.embed(torch.stack(waiting)))
    features_ND = torch.cat(parts)
    return {"features": features_ND.double().numpy(), "logits": model.head(features_ND).double().numpy()}


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a file holds, or make and write it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **make())
    with np.load(path) as arrays:
        return dict(arrays)


def outputs(folder: Path, sets: list[Path], work: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return features and logits of the run's splits, and of the unknown images of each set."""
    place = work / folder.name

    def flat() -> dict[str, Any]:
        return {f"{split}/{name}": value for split, of in outputs_of_run(folder).items() for name, value in of.items()}

    known: dict[str, dict[str, Any]] = {"train": {}, "val": {}, "test": {}}
    for name, value in kept(place / "run.npz", flat).items():
        split, _, what = name.partition("/")
        known[split][what] = value
    classes = set(finetune.load(folder).classes)
    unknown = {}
    for root in sets:
        names = {one.name for one in (root / "test").iterdir()}
        files = sorted(str(file) for name in names - classes for file in (root / "test" / name).iterdir())
        if not files:
            continue
        files = [files[at] for at in np.unique(np.linspace(0, len(files) - 1, MOST).round().astype(int))]
        kind = "near" if names & classes else "far"
        unknown[f"{kind} {root.name}"] = kept(
            place / f"{root.name}.npz", lambda files=files: outputs_of_files(folder, files)
        )
    return known, unknown


def measure(
    known: dict[str, dict[str, Any]], unknown: dict[str, dict[str, Any]], most: int
) -> dict[str, dict[str, float]]:
    """Return for each score the areas by set, the accepted share of test images and the rejected share of unknown ones."""
    train = dict(known["train"])
    rows = np.unique(np.linspace(0, len(train["targets"]) - 1, most).round().astype(int))
    for name in ("features", "logits", "targets"):
        train[name] = train[name][rows]
    table = {}
    for name, score in scores(train).items():
        val, test = (score(known[split]["features"], known[split]["logits"]) for split in ("val", "test"))
        threshold = np.quantile(val, ACCEPT, method="higher")
        row = {"accepted": float((test <= threshold).mean())}
        for of, data in unknown.items():
            theirs = score(data["features"], data["logits"])
            labels = np.r_[np.zeros(len(test)), np.ones(len(theirs))]
            row[of] = float(roc_auc_score(labels, np.r_[test, theirs]))
            row[f"rejected {of}"] = float((theirs > threshold).mean())
        table[name] = row
    return table


def main() -> None:
    """Print a table for each run, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--sets", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--images", type=int, nargs="+", default=[1000], metavar="N")
    given = parser.parse_args()
    for most in given.images:
        means: dict[str, list[dict[str, float]]] = {}
        for folder in given.runs:
            known, unknown = outputs(folder, given.sets, given.work)
            sizes = ", ".join(f"{split} {len(of['targets'])}" for split, of in known.items())
            print(f"{folder.name}: {sizes}, {known['train']['features'].shape[1]} features", flush=True)
            for name, row in measure(known, unknown, most).items():
                near = [value for of, value in row.items() if of.startswith("near")]
                far = [value for of, value in row.items() if of.startswith("far")]
                gone = {
                    kind: [v for of, v in row.items() if of.startswith(f"rejected {kind}")] for kind in ("near", "far")
                }
                shown = {
                    "near": np.mean(near) if near else np.nan,
                    "far": np.mean(far) if far else np.nan,
                    "accepted": row["accepted"],
                    "near rejected": np.mean(gone["near"]) if near else np.nan,
                    "far rejected": np.mean(gone["far"]) if far else np.nan,
                }
                means.setdefault(name, []).append({key: float(value) for key, value in shown.items()})
                print(f"  {name:28}" + "  ".join(f"{key} {value:.3f}" for key, value in shown.items()), flush=True)
        print(f"means of {len(given.runs)} runs, fitted on at most {most:,} training images")
        for name, rows in means.items():
            parts = []
            for key in rows[0]:
                values = np.array([row[key] for row in rows])
                values = values[~np.isnan(values)]
                parts.append(f"{key} {values.mean():.3f}" if len(values) else f"{key} -")
            print(f"  {name:28}" + "  ".join(parts), flush=True)


if __name__ == "__main__":
    main()
