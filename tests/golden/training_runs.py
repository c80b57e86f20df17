"""Runs: every preset with caches, processes and precisions, and every kind of data."""

import re
from dataclasses import replace
from functools import partial

from tests.golden.case import Case, Place, said
from tests.golden.digests import run_digests
from tests.golden.processes import Answer
from tests.golden.trained import TINY

# phases of each preset that take a number of epochs
PRESETS: dict[str, tuple[int, ...]] = {
    "frozen": (0,),
    "probe": (),
    "gradual": (0, 1, 2),
    "head_then_all": (0, 1),
    "lp_ft": (1,),
    "full": (0,),
    "norm_only": (0,),
    "gates": (0,),
}
CACHES = ("auto", "off", "2")
PRECISIONS = ("32-true", "bf16-mixed")
_COLOUR = ("data=folder", "data.root={work}/pets", *TINY)
# resnet10t has no gates
_GATED = ("backbone=gated", "backbone.name=cifar_resnet8")


def words_of(preset: str) -> tuple[str, ...]:
    """Overrides of a short run by a preset."""
    network = _GATED if preset == "gates" else ()
    return (*_COLOUR, *network, f"schedule={preset}", *(f"schedule.phases.{n}.epochs=2" for n in PRESETS[preset]))


def train(words: tuple[str, ...], place: Place, *, processes: int = 1) -> dict[str, str]:
    """Train, and keep what was said and written."""
    answer = place.run(*words, "run_dir=run", processes=processes)
    if processes > 1:
        # the processes share a cache, and which of them comes first to an image is chance
        answer = replace(answer, out=re.sub(r"(cached \w+ activations): \d+ computed, \d+ reused", r"\1", answer.out))
    return _kept(answer, place)


def _kept(answer: Answer, place: Place) -> dict[str, str]:
    kept = said(answer)
    return {**kept, **run_digests(place.folder / "run", place.places)} if answer.status == 0 else kept


def _matrix() -> list[Case]:
    """All pairs of a preset, a cache, a number of processes and a precision."""
    two = ("trainer.devices=2", "trainer.strategy=ddp")
    cases = []
    for i, preset in enumerate(PRESETS):
        for j, cache in enumerate(CACHES):
            precision = PRECISIONS[(i + j) % 2]
            words = (*words_of(preset), f"schedule.cache={cache}", f"trainer.precision={precision}")
            name = f"{preset}, cache {cache}, {precision}"
            cases.append(Case("schedules", name, partial(train, words), quick=j == i % 3))
        cache, precision = CACHES[(i + 1) % 3], PRECISIONS[i // 2 % 2]
        words = (*words_of(preset), *two, f"schedule.cache={cache}", f"trainer.precision={precision}")
        name = f"{preset}, cache {cache}, {precision}, two processes"
        cases.append(Case("processes", name, partial(train, words, processes=2), quick=preset == "gradual"))
    return cases


def _kinds_of_data() -> list[Case]:
    short = ("schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=1")
    grey = ("data=folder", "data.root={work}/grey", *TINY, *short, "input.channels=1")
    several = ("data=manifest", "data.path={work}/labels/table.csv", "data.label_separator=|", *TINY, *short)
    digits = tuple(f"schedule.phases.{n}.epochs=1" for n in range(3))
    offline = ("data.limit_per_class=12", "data.num_workers=0", "logger=none", "trainer.precision=32-true")
    regular: tuple[str, ...] = (
        "loss.name=focal",
        "loss.class_weights=balanced",
        "schedule.mixup=0.2",
        "schedule.ema_decay=0.9",
    )
    regular += ("schedule.accumulate=2", "schedule.gradient_clip=1.0", "schedule.label_smoothing=0.1")
    rates = ("schedule.phases.1.lr_slice=[1e-4,1e-3]", "schedule.lr_schedule=one_cycle", "schedule.warmup_epochs=0.5")
    flawed = ("data=folder", "data.root={work}/flawed", *TINY, *short, "data.on_unreadable=skip", "data.balanced=true")
    trials = ("schedule=frozen", "schedule.phases.0.epochs=2", "schedule.phases.0.lr_trials=[1e-3,1e-2]")
    kinds: dict[str, tuple[tuple[str, ...], bool]] = {
        "digits": (("experiment=digits", *digits, *offline, "report=false"), False),
        "a folder with splits": (("data=folder", "data.root={work}/split", *TINY, *short), True),
        "a folder read by two workers": ((*_COLOUR, *short, "data.num_workers=2"), False),
        "folds": ((*_COLOUR, *short, "data.folds=3", "data.fold=1"), True),
        "grey, fold": ((*grey, "input.adapt=fold"), True),
        "grey, expand": ((*grey, "input.adapt=expand"), False),
        "grey, sum": ((*grey, "input.adapt=sum"), False),
        "grey, reinit": ((*grey, "input.adapt=reinit", "schedule=full", "schedule.phases.0.epochs=1"), False),
        "several labels": (several, True),
        "mixed and regularised": ((*_COLOUR, *short, *regular), True),
        "rates by slice": ((*_COLOUR, *short, *rates), True),
        "several rates": ((*_COLOUR, *trials), True),
        "flawed and balanced": (flawed, True),
        "cosine head, SGD": ((*_COLOUR, *short, "head=cosine", "optimizer=sgd", "freeze=[stem]"), True),
        "MLP head, seed 3": ((*_COLOUR, *short, "head=mlp", "head.drop_rate=0.2", "seed=3"), False),
    }
    return [Case("data", name, partial(train, words), quick) for name, (words, quick) in kinds.items()]


def _launched(place: Place) -> dict[str, str]:
    """Let Lightning start the second process, as it does for a user."""
    words = (*words_of("frozen"), "trainer.devices=2", "trainer.strategy=ddp", "schedule.phases.0.epochs=1")
    return _kept(place.run_afresh(*words, "run_dir=run"), place)


def _plan(words: tuple[str, ...], place: Place) -> dict[str, str]:
    return said(place.run("plan", *words))


def _audit(place: Place) -> dict[str, str]:
    answer = place.run("audit", "data=folder", "data.root={work}/flawed", "data.on_unreadable=skip", "output=audit")
    return {**said(answer), "audit.json": place.text("audit/audit.json"), "written": place.written()}


def cases() -> list[Case]:
    """All of them."""
    plans: dict[str, tuple[str, ...]] = {
        "frozen stages": (*words_of("gradual"), "freeze=[stem,layer1]", "schedule.phases.1.stage_lr={layer4: 0.25}"),
        "norms": words_of("norm_only"),
        "gates": words_of("gates"),
        "probe": words_of("lp_ft"),
    }
    return [
        *_matrix(),
        Case("processes", "started by Lightning", _launched, quick=False),
        *_kinds_of_data(),
        *(Case("plan", name, partial(_plan, words)) for name, words in plans.items()),
        Case("audit", "a flawed folder", _audit),
    ]
