"""What everyone types first works, or is answered with the line to type; nothing here trains."""

import os
import shlex
import shutil
from pathlib import Path

import pytest

import finetune
from finetune.api.settings import FitArguments
from finetune.build.data import build_source
from finetune.build.input_lines import unused_input
from finetune.cli import main, split_command
from finetune.commands.hydra_job import ComposingArguments
from finetune.config import check_overrides, compose, group_choices, whole_schedule
from finetune.config.ineffective_settings import notes
from finetune.config.overrides import values_of
from finetune.config.schema import Config, InputConfig
from finetune.errors import UserError
from finetune.input_spec import InputSpec
from tests.conftest import TINY

Captured = pytest.CaptureFixture[str]

# line after `finetune` -> the overrides, in Hydra's form, that it stands for
FIRST_GUESSES = {
    "pets": ["data=folder", "data.root='pets'"],
    "train pets": ["data=folder", "data.root='pets'"],
    "pets/": ["data=folder", "data.root='pets'"],
    "~/pets": ["data=folder", "data.root='HOME/pets'"],
    "data=pets": ["data=folder", "data.root='pets'"],
    "data.root=~/pets": ["data.root='~/pets'"],
    "'data.root=[~/pets,~/more pets]'": ["data.root=['~/pets','~/more pets']"],
    "pets hydra.run.dir=~/out": ["data=folder", "data.root='pets'", "hydra.run.dir='HOME/out'"],
    "'my pets (2)'": ["data=folder", "data.root='my pets (2)'"],
    "'data.root=my pets (2)'": ["data.root='my pets (2)'"],
    "'data.root=no pets (3)'": ["data.root='no pets (3)'"],
    "data.root=pets,more": ["data.root=[pets,more]"],
    "labels.csv": ["data=manifest", "data.path='labels.csv'"],
    "data=labels.csv": ["data=manifest", "data.path='labels.csv'"],
    "freeze=layer1": ["freeze=[layer1]"],
    "freeze=stem,layer1": ["freeze=[stem,layer1]"],
    "freeze=[stem, layer1]": ["freeze=[stem, layer1]"],
    "schedule.phases.1.train=layer4,head": ["schedule.phases.1.train=[layer4,head]"],
    "'schedule.phases[1].lr=1e-4'": ["schedule.phases.1.lr=1e-4"],
    "schedule.phases.1.stage_lr=layer4:1e-4": ["++schedule.phases.1.stage_lr={layer4:1e-4}"],
    "schedule.phases.0.lr_trials=1e-3,1e-2": ["schedule.phases.0.lr_trials=[1e-3,1e-2]"],
    "augment=light": ["data.augment=light"],
    "epochs=5 lr=1e-3": ["epochs=5", "lr=1e-3"],
    "epochs = 5": ["epochs=5"],
    "batch_size=8": ["data.batch_size=8"],
    "batch-size=8": ["data.batch_size=8"],
    "weights=none": ["backbone.weights=none"],
    "weights=None": ["backbone.weights=none"],
    "backbone=efficientnet_b0": ["backbone=timm", "backbone.name=efficientnet_b0"],
    "backbone=resnet50.a1_in1k": ["backbone=timm", "backbone.name=resnet50.a1_in1k"],
    "pets logger=none run_dir=~/out": ["data=folder", "data.root='pets'", "logger=none", "run_dir='~/out'"],
}

# line after `finetune` -> the line that the answer gives
MISTAKES = {
    "pets --epochs 3": "finetune pets epochs=3",
    "pets --calibrate true seed=1": "finetune pets calibrate=true seed=1",
    "pets --calibrate seed=1": "finetune pets calibrate=true seed=1",
    "plan pets unfreeze=layer4": "finetune plan pets schedule=full schedule.phases.0.train=layer4,head",
    "pets train=layer4,head": "finetune pets schedule=full schedule.phases.0.train=layer4,head",
    "pets unfreeze=all": "finetune pets schedule=full",
    "pets freeze_backbone=true": "finetune pets schedule=frozen",
    "pets early_stopping=true": "finetune pets schedule.patience=3",
    "pets early_stopping=5": "finetune pets schedule.patience=5",
    "plan pest": "finetune plan pets",
    "pets --lr=1e-3": "finetune pets lr=1e-3",
    "plan pets --batch-size 8": "finetune plan pets batch_size=8",
    "--freeze stem data=pets": "finetune freeze=stem data=pets",
    "pets --output-dir out --epochs 3": "finetune pets run_dir=out epochs=3",
    "pets --report --lr 1e-3": "finetune pets report=true lr=1e-3",
    "lr-find pets --steps 60 --output out": "finetune lr-find --steps 60 pets run_dir=out",
    "--config mine/a.yaml --epochs 3": "finetune --config-dir mine --config-name a epochs=3",
    "pets --gpus 2": "finetune pets trainer.devices=2",
    "pets optimizer.lr=0.1": "finetune pets lr=0.1",
    "pets trainer.max_epochs=3": "finetune pets epochs=3",
    "pets trainer.gradient_clip_val=1": "finetune pets schedule.gradient_clip=1",
    "pets learning_rate=1e-3": "finetune pets lr=1e-3",
    "pets model=resnet50": "finetune pets backbone=resnet50",
    "pets arch=efficientnet_b0": "finetune pets backbone=efficientnet_b0",
    "pets pretrained=false": "finetune pets weights=none",
    "pets img_size=96": "finetune pets input.size=96",
    "pets device=cuda:1": "finetune pets trainer.accelerator=gpu 'trainer.devices=[1]'",
    "pets patience=3": "finetune pets schedule.patience=3",
    "pets schedule.epoch=3": "finetune pets schedule.epochs=3",
    "pets schedule.phases.top.lr=1e-4": "finetune pets schedule.phases.1.lr=1e-4",
    "pets epochs: 5": "finetune pets epochs=5",
    "pets lr=0,001": "finetune pets lr=0.001",
    "pets sed=1 head=lineer": "finetune pets seed=1 head=linear",
    "pets backbone=resnet19": "finetune pets backbone=resnet18",
    "pets seed=1,2": "finetune pets -m seed=1,2",
    "plan pets schedule=full,frozen": "finetune plan pets -m schedule=full,frozen",
    "digits": "finetune data=digits",
    "plan convnext_tiny": "finetune plan backbone=convnext_tiny",
    "fit pets": "finetune train pets",
    "test my_run": "finetune evaluate my_run",
    "lr_find pets": "finetune lr-find pets",
    "--config mine/a.yaml": "finetune --config-dir mine --config-name a",
    "predict my_run pets --out p.csv": "finetune predict my_run pets --output p.csv",
    "predict my_run pets --output p.csv --top_k 3": "finetune predict my_run pets --output p.csv --top-k 3",
    "ladder pets --output out --epoch 2": "finetune ladder pets --output out --epochs 2",
    "pets max_pixels=100": "finetune pets data.max_pixels=100",
    "evaluate my_run split=val": "finetune evaluate my_run --split val",
    "evaluate my_run split=vall trust=true": "finetune evaluate my_run --split val --trust",
    "lr-find pets steps=60": "finetune lr-find pets --steps 60",
    "ladder pets seeds=2 output=out": "finetune ladder pets --seeds 2 --output out",
    "predict my_run pets output=p.csv top_k=3": "finetune predict my_run pets --output p.csv --top-k 3",
    "predict my_run pets": "finetune predict my_run pets --output predictions.csv",
    "predict my_run pets p.jsonl": "finetune predict my_run pets --output p.jsonl",
    "embed my_run pets": "finetune embed my_run pets --output embeddings.npz",
    "export my_run": "finetune export my_run --format onnx",
    "export my_run timm": "finetune export my_run --format timm",
    "export my_run format=web": "finetune export my_run --format web",
    "evaluate my_run dta=pets": "finetune evaluate my_run data=pets",
    "pest": "finetune pets",
    "pest epochs=5": "finetune pets epochs=5",
    "./pest": "finetune pets",
    "trian pets": "finetune train pets",
    "evalute my_run": "finetune evaluate my_run",
    "export my_run --format onxn": "finetune export my_run --format onnx",
    "predict my_rnu pets --output p.csv": "finetune predict my_run pets --output p.csv",
    "evaluate my_rnu": "finetune evaluate my_run",
    "report my_rnu": "finetune report my_run",
    "resume my_rnu": "finetune resume my_run",
    "predict my_run pets --output": "finetune predict my_run pets --output predictions.csv",
    "predict my_run pets --output --top-k 3": "finetune predict my_run pets --output predictions.csv --top-k 3",
    "predict my_run pets --output p.csv --top-k": "finetune predict my_run pets --output p.csv --top-k K",
    "export my_run --format": "finetune export my_run --format onnx",
    "plan pets schedule.lr_schedule=cosin": "finetune plan pets schedule.lr_schedule=cosine",
    "plan pets input.adapt=flod seed=1": "finetune plan pets input.adapt=fold seed=1",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    for name in ("pets", "more", "more pets", "my pets (2)", "my_run"):
        (folder / name).mkdir()
    (folder / "labels.csv").write_text("path,label\n")
    return folder


@pytest.fixture
def composed(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configurations that commands were called with, in place of training on them."""
    given: list[Config] = []
    for command in ("train", "plan"):
        monkeypatch.setattr(f"finetune.commands.{command}.task", lambda config: given.append(config) or 0)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return given


def accepted(line: str) -> list[str]:
    """Overrides of a line after ``finetune``, in Hydra's form."""
    command, rest = split_command([os.path.expanduser(word) for word in shlex.split(line)])
    typed = ComposingArguments(command, "").parse(rest)[1]
    return check_overrides(typed.overrides, several=typed.several)


@pytest.mark.usefixtures("composed")
@pytest.mark.parametrize("line", FIRST_GUESSES)
def test_a_first_guess_works(line: str) -> None:
    assert accepted(line) == [word.replace("HOME", os.environ["HOME"]) for word in FIRST_GUESSES[line]]


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_answered_with_the_line_to_type(line: str, composed: list[Config], capsys: Captured) -> None:
    assert main(shlex.split(line)) == 2
    said = capsys.readouterr()
    assert said.err.rstrip().endswith(f"Use: {MISTAKES[line]}")
    assert said.out == ""
    assert composed == []


@pytest.mark.usefixtures("composed")
def test_the_lines_of_the_answers_are_accepted() -> None:
    lines = [line for line in MISTAKES.values() if line.split()[1] in ("pets", "plan", "data=digits")]
    assert len(lines) > 15
    for line in lines:
        assert accepted(line.removeprefix("finetune "))


def test_a_stage_and_a_metric_that_are_misspelt_are_corrected_in_the_line(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(pets.parent)
    here = [pets.name, "weights=none", "backbone=resnet10t", "input.size=32", "logger=none"]
    for command, wrong, meant in (
        ("plan", "freeze=stem,layer5", "freeze=stem,layer4"),
        ("plan", "'schedule.phases.1.train=[layer5, head]'", "'schedule.phases.1.train=[layer4, head]'"),
        ("train", "monitor=val/accuracy", "monitor=val/acc"),
    ):
        assert main([command, *here, *shlex.split(wrong)]) == 2
        use = capsys.readouterr().err.splitlines()[-1]
        assert use == f"Use: {shlex.join(['finetune', command, *here])} {meant}"
    assert main(["plan", f"data.root={pets.name[:-1]}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"Use: finetune plan data.root={pets.name}"


def test_epochs_and_rate_of_the_whole_schedule_are_those_of_each_phase() -> None:
    each = [f"schedule.phases.{n}.epochs=5" for n in range(3)]
    rates = [f"schedule.phases.{n}.lr={(1e-3, 6e-4)[n - 1]}" for n in (1, 2)]
    whole = compose(["data=digits", "epochs=5", "lr=2e-3"])
    # the head, which is solved where it can be, has no rate of its own
    assert whole == compose(["data=digits", *each, *rates, "schedule.epochs=5", "schedule.lr=2e-3"])


def test_a_rate_of_the_whole_schedule_leaves_the_head_to_be_solved(pets: Path) -> None:
    plan = finetune.plan(pets, lr=1e-3, overrides=[*TINY])
    assert plan.phases[0].settings.solves_head
    assert [phase.settings.lr for phase in plan.phases[1:]] == [5e-4, 3e-4]


def test_lists_in_a_sweep_are_values_of_it(composed: list[Config]) -> None:
    assert main(["-m", "pets", "freeze=layer1,[stem,layer1]", "backbone=resnet50,resnet10t", "weights=none"]) == 0
    seen = [(config.freeze, config.backbone.name) for config in composed]
    assert seen == [(freeze, name) for freeze in (["layer1"], ["stem", "layer1"]) for name in ("resnet50", "resnet10t")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plan nowhere", "nowhere: no such folder. finetune plan takes key=value"),
        ("plan data=nowhere", "data='nowhere': not a choice, and no such folder or table. Choices: digits, folder"),
        ("train nowhere", "nowhere: no such folder. finetune train takes key=value"),
        ("audit nowhere", "nowhere: no such folder. finetune audit takes key=value"),
        ("init data=nowhere", "DIR='data=nowhere': no such folder or table."),
        ("evaluate nowhere", "RUN='nowhere': no such folder."),
        ("evaluate nowhere data=nowhere", "data='nowhere': not a choice, and no such folder or table."),
        ("predict nowhere x.png --output y.csv", "RUN='nowhere': no such folder."),
        ("~/nowhere", "/nowhere: no such folder"),
        ("pets data=digits", "data=digits, pets: the data is given more than once"),
        ("pets epochs=many", "epochs=many: must be a whole number."),
        ("pets epochs=0", "epochs=0: must be above 0."),
        ("pets schedule=probe lr=1", "lr=1.0: has no effect. schedule=probe solves its head"),
        ("pets schedule.phases.1.lr_slice=[1e-4,1e-3] lr=1", "schedule.phases.1 (top) sets its rates by lr_slice"),
        ("pets nonsense=1", "nonsense=1: no such key. Keys of the configuration: seed"),
        ("export run --format onxn", "--format onxn: not a choice. Choices: onnx, torch_export"),
    ],
)
def test_other_mistakes_name_the_rule(line: str, message: str, composed: list[Config], capsys: Captured) -> None:
    assert main([word.replace("~", os.environ["HOME"]) for word in shlex.split(line)]) == 2
    assert message in capsys.readouterr().err
    assert composed == []


def test_a_run_given_as_data_is_answered_with_what_runs_are_for(
    composed: list[Config], tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert main([str(tmp_path)]) == 2
    assert f"finetune evaluate {tmp_path}" in capsys.readouterr().err


def test_home_is_expanded_in_a_file_and_from_python(
    composed: list[Config], home: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.yaml").write_text("source: folder\nroot: ~/pets\n")
    (tmp_path / "all.yaml").write_text("defaults: [train, _self_]\ntrainer: {default_root_dir: ~/out}\n")
    assert main(["--config-dir", str(tmp_path), "--config-name", "all", "data=mine", "run_dir=~/run"]) == 0
    assert composed[0].data.root == str(home / "pets")
    assert composed[0].trainer["default_root_dir"] == str(home / "out")
    assert composed[0].run_dir == str(home / "run")
    words = [
        "data=manifest",
        *(f"{key}=~/a b" for key in ("data.root", "data.path", "backbone.weights", "head.weights")),
    ]
    typed, _ = FitArguments(data="~/pets", weights=Path("~/w.pth"), run_dir="~/run").config_and_objects()
    assert (typed.data.root, typed.backbone.weights, typed.run_dir) == (
        *(str(home / name) for name in ("pets", "w.pth", "run")),
    )
    assert main(["plan", *words]) == 0
    line = composed[1]
    places = (line.data.root, line.data.path, line.backbone.weights, line.head.weights)
    assert places == (str(home / "a b"),) * 4


def test_a_run_names_its_data_as_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (tmp_path / "empty/cat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["empty", "logger=none"]) == 2
    assert capsys.readouterr().err.startswith("data.root='empty': no images found.")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["schedule.epochs=2"], "schedule.epochs=2: reaches only all. head (epochs=3), top (epochs=3) set their own."),
        (["schedule=full", "schedule.lr=0.1"], "schedule.lr=0.1: has no effect. all (lr=0.0003) sets its own."),
        *(
            (["schedule=probe", f"{key}={value}"], f"{key}={value}: has no effect. probe solves its head without it.")
            for key, value in {
                "schedule.epochs": 2,
                "schedule.max_steps": 2,
                "schedule.weight_decay": 0.1,
                "schedule.gradient_clip": 1,
                "schedule.ema_decay": 0.9,
                "schedule.accumulate": 2,
                "schedule.restore": "last",
                "schedule.phases.0.patience": 2,
                "head.drop_rate": 0.5,
                "checkpoint.every_n_steps": 5,
                "compile": "on",
            }.items()
        ),
        (
            ["schedule=frozen", "schedule.layer_decay=0.5"],
            "schedule.layer_decay=0.5: has no effect. head trains only the head.",
        ),
        (
            ["schedule=frozen", "data.augment=standard"],
            "data.augment=standard: has no effect. head trains on features cached without it.",
        ),
        (
            ["schedule.lr_schedule=one_cycle", "schedule.warmup_epochs=1"],
            "schedule.warmup_epochs=1: has no effect. head, top, all warm up by lr_schedule=one_cycle.",
        ),
        (
            ["schedule=full", "schedule.phases.0.lr_slice=[1e-4,1e-3]", "schedule.phases.0.lr=1"],
            "schedule.phases.0.lr=1: has no effect. all sets its rates by lr_slice.",
        ),
        (
            ["schedule.patience=3"],
            "schedule.patience=3: reaches only all. head, top end before that many epochs.",
        ),
        (
            ["schedule=full", "schedule.carry_optimizer=true"],
            "schedule.carry_optimizer=true: has no effect. all has no phase before it.",
        ),
        (
            ["optimizer.amsgrad=true", "schedule.optimizer._target_=torch.optim.SGD"],
            "optimizer.amsgrad=true: has no effect. schedule.optimizer replaces it.",
        ),
        (["schedule=probe", "head.weights=a.safetensors"], "head.weights=a.safetensors: has no effect."),
        (["schedule=frozen", "freeze=layer1"], "freeze=layer1: has no effect."),
        (["name=mine", "run_dir=out"], "name=mine: has no effect."),
        (
            ["data.folds=3", "data.val_fraction=0.3"],
            "data.val_fraction=0.3: has no effect. It belongs to a single split",
        ),
        (
            ["data.high_depth=stretch", "data.float_range=[0,2]"],
            "data.float_range=0,2: has no effect. It belongs to data.high_depth=full.",
        ),
        (
            ["schedule=lp_ft", "data.augment=light"],
            "data.augment=light: reaches only all. probe (augment=none) sets its own.",
        ),
        (
            ["schedule.batch_size=4", "data.batch_size=8"],
            "data.batch_size=8: has no effect. schedule.batch_size replaces it.",
        ),
        (["head.hidden=3"], "head.hidden=3: has no effect. It belongs to head=mlp."),
        (["loss.focal_gamma=1"], "loss.focal_gamma=1: has no effect. It belongs to loss=focal."),
        (["schedule=probe", "epochs=3"], "epochs=3: has no effect. probe solves its head without it."),
    ],
)
def test_a_setting_that_reaches_less_than_it_seems_is_named(words: list[str], line: str) -> None:
    accepted = check_overrides(["data=digits", *words])
    found = notes(compose(accepted), values_of(accepted))
    assert any(one.startswith(line) for one in found), found


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["epochs=2"], "epochs=2: of each phase (top, all, head unless it is solved), 4 in all, 6 if it is not"),
        (
            ["schedule=lp_ft", "epochs=3"],
            "epochs=3: of each phase (all), 3 in all; probe solves the head, without epochs",
        ),
        (
            ["lr=2e-3"],
            "lr=0.002: head 0.002 unless it is solved, top 0.001, all 0.0006; the ratios of the schedule are kept",
        ),
    ],
)
def test_what_a_setting_of_the_whole_schedule_comes_to_is_said(words: list[str], line: str) -> None:
    typed = values_of(words)
    found = whole_schedule.notes(compose(["data=digits", *words]), epochs=typed.get("epochs"), lr=typed.get("lr"))
    assert [one for one in found if one.startswith(line)], found


EPOCHS = "schedule.epochs=2: reaches only all. head (epochs=3), top (epochs=3) set their own."


def test_a_setting_that_reaches_less_is_a_warning_on_standard_error(composed: list[Config], capsys: Captured) -> None:
    assert main(["pets", "schedule.epochs=2", "epochs=4"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("epochs=4: of each phase")
    assert "warning" not in said.out
    assert main(["plan", "pets", "schedule.epochs=2"]) == 0
    assert capsys.readouterr().err.startswith(f"warning: {EPOCHS}")
    assert len(composed) == 2


def test_a_setting_in_a_file_of_ones_own_is_named_and_a_packaged_one_is_not(
    composed: list[Config], tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nschedule: {epochs: 2}\ndata: {root: pets}\n")
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule/tops.yaml").write_text(
        "name: tops\nweight_decay: 0.1\nphases: [{name: top, train: [head], solver: lbfgs}]\n"
    )
    own = ["--config-dir", str(tmp_path)]
    assert main(["train", *own, "--config-name", "mine"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"warning: {EPOCHS} epochs=2 sets the whole schedule."]
    assert main(["plan", *own, "pets", "schedule=tops"]) == 0
    assert capsys.readouterr().err == (
        "warning: schedule.weight_decay=0.1: has no effect. top solves its head without it.\n"
    )
    for name in group_choices()["schedule"]:
        assert main(["plan", *own, "experiment=digits", f"schedule={name}", "name=null"]) == 0
    assert capsys.readouterr().err == ""
    assert len(composed) == 2 + len(group_choices()["schedule"])


def test_a_sweep_says_it_once(composed: list[Config], tmp_path: Path, capsys: Captured) -> None:
    words = ["pets", "seed=1,2", "schedule=full,probe", "schedule.epochs=2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert main(["-m", *words]) == 0
    assert len(composed) == 4
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "warning: schedule.epochs=2: has no effect. all (epochs=10) sets its own. epochs=2 sets the whole schedule.",
        "warning: schedule.epochs=2: has no effect. probe solves its head without it.",
    ]


def test_python_says_it_too(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    tried = [finetune.Phase(train=["head"], solver="lbfgs", weight_decay=0.1)]
    finetune.plan(pets, schedule=tried, overrides=[*TINY, "input.channels=3", "input.adapt=fold", "input.crop_pct=0.5"])
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "schedule.phases.0.weight_decay=0.1: has no effect. head solves its head without it." in told
    assert any(line.startswith("input.adapt=fold: has no effect. The images are read with 3 channels") for line in told)


def test_a_crop_of_squashed_images_is_named() -> None:
    config = InputConfig(crop_pct=0.9)
    assert unused_input(config, InputSpec(crop_mode="center")) == []
    assert unused_input(config, InputSpec(crop_mode="squash"))[0].startswith("input.crop_pct=0.9: has no effect.")


def test_fractions_are_named_where_the_data_has_its_own_splits(pets: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(pets, tmp_path / split)
    config = compose(["data=folder", f"data.root={tmp_path}", "data.val_fraction=0.3", "data.test_fraction=0.3"])
    notes = build_source(config).index.notes
    assert notes[0] == "data.val_fraction=0.3: has no effect. The data has its own validation split."
    assert not any("test_fraction" in note for note in notes)


def test_ranges_of_deep_images_are_named_where_there_are_none(pets: Path) -> None:
    words = ["data=folder", f"data.root={pets}"]
    deep = build_source(compose([*words, "data.integer_range=[0,100]"])).index.notes
    assert "data.integer_range or data.bit_depth: has no effect. No image holds integers of more than 8 bits." in deep
    stretched = build_source(compose([*words, "data.high_depth=stretch"])).index.notes
    assert "data.high_depth=stretch: has no effect. No image holds more than 8 bits." in stretched


def test_an_argument_of_python_that_reaches_nothing_is_refused(pets: Path) -> None:
    backbone = finetune.build_backbone("resnet10t", weights="none")
    for arguments, problem in (
        ({"stages": {"stem": ["conv1"]}}, "stages: only for a module of your own"),
        ({"classes": ["a", "b"]}, "classes: only for a data set of numbered classes"),
        ({"backbone": backbone, "weights": "none"}, "weights: has no effect on a Backbone"),
        ({"backbone": backbone, "overrides": ["input.mean=[0,0,0]"]}, "input.mean: has no effect on a Backbone"),
    ):
        with pytest.raises(UserError, match=problem):
            finetune.plan(pets, **arguments)


def test_settings_that_reach_all_they_name_are_not_mentioned() -> None:
    words = ["data=digits", "head=mlp", "head.hidden=3", "schedule.weight_decay=0.1", "optimizer.amsgrad=true"]
    every = ["schedule.epochs=1", *(f"schedule.phases.{number}.epochs=1" for number in range(3))]
    typed = dict.fromkeys((word.split("=")[0] for word in [*words[2:], *every]), 1)
    assert notes(compose([*words, *every]), typed) == []
    whole = ["schedule.weight_decay=0.1", "schedule.gradient_clip=1", "head.drop_rate=0.5", "data.augment=light"]
    assert notes(compose(["data=digits", "schedule=lp_ft", *whole[:3]]), values_of(whole[:3])) == []
    assert notes(compose(["data=digits", *whole]), values_of(whole)) == []


def test_an_optimizer_of_a_phase_with_a_rate_is_refused() -> None:
    with pytest.raises(UserError, match=r"schedule\.phases\.1\.optimizer\.lr: has no effect"):
        compose(["data=digits", "schedule.phases.1.optimizer={lr:0.1}"])
