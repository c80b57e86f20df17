import functools
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from finetune.data.audit import audit
from finetune.data.audit_text import as_text, short
from finetune.data.image_folder import pictures_left_out
from finetune.data.sources.digits import digits_source
from finetune.data.sources.folder import folder_source
from finetune.data.sources.manifest import manifest_source
from tests.data.folders import write_folder, write_image
from tests.data.raw_formats import exif

CLASSES = [f"class {number}" for number in range(10)]


def scene(number: int) -> Image.Image:
    """A picture with shapes of its own, 64 x 48."""
    coarse = np.random.default_rng(number).integers(20, 236, (7, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)


def data_with_faults(root: Path) -> dict[str, set[str]]:
    """2,000 pictures in given splits, with twelve kinds of faults; what the audit must find, by kind."""
    number = 0
    for split, images in (("train", 140), ("val", 30), ("test", 30)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for _ in range(images):
                number += 1
                scene(number).save(folder / f"{number:05}.bmp")

    def path(number: int) -> Path:
        return next(root.rglob(f"{number:05}.bmp"))

    # 1 unreadable: cut short, and empty
    cut = path(3)
    cut.write_bytes(cut.read_bytes()[:500])
    path(300).write_bytes(b"")
    # 2 copies within a split and class
    shutil.copy(path(10), root / "train" / CLASSES[0] / "copy.bmp")
    # 3 copies on both sides
    shutil.copy(path(20), root / "test" / CLASSES[0] / "leak.bmp")
    # 4 copies under two labels
    shutil.copy(path(30), root / "train" / CLASSES[5] / "conflict.bmp")
    # 5 the same scene, smaller, brighter and compressed, on both sides
    again = ImageEnhance.Brightness(scene(40).resize((56, 42))).enhance(1.06)
    again.save(root / "val" / CLASSES[0] / "again.jpg", quality=80)
    # 6 a single colour
    Image.new("RGB", (64, 48), (9, 90, 9)).save(path(50))
    # 7 tiny
    scene(60).resize((8, 6)).save(path(60))
    # 8 long
    scene(70).resize((300, 40)).save(path(70))
    # 9 another format than the name says
    scene(80).save(path(80), "PNG")
    # 10 pictures that are not read
    (root / "train" / CLASSES[1] / "phone.psd").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    scene(90_000).save(root / "train" / CLASSES[1] / "no suffix", "JPEG")
    # 11 one class far smaller than the others
    for file in sorted((root / "train" / CLASSES[9]).iterdir())[:130]:
        file.unlink()
    # 12 a class that one split lacks
    for file in (root / "val" / CLASSES[8]).iterdir():
        file.unlink()

    def named(split: str, name: str, file: str) -> str:
        return f"{split}: {split}/{name}/{file}"

    first = CLASSES[0]
    return {
        "unreadable": {f"train/{first}/00003.bmp", f"train/{CLASSES[2]}/00300.bmp"},
        "duplicates": {named("train", first, "00010.bmp"), named("train", first, "copy.bmp")},
        "leakage": {named("train", first, "00020.bmp"), named("test", first, "leak.bmp")},
        "conflicting labels": {named("train", first, "00030.bmp"), named("train", CLASSES[5], "conflict.bmp")},
        "near-duplicates": {named("train", first, "00040.bmp"), named("val", first, "again.jpg")},
        "constant": {named("train", first, "00050.bmp")},
        "tiny": {named("train", first, "00060.bmp")},
        "long": {named("train", first, "00070.bmp")},
        "other format than the name says": {named("train", first, "00080.bmp")},
        "pictures not read": {
            str(root / "train" / CLASSES[1] / "phone.psd"),
            str(root / "train" / CLASSES[1] / "no suffix"),
        },
        "imbalance": set(),
        "classes missing from val": {CLASSES[8]},
    }


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    root = tmp_path_factory.mktemp("faulty")
    return root, data_with_faults(root)


@functools.cache
def audit_of(root, **options):
    source = folder_source(root=str(root), on_unreadable="skip", **options)
    return audit(source, left_out=pictures_left_out(str(root)))


def bare(text):
    """A file as an audit lists it, less the reason or format after it."""
    return re.sub(r"(\.bmp): .*", r"\1", text)


def test_the_audit_finds_twelve_kinds_of_planted_faults_and_nothing_else(faulty):
    root, expected = faulty
    found = {
        finding.kind: {bare(file) for group in finding.files for file in group} for finding in audit_of(root).findings
    }
    # the folder's own suffixes that are no images are counted as well; the planted pictures are the only ones
    assert found.pop("other files") == set()
    assert found == expected
    assert len(expected) == 12


def test_errors_come_first_and_make_the_data_wrong(faulty):
    result = audit_of(faulty[0])
    assert [finding.kind for finding in result.findings if finding.severity == "error"] == [
        "unreadable",
        "conflicting labels",
        "leakage",
    ]
    assert result.wrong
    assert [finding.severity for finding in result.findings] == sorted(
        (finding.severity for finding in result.findings), key=("error", "warning", "note").index
    )


def test_the_text_names_every_finding_with_its_remedy(faulty):
    result = audit_of(faulty[0])
    text = as_text(result)
    for finding in result.findings:
        assert finding.text in text
        assert finding.severity == "note" or finding.remedy in text
    assert "ERROR: unreadable: 2 files." in text
    assert "train: train/class 0/00020.bmp = test: test/class 0/leak.bmp" in text
    lines = text.splitlines()
    assert lines[0].split() == ["class", "train", "val", "test", "all"]
    assert lines[9].split() == ["class", "8", "140", "0", "30", "170"]


def test_the_short_form_counts_images_and_names_one_example_each(faulty):
    lines = short(audit_of(faulty[0]))
    assert lines[0].startswith("1,842 images in 10 classes: train 1,270, val 271, test 301.")
    assert sum(line.startswith("ERROR") for line in lines) == 3
    assert "and 1 more" in next(line for line in lines if "unreadable" in line)


def test_the_audit_is_plain_json(faulty):
    result = audit_of(faulty[0])
    assert json.loads(json.dumps(result.to_dict()))["counts"] == result.counts


def test_a_clean_folder_has_no_findings(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(20):
            scene(number + 1000 * (name == "b")).save(tmp_path / name / f"{number}.png")
    result = audit_of(tmp_path)
    assert result.findings == ()
    assert not result.wrong
    assert "Nothing wrong was found." in as_text(result)
    assert result.sizes == {"width": [64, 64, 64], "height": [48, 48, 48]}
    assert result.modes == {"PNG RGB": 40}


def test_copies_in_a_folder_without_splits_never_leak(tmp_path):
    write_folder(tmp_path, {"a": 20, "b": 20})
    for number, path in enumerate(sorted((tmp_path / "a").iterdir())[:10]):
        shutil.copy(path, tmp_path / "a" / f"copy {number}.png")
    kinds = {finding.kind for finding in audit_of(tmp_path).findings}
    assert kinds == {"duplicates"}


def test_what_is_good_to_know_is_noted_without_alarm(tmp_path):
    write_folder(tmp_path, {"a": 6, "b": 6})
    pixels = np.random.default_rng(0).integers(0, 65536, (10, 12)).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a" / "deep.png")
    scene(1).resize((12, 10)).save(tmp_path / "a" / "turned.jpg", exif=exif(6))
    frames = [scene(number).resize((12, 10)).quantize(8) for number in (2, 3)]
    frames[0].save(tmp_path / "b" / "animated.gif", save_all=True, append_images=frames[1:])
    result = audit_of(tmp_path)
    assert {(finding.kind, finding.severity) for finding in result.findings} == {
        ("high bit depth", "note"),
        ("turned", "note"),
        ("several pictures", "note"),
    }
    assert result.modes == {"PNG RGB": 12, "PNG I;16": 1, "JPEG RGB": 1, "GIF P": 1}


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_sizes_are_those_of_upright_pictures(tmp_path, kind):
    write_folder(tmp_path, {"a": 3, "b": 3})
    for number, path in enumerate(tmp_path.glob("*/*")):
        scene(number).resize((30, 20)).save(path, kind, exif=exif(6))
    assert audit_of(tmp_path).sizes == {"width": [20] * 3, "height": [30] * 3}


def test_data_in_memory_can_be_audited_too():
    result = audit(digits_source())
    assert result.images == 1797
    assert result.sizes["width"] == [8, 8, 8]
    assert not result.wrong


def test_many_classes_are_shown_by_their_largest_and_smallest(tmp_path):
    write_folder(tmp_path, {f"c{number:02}": 3 + number % 3 for number in range(30)})
    text = as_text(audit_of(tmp_path))
    assert "... 14 classes between these" in text
    assert len(io.StringIO(text).readlines()) < 30


def test_an_image_of_several_classes_is_counted_once(tmp_path):
    for number in range(12):
        write_image(tmp_path / f"{number}.png", number)
    rows = [f"{number}.png,{['a|b', 'a', 'b', ''][number % 4]}" for number in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    found = audit(manifest_source(path=str(tmp_path / "t.csv"), label_separator="|"), look_alikes=False)
    assert sum(found.split_images.values()) == found.images == 12
    assert as_text(found).splitlines()[3].split() == ["all", *map(str, found.split_images.values()), "12"]


def test_what_forbids_training_is_reported_with_everything_else(tmp_path):
    write_folder(tmp_path, {"a": 6, "b": 6, "empty": 0, "damaged": 0, "phone": 0, "lost+found": 0})
    (tmp_path / "damaged" / "1.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "phone" / "1.psd").write_bytes(b"x")
    (tmp_path / "b" / "copy.png").write_bytes(next((tmp_path / "a").iterdir()).read_bytes())
    source = folder_source(root=str(tmp_path), on_unreadable="skip", use="audit")
    result = audit(source, left_out=pictures_left_out(str(tmp_path)))
    found = {finding.kind: [file for group in finding.files for file in group] for finding in result.findings}
    assert found["empty classes"] == ["damaged", "empty", "phone (holds 1 x *.psd)"]
    assert found["pictures not read"] == [str(tmp_path / "phone" / "1.psd")]
    assert found["unreadable"][0].startswith("damaged/1.jpg: ")
    assert len(found["conflicting labels"]) == 2
    assert result.wrong


def test_a_data_set_of_which_nothing_can_be_read_is_audited(tmp_path):
    write_folder(tmp_path, {"a": 0, "b": 0})
    for name in "ab":
        (tmp_path / name / "1.jpg").write_bytes(b"\xff\xd8\xff")
    result = audit(folder_source(root=str(tmp_path), on_unreadable="skip", use="audit"))
    assert (result.images, {finding.kind for finding in result.findings}) == (0, {"unreadable", "empty classes"})


def test_class_names_that_differ_only_in_capitals_or_blanks_are_a_warning(tmp_path):
    write_folder(tmp_path, {"hot dog": 4, "Hotdog": 4, "hot  dog": 4, "cat": 4})
    finding = next(one for one in audit_of(tmp_path).findings if one.kind == "class names alike")
    assert (finding.severity, len(finding.files)) == ("warning", 3)


def test_a_run_starts_with_its_classes_channels_and_bits(tmp_path):
    write_folder(tmp_path, {f"class {number}": 4 for number in range(12)})
    Image.fromarray(np.arange(120, dtype=np.uint16).reshape(10, 12) * 500).save(tmp_path / "class 0" / "deep.png")
    assert short(audit_of(tmp_path))[1:3] == [
        f"classes: {', '.join(f'class {number}' for number in range(10))} and 2 more.",
        "channels: colour of 8 bits 48, grey of 16 bits 1.",
    ]


def test_the_audit_says_where_too_many_pictures_are_compared_in_part(tmp_path, monkeypatch):
    root = write_folder(tmp_path, {"a": 4, "b": 4})
    for path in root.rglob("*.png"):
        Image.open(path).resize((40, 40)).save(path)
    whole = {finding.kind for finding in audit(folder_source(root=str(root))).findings}
    monkeypatch.setattr("finetune.data.audit.MOST_PICTURES", 7)
    (found,) = [one for one in audit(folder_source(root=str(root))).findings if one.kind == "near-duplicates in part"]
    assert "near-duplicates in part" not in whole
    assert (
        "too many images to compare all pairs (more than 7): only pairs in different splits were compared" in found.text
    )
    assert found.text.endswith(": 8 pictures")
