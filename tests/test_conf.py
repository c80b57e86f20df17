"""Every file of ``conf/`` composes, and every experiment runs."""

from pathlib import Path

import pytest

from finetune.config import compose, conf_dir, group_choices
from tests.runs import train_tiny

GROUPS = group_choices()
CHOICES = [(group, choice) for group, choices in GROUPS.items() for choice in choices]

# what a choice needs besides itself
NEEDS = {
    ("data", "folder"): ["data.root=."],
    ("data", "manifest"): ["data.path=labels.csv"],
    ("data", "torchvision"): ["data.name=OxfordIIITPet"],
    ("data", "huggingface"): ["data.path=dataset"],
    ("backbone", "timm"): ["backbone.name=resnet10t"],
    ("backbone", "torchvision"): ["backbone.name=resnet18"],
    ("backbone", "transformers"): ["backbone.name=resnet-50"],
}


def test_all_files_are_found() -> None:
    found = {path.relative_to(conf_dir()).as_posix() for path in conf_dir().rglob("*.yaml")}
    assert found == {"train.yaml"} | {f"{group}/{choice}.yaml" for group, choice in CHOICES}
    assert len(CHOICES) > 20


@pytest.mark.usefixtures("ray_launcher")
@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group: str, choice: str) -> None:
    words = [f"{group}={choice}", *NEEDS.get((group, choice), [])]
    if group != "data" and group != "experiment":
        words.append("data=digits")
    assert compose(words)


@pytest.mark.parametrize("experiment", GROUPS["experiment"])
def test_every_experiment_runs(experiment: str, tmp_path: Path) -> None:
    config = compose([f"experiment={experiment}"])
    short = [f"schedule.phases.{n}.epochs=1" for n in range(len(config.schedule.phases))]
    limit = (
        ["data.limit_per_class=4", "data.num_workers=0"] if config.data.source == "digits" else ["data.num_workers=0"]
    )
    if config.data.source == "fractals":
        limit += ["data.classes=5", "data.images_per_class=8"]
    words = [f"experiment={experiment}", *short, *limit, "logger=none"]
    run = train_tiny(words, tmp_path / "run")
    assert (
        sum(run.results["data"]["counts"]["test"])
        == len((run.run_dir / "predictions.csv").read_text().splitlines()) - 1
    )
