"""The ladder runs every strategy on the same data, continues after an interruption, and recommends by its rule."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.checksums import CHECKSUMS, keep_checksum
from finetune.cli import main
from finetune.errors import UserError
from finetune.ladder.networks import parse_networks
from finetune.ladder.recommend import Rung, more_data, recommend
from finetune.ladder_result import LadderResult
from finetune.models.build import build_backbone
from finetune.plain import from_plain
from finetune.report.ladder_page import ladder_page
from tests.test_file_lock import holder

Words = Callable[..., list[str]]


def rung(name: str, seconds: float, *val: float) -> Rung:
    return Rung(name=name, runs=[{"val": v, "test": v, "seconds": seconds, "trained": 10} for v in val])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pets: Path) -> tuple[Path, list[str]]:
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("ladder") / "out"
    words = ["ladder", "data=folder", f"data.root={pets}", *TINY, "--output", str(folder), "--epochs", "1"]
    words += ["--seeds", "2", "--rungs", "majority,knn,probe,last,scratch"]
    assert main(words) == 0
    return folder, words


def read(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "ladder.json").read_text())
    return loaded


def test_every_rung_is_measured_on_every_seed(finished: tuple[Path, list[str]]) -> None:
    result = read(finished[0])
    assert [r["name"] for r in result["rungs"]] == ["majority", "knn", "probe", "last", "scratch"]
    for measured in result["rungs"]:
        assert [run["seed"] for run in measured["runs"]] == [0, 1]
        for number in (0, 1):
            path = finished[0] / f"runs/{measured['name']}-{number}/results.json"
            if path.is_file():
                assert measured["runs"][number]["test"] == json.loads(path.read_text())["test"]["acc"]
    trained = {r["name"]: r["trained"] for r in result["rungs"]}
    assert 0 == trained["knn"] < trained["probe"] < trained["last"] < trained["scratch"]


def test_all_rungs_of_a_seed_see_the_same_split(finished: tuple[Path, list[str]]) -> None:
    for seed in (0, 1):
        prints = {
            json.loads((finished[0] / f"runs/{name}-{seed}/results.json").read_text())["data"]["fingerprint"]
            for name in ("probe", "last", "scratch")
        }
        assert len(prints) == 1


def test_what_was_finished_is_not_trained_again(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = finished
    before = read(folder)
    (folder / "runs/last-1/results.json").unlink()
    untouched = (folder / "runs/scratch-1/results.json").stat().st_mtime_ns
    assert main(words) == 0
    after = read(folder)
    assert [[run["test"] for run in r["runs"]] for r in after["rungs"]] == [
        [run["test"] for run in r["runs"]] for r in before["rungs"]
    ]
    assert (folder / "runs/scratch-1/results.json").stat().st_mtime_ns == untouched
    assert "recommended:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("plan.json", lambda plan: [], "damaged. It has no phases"),
        ("plan.json", lambda plan: [{**plan[0], "trainable": -1}], "a phase with fewer than no parameters"),
        ("results.json", lambda results: results | {"test": results["test"] | {"acc": -1.0}}, "and -1 in"),
    ],
)
def test_numbers_of_a_run_that_cannot_be_are_damaged(
    name: str,
    damage: Callable[[Any], Any],
    message: str,
    finished: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, words = finished
    path = folder / "runs/probe-0" / name
    kept = {file: file.read_bytes() for file in (path, path.with_name(CHECKSUMS))}
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    keep_checksum(path)
    try:
        assert main(words) == 2
        error = capsys.readouterr().err
        assert f"{path}: damaged." in error
        assert message in error
    finally:
        for file, content in kept.items():
            file.write_bytes(content)


def test_the_page_names_classes_and_commands_escaped(finished: tuple[Path, list[str]]) -> None:
    page = (finished[0] / "ladder.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "").replace("https://matplotlib.org", "")
    result = from_plain(LadderResult, read(finished[0]), name="ladder.json")
    assert "<b>" not in ladder_page(replace(result, command="finetune ladder data.root='<b>'"), more_data="")


def test_the_cheapest_within_one_standard_error_is_recommended() -> None:
    best = rung("full", 90.0, 0.90, 0.94)  # mean 0.92, standard error 0.02
    near, far = rung("frozen", 10.0, 0.90, 0.91), rung("probe", 1.0, 0.89, 0.90)
    chosen = recommend([far, near, best])
    assert chosen is not None
    assert (chosen.name, chosen.best) == ("frozen", "full")
    assert 0.0 < chosen.confidence < 1.0


def test_guessing_and_neighbours_are_never_recommended() -> None:
    chosen = recommend([rung("knn", 0.1, 0.99, 0.99), rung("probe", 1.0, 0.5, 0.5)])
    assert chosen is not None
    assert chosen.name == "probe"
    assert recommend([rung("knn", 0.1, 0.99)]) is None


def test_more_data_is_told_from_the_last_doubling() -> None:
    rising = [[{"per_class": n, "images": n, "test": a} for n, a in ((10, 0.5), (20, 0.6))]]
    flat = [[{"per_class": n, "images": n, "test": 0.6} for n in (10, 20)]]
    assert "would likely help" in more_data(rising)
    assert "would change little" in more_data(flat)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["schedule=full"], "the ladder sets schedule itself"),
        (["seed=3"], "the ladder sets seed itself"),
        (["--rungs", "frosen"], "Did you mean 'frozen'"),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["-m"], "runs one ladder"),
        (["data.root=missing"], "data.root='missing'"),
    ],
)
def test_mistakes_are_answered(
    words: Words, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ladder", *words(), *more, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(
    finished: tuple[Path, list[str]], words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["ladder", *words(), "--output", str(tmp_path)]) == 2
    assert "It holds other files" in capsys.readouterr().err
    assert main(["ladder", *words("data.batch_size=9"), "--epochs", "1", "--output", str(finished[0])]) == 2
    assert "of a ladder with other settings" in capsys.readouterr().err
    assert main(["ladder", *words(), "--output", str(tmp_path / "mine.txt")]) == 2
    assert "must be a folder. It is a file." in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt"]


def test_a_ladder_is_not_continued_through_links_out_of_its_folder(
    finished: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished[0], tmp_path / "foreign"))
    (tmp_path / "mine").mkdir()
    (folder / "runs/last-0").rename(folder / "runs/gone")
    (folder / "runs/last-0").symlink_to("../../mine")
    assert main([word if word != str(finished[0]) else str(folder) for word in finished[1]]) == 2
    assert f"written through: runs/last-0: a link out, to {tmp_path / 'mine'}" in capsys.readouterr().err
    assert not list((tmp_path / "mine").iterdir())


def test_a_ladder_that_another_process_continues_is_refused(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = finished
    other = holder(folder)
    try:
        assert main(words) == 2
        assert f"in use. process {other.pid}" in capsys.readouterr().err
    finally:
        other.kill()
        other.join(30)


def test_an_interval_ends_where_accuracies_end_and_two_seeds_are_called_few() -> None:
    wide = rung("knn", 1.0, 0.3, 0.5).result()
    assert wide.test_interval is not None
    assert wide.test_interval > 0.5
    assert wide.test_in_words(scale=100, digits=2) == "40.00 (0.00 to 100.00)"
    chosen = recommend([rung("full", 9.0, 0.9, 0.9), rung("frozen", 1.0, 0.5, 0.5)])
    assert chosen is not None
    assert chosen.confidence_in_words().startswith("confidence 100%, of two seeds only")


def test_a_learning_curve_that_falls_is_said_to_lose() -> None:
    falling = [[{"per_class": n, "images": n, "test": a} for n, a in ((10, 0.6), (20, 0.572))]]
    assert "the frozen features lost 2.8 points" in more_data(falling)


def test_one_seed_gives_no_interval_and_no_confidence() -> None:
    one = rung("full", 9.0, 0.85)
    chosen = recommend([one, rung("frozen", 1.0, 0.5)])
    assert chosen is not None
    assert chosen.confidence is None
    assert one.result().test_interval is None
    assert one.result().test_in_words(scale=100, digits=2) == "85.00"
    assert "one seed: no interval, no confidence" in chosen.confidence_in_words()


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory, pets: Path) -> tuple[Path, list[str]]:
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("networks") / "out"
    others = [word for word in TINY if not word.startswith("backbone")]
    words = ["ladder", str(pets), *others, "--output", str(folder), "--epochs", "1", "--seeds", "2", "--finalists", "1"]
    words += ["--backbones", "test_vit=none,test_resnet=none,resnet18=embedded", "--rungs", "probe,last"]
    assert main(words) == 0
    return folder, words


def test_networks_are_compared_by_a_solved_head_and_the_best_is_trained(networks: tuple[Path, list[str]]) -> None:
    result = from_plain(LadderResult, read(networks[0]), name="ladder.json")
    labels = ["test_vit-none", "test_resnet-none", "resnet18-embedded"]
    probes = [rung for rung in result.rungs if rung.name in labels]
    assert sorted(rung.name for rung in probes) == sorted(labels)
    assert [rung.val for rung in probes] == sorted((rung.val for rung in probes), reverse=True)
    # the finalist, followed by its other strategy
    assert [rung.name for rung in result.rungs][:2] == [probes[0].name, f"{probes[0].name}-last"]
    assert len(result.rungs) == 4
    for rung in probes:
        for run in rung.runs:
            own = json.loads((networks[0] / f"runs/{rung.name}-{run['seed']}/results.json").read_text())
            assert run["test"] == own["test"]["acc"]
    by_name = {rung.name: rung for rung in result.rungs}
    # a ResNet-18 without classifier, and a head for the three classes
    assert by_name["resnet18-embedded"].parameters == 11_176_512 + 3 * 513
    assert by_name["resnet18-embedded"].licence == "apache-2.0"
    assert by_name["test_resnet-none"].licence is None


def test_weights_of_the_same_name_are_told_apart(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    from tests.conftest import TINY

    for seed, folder in enumerate(("old", "new")):
        (tmp_path / folder).mkdir()
        state = build_backbone(source="timm", name="test_resnet", weights="none", seed=seed).net.state_dict()
        save_file(state, tmp_path / folder / "w.safetensors")
    others = [word for word in TINY if not word.startswith("backbone")]
    words = ["ladder", str(pets), *others, "--output", str(tmp_path / "out"), "--seeds", "1", "--rungs", "probe"]
    assert main([*words, "--backbones", f"test_resnet={tmp_path / 'old' / 'w.safetensors'}"]) == 0
    assert main([*words, "--backbones", f"test_resnet={tmp_path / 'old' / 'w.safetensors'}"]) == 0
    assert main([*words, "--backbones", f"test_resnet={tmp_path / 'new' / 'w.safetensors'}"]) == 2
    assert "is of a ladder with other settings" in capsys.readouterr().err


def test_finished_runs_do_not_stand_beside_those_of_changed_data(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.conftest import TINY

    shutil.copytree(pets, tmp_path / "pets")
    words = [
        "ladder",
        str(tmp_path / "pets"),
        *TINY,
        "--output",
        str(tmp_path / "out"),
        "--seeds",
        "1",
        "--rungs",
        "probe",
    ]
    assert main(words) == 0
    assert main(words) == 0
    shutil.copy(next((tmp_path / "pets").rglob("*.png")), next((tmp_path / "pets").iterdir()) / "new.png")
    assert main(words) == 2
    assert "the data have changed since this ladder began" in capsys.readouterr().err
    with pytest.raises(UserError, match="epochs=3: the ladder sets epochs itself"):
        finetune.ladder(pets, overrides=["epochs=3"])


def test_the_command_of_the_recommended_network_trains_it(networks: tuple[Path, list[str]], tmp_path: Path) -> None:
    result = from_plain(LadderResult, read(networks[0]), name="ladder.json")
    assert result.recommended is not None
    assert result.train_it is not None
    assert main([*shlex.split(result.train_it)[1:], f"run_dir={tmp_path / 'run'}"]) == 0
    name = result.recommended.name.partition("-")[0]
    assert json.loads((tmp_path / "run/results.json").read_text())["backbone"]["name"] == name


def test_the_page_of_networks_shows_their_size_and_licence(networks: tuple[Path, list[str]]) -> None:
    page = (networks[0] / "ladder.html").read_text()
    assert "Which network is right for this data?" in page
    assert "11,178,051" in page
    assert "apache-2.0" in page
    assert "million parameters" in page
    assert "Would more data help?" not in page


def test_the_smallest_network_within_one_standard_error_is_recommended() -> None:
    def network(name: str, parameters: int, *val: float) -> Rung:
        return replace(rung(name, 1.0, *val), parameters=parameters)

    chosen = recommend(
        [network("large", 90, 0.90, 0.94), network("small", 10, 0.90, 0.91), network("tiny", 1, 0.5, 0.6)]
    )
    assert chosen is not None
    assert (chosen.name, chosen.best) == ("small", "large")
    assert "smallest network" in chosen.rule


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--backbones", "resnet19"], "resnet19"),
        # the second network, before the first is trained
        (["--backbones", "resnet18=embedded,resnet19"], "resnet19"),
        (["--backbones", "resnet18=embedded,resnet34=none/such.pth"], "none/such.pth"),
        (["--backbones", "resnet18=embedded,resnet18=embedded"], "resnet18-embedded is given twice"),
        (["--backbones", "resnet18="], "must be names with a comma between them"),
        (["--backbones", "resnet18", "backbone=resnet50"], "backbone=resnet50: --backbones chooses the networks"),
        (["--backbones", "resnet18", "--rungs", "knn"], "--rungs knn: trains no pretrained network"),
        (["--finalists", "2"], "--finalists: belongs to --backbones"),
    ],
)
def test_mistakes_in_networks_are_answered(
    pets: Path, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ladder", str(pets), *more, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/runs/*/results.json"))


def test_from_python_networks_are_a_list_or_one_string(pets: Path, tmp_path: Path) -> None:
    for names in ("test_resnet=none,resnet19", ["test_resnet=none", "resnet19"]):
        with pytest.raises(UserError, match="resnet19"):
            finetune.ladder(pets, backbones=names, output=tmp_path / "out")


def test_auto_takes_the_networks_whose_weights_are_here() -> None:
    names = [network.label for network in parse_networks(["auto"])]
    assert names[0] == "resnet18-embedded"
    assert all(name.endswith(("-embedded", "-package")) or "-" not in name for name in names)
