"""The digests are the same twice over, and a change of one pixel, one word or one weight is named."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.golden import decoding
from tests.golden.case import Case
from tests.golden.command_lines import mistake
from tests.golden.compare import differences
from tests.golden.processes import warm_up
from tests.golden.side import Digests, all_cases, digests_of
from tests.golden.training_runs import CACHES, PRECISIONS, PRESETS, train, words_of

FEW = ("help/plan", "mistakes/no such choice of data", "decode/grey", "schedules/frozen, cache auto, 32-true")


def digests(work: Path, cases: list[Case]) -> Digests:
    complaints: list[str] = []
    found = digests_of(cases, work, complaints.append)
    assert not [line for line in complaints if "FAILED" in line]
    return found


@pytest.fixture(scope="module")
def few() -> list[Case]:
    warm_up()
    cases = [case for case in all_cases() if f"{case.section}/{case.name}" in FEW]
    assert len(cases) == len(FEW)
    return cases


@pytest.fixture(scope="module")
def before(few: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Digests:
    return digests(tmp_path_factory.mktemp("golden") / "before", few)


def test_the_same_program_twice_has_the_same_digests(before: Digests, few: list[Case], tmp_path: Path) -> None:
    after = digests(tmp_path / "after", few)
    assert differences(before, after) == []
    run = after["schedules/frozen, cache auto, 32-true"]
    assert run["status"] == "0"
    assert {"plan.json", "split.csv", "results.json", "predictions.csv", "model/model.safetensors"} <= set(run)


def test_a_changed_pixel_a_changed_word_and_another_seed_are_named(
    before: Digests, few: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = decoding.decoder()

    def one_level_brighter(path: str, **options: object) -> object:
        image = decode(path, **options)
        if path.endswith("png_grey.png"):
            image[0, 0, 0] ^= 1
        return image

    monkeypatch.setattr(decoding, "decoder", lambda: one_level_brighter)
    other = {
        "mistakes": partial(mistake, ("data=folde",)),
        "schedules": partial(train, (*words_of("frozen"), "schedule.cache=auto", "seed=1")),
    }
    changed = [replace(case, outcome=other.get(case.section, case.outcome)) for case in few]
    named = {line for line in differences(before, digests(tmp_path / "after", changed)) if not line.startswith(" ")}
    assert {line for line in named if line.startswith(("help/", "decode/"))} == {"decode/grey: png_grey.png"}
    assert "mistakes/no such choice of data: stderr" in named
    assert {"split.csv", "predictions.csv", "model/model.safetensors"} <= {line.split(": ")[1] for line in named}


def test_all_pairs_of_preset_cache_processes_and_precision_are_among_the_cases() -> None:
    names = [case.name for case in all_cases() if case.section in ("schedules", "processes")]
    settings = [list(PRESETS), [f"cache {cache}" for cache in CACHES], list(PRECISIONS)]
    for at, first in enumerate(settings):
        for second in settings[at + 1 :]:
            for one in first:
                for other in second:
                    assert [name for name in names if one in name.split(", ") and other in name.split(", ")], (
                        one,
                        other,
                    )
        for one in first:
            assert [name for name in names if one in name.split(", ") and name.endswith("two processes")], one
