"""Help of every command, and what is answered to mistakes."""

from functools import partial

from finetune.cli import COMMANDS
from tests.golden.case import Case, Place, said
from tests.golden.trained import TINY

_PLAN = ("plan", "data=folder", "data.root={work}/pets", *TINY)

# by name: what a person may type wrongly
MISTAKES: dict[str, tuple[str, ...]] = {
    "no such command": ("frobnicate",),
    "a misspelt command": ("trian", "data=digits"),
    "an override without a value": ("plan", "digits"),
    "no such option": ("plan", "--quick"),
    "an option without its value": ("plan", "data=digits", "--config-dir"),
    "no such group": ("data=digits", "bakbone=resnet18"),
    "no such key": ("data=digits", "backbone.wieghts=none"),
    "no such key of the configuration": ("data=digits", "sed=1"),
    "no such key of a phase": ("data=digits", "schedule.phases.1.tran=[head]"),
    "several mistakes": ("data=digits", "head=lineer", "sed=1", "schedule.phases.0.lrr=1"),
    "no such choice of data": ("data=foldr",),
    "no such backbone": ("data=digits", "backbone=resnet19"),
    "no such schedule": ("data=digits", "schedule=gradul"),
    "no such head": ("data=digits", "head=cosin"),
    "no such sweep": ("data=digits", "sweep=joblb"),
    "a group with nothing": ("data=digits", "head=null"),
    "not an override": ("data=digits", "name=a b=c"),
    "no epochs": ("data=digits", "schedule.epochs=0"),
    "negative epochs of a phase": ("data=digits", "schedule.phases.0.epochs=-3"),
    "a word for a number": ("data=digits", "data.batch_size=many"),
    "a list for a number": ("data=digits", "seed=[1,2]"),
    "no phase of that number": ("data=digits", "schedule.phases.9.lr=1"),
    "no phases": ("data=digits", "schedule.phases=[]"),
    "a phase that trains nothing": ("data=digits", "schedule.phases.0.train=[]"),
    "two phases of one name": ("data=digits", "schedule.phases.0.name=all"),
    "a phase named like a path": ("data=digits", "schedule.phases.0.name=a/b"),
    "a rate of 0": ("data=digits", "schedule.lr=0"),
    "smoothing above 1": ("data=digits", "schedule.label_smoothing=2"),
    "an average that never moves": ("data=digits", "schedule.ema_decay=1"),
    "no such course of the rate": ("data=digits", "schedule.lr_schedule=cosin"),
    "no such mode of normalisation": ("data=digits", "schedule.batch_norm=frozen"),
    "no such kind of parameters": ("data=digits", "schedule.parameters=norm"),
    "no such cache": ("data=digits", "schedule.cache=maybe"),
    "a slice of one rate": ("data=digits", "schedule.phases.0.lr_slice=[1e-4]"),
    "two ways to set rates": ("data=digits", "schedule.lr_slice=[1e-4,1e-3]", "schedule.stage_lr.head=1e-3"),
    "splits that take everything": ("data=digits", "data.val_fraction=0.6", "data.test_fraction=0.5"),
    "no such adaptation": ("data=digits", "input.adapt=fol"),
    "no such loss": ("data=digits", "loss.name=focl"),
    "no such class weights": ("data=digits", "loss.class_weights=balance"),
    "all features dropped": ("data=digits", "head.drop_rate=1"),
    "several values without -m": ("data=digits", "seed=1,2"),
    "no folder given": ("data=folder",),
    "no such folder": ("data=folder", "data.root=does/not/exist"),
    "a folder without images": ("data=folder", "data.root={work}/nothing"),
    "no table given": ("data=manifest",),
    "no such table": ("data=manifest", "data.path=labels.csv"),
    "no such column": ("data=manifest", "data.path={work}/labels/table.csv", "data.label_column=class", *TINY),
    "a damaged image": ("plan", "data=folder", "data.root={work}/flawed", *TINY, "data.on_unreadable=error"),
    "no such weights": ("data=digits", "backbone.weights=none.pth"),
    "no such configuration folder": ("--config-dir", "nowhere", "data=digits"),
    "no such stage to train": (*_PLAN, "schedule.phases.1.train=[layer5]"),
    "no such stage to freeze": (*_PLAN, "freeze=[layr1]"),
    "no such stage to rate": (*_PLAN, "schedule.phases.1.stage_lr={layer9: 1e-3}"),
    "everything frozen": (*_PLAN, "freeze=[all]"),
    "no such network": (*_PLAN, "backbone.name=resnet10x"),
    "no such augmentation": (*_PLAN, "data.augment=strong-ish"),
    "a new stem while it is frozen": (*_PLAN, "input.channels=1", "input.adapt=reinit"),
    "no such optimizer": (*_PLAN, "optimizer._target_=torch.optim.Adamw"),
    "no such argument of the trainer": (*_PLAN[1:], "trainer.devicess=2", "schedule=frozen"),
    "a run folder that is there": (*_PLAN[1:], "run_dir={work}/pets"),
    "predict without images": ("predict", "nowhere"),
    "predict without a run": ("predict", "nowhere", "x.png", "--output", "y.csv"),
    "serve without a run": ("serve", "nowhere", "--port", "0"),
    "no such port": ("serve", "nowhere", "--port", "70000"),
    "export without a run": ("export", "nowhere", "--format", "web"),
    "no such format": ("export", "nowhere", "--format", "tflite"),
    "resume without a run": ("resume",),
    "resume no such run": ("resume", "nowhere"),
    "evaluate no such run": ("evaluate", "nowhere"),
    "report no such run": ("report", "nowhere"),
    "embed no such run": ("embed", "nowhere", "--output", "e.npz"),
    "search no such file": ("search", "nowhere.npz", "x.png"),
    "cluster no such file": ("cluster", "nowhere.npz"),
    "classify no such file": ("classify", "nowhere.npz"),
    "no such task of the cache": ("cache", "lists"),
    "no such rung": ("ladder", "data=digits", "--rungs", "prob"),
    "a sweep of rates of no length": ("lr-find", "data=digits", "--steps", "0"),
}
# these build the network or read the data first
_SLOW = ("no such argument of the trainer",)


def _help(words: tuple[str, ...], place: Place) -> dict[str, str]:
    return said(place.run(*words))


def mistake(words: tuple[str, ...], place: Place) -> dict[str, str]:
    """Answer a mistake, and see whether a file was written."""
    return {**said(place.run(*words)), "written": place.written()}


def cases() -> list[Case]:
    """All of them."""
    helps = [("overview", ("--help",)), ("nothing", ()), *((name, (name, "--help")) for name in COMMANDS)]
    return [
        *(Case("help", name, partial(_help, words)) for name, words in helps),
        *(Case("mistakes", name, partial(mistake, words), name not in _SLOW) for name, words in MISTAKES.items()),
    ]
