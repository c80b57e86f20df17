"""How folders of every shape are read: each case is a tree of empty files and what the listing makes of it."""

from collections import Counter

import pytest

from finetune.data.image_folder import list_folders, list_training_folders, pictures_left_out
from finetune.data.index import SPLITS
from finetune.errors import UserError
from finetune.inference.image_paths import find_images


def plant(root, tree):
    """Make a tree from ``path`` or ``path*N`` (N images), ``path/`` (an empty folder) and ``link -> target``."""
    for line in tree.split():
        if "->" in line:
            link, target = line.split("->")
            (root / link).parent.mkdir(parents=True, exist_ok=True)
            (root / link).symlink_to(root / target)
        elif line.endswith("/"):
            (root / line).mkdir(parents=True, exist_ok=True)
        else:
            path, _, times = line.partition("*")
            for number in range(int(times or 1)):
                file = root / (f"{path}/{number}.jpg" if times else path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    return str(root)


def counts(listing):
    """Images by split and class, such as ``{"train cat": 2}``; the split is left out where the data gives none."""
    names = ("", *(f"{split} " for split in SPLITS))
    pairs = zip(listing.splits.tolist(), listing.targets.tolist(), strict=True)
    return dict(Counter(names[split + 1] + listing.classes[target] for split, target in pairs))


def kinds(listing):
    return {problem.kind for problem in listing.problems if problem.severity != "note"}


SPLIT_SPELLINGS = [
    "train val test",
    "Training Validation Testing",
    "TRAIN VALID TEST",
    "training validation evaluation",
    "train dev eval",
    "train validate holdout",
    "train_set val_set test_set",
    "trainset valset testset",
    "train-images val-images test-images",
    "TrainData ValData TestData",
    "seg_train seg_val seg_test",
    "train2017 val2017 test2017",
    "1_train 2_val 3_test",
    "birds_train birds_dev birds_test",
    "trn vld tst",
    "train eval test",
    "Images.train Images.valid Images.test",
]


@pytest.mark.parametrize("names", SPLIT_SPELLINGS)
def test_splits_in_every_spelling_are_splits(tmp_path, names):
    train, val, test = names.split()
    root = plant(tmp_path, f"{train}/cat*3 {train}/dog*2 {val}/cat*1 {test}/dog*1")
    assert counts(list_training_folders(root)) == {"train cat": 3, "train dog": 2, "val cat": 1, "test dog": 1}


READ = {
    "classes": ("cat*2 dog*1", {"cat": 2, "dog": 1}),
    "classes named like splits that hold images": ("train*2 plane*1", {"train": 2, "plane": 1}),
    "words that only contain a split's": ("steam_train*2 test_tube*1", {"steam_train": 2, "test_tube": 1}),
    "valid and invalid": ("valid*1 invalid*1", {"valid": 1, "invalid": 1}),
    "numbered trains": ("train1*1 train2*1", {"train1": 1, "train2": 1}),
    "folders below a class that has images": ("cat*1 cat/may*2 dog*1", {"cat": 3, "dog": 1}),
    "one folder for the images of each class": ("cat/images*2 dog/images*1", {"cat": 2, "dog": 1}),
    "a folder named like a suffix": ("cat/png*2 dog/jpg*1", {"cat": 2, "dog": 1}),
    "a folder with a suffix": ("cat/set.png*2 dog*1", {"cat": 2, "dog": 1}),
    "a class with a suffix": ("cat.png*2 dog*1", {"cat.png": 2, "dog": 1}),
    "splits below classes": (
        "cat/train*2 cat/test*1 dog/train*1 dog/test*1",
        {"train cat": 2, "test cat": 1, "train dog": 1, "test dog": 1},
    ),
    "splits twice": (
        "seg_train/seg_train/a*1 seg_train/seg_train/b*2 seg_test/seg_test/a*1 seg_pred/seg_pred*4",
        {"train a": 1, "train b": 2, "test a": 1},
    ),
    "images below splits": ("train/images/a*1 train/images/b*2 val/images/a*1", {"train a": 1, "train b": 2, "val a": 1}),
    "a test split without classes": ("train/a*1 train/b*1 test*5", {"train a": 1, "train b": 1}),
    "an empty split": ("train/a*1 train/b*1 val/", {"train a": 1, "train b": 1}),
    "unlabelled images": ("train/a*1 train/b*1 unlabeled*3", {"train a": 1, "train b": 1}),
    "a folder beside two splits": ("train/a*1 train/b*1 val/a*1 extra*3", {"train a": 1, "train b": 1, "val a": 1}),
    "masks beside splits": (
        "train/a*1 train/b*1 test/a*1 train_masks*9 test_masks*9",
        {"train a": 1, "train b": 1, "test a": 1},
    ),
    "a stray image in train": ("train/x.jpg train/a*1 train/b*1 val/a*1", {"train a": 1, "train b": 1, "val a": 1}),
    "stray images in all splits": (
        "train/x.jpg train/a*1 train/b*1 test/y.jpg test/a*1",
        {"train a": 1, "train b": 1, "test a": 1},
    ),
    "a stray image beside the classes of a split twice": (
        "train/train/x.jpg train/train/a*1 train/train/b*2 test/images/y.jpg test/images/a*1",
        {"train a": 1, "train b": 2, "test a": 1},
    ),
    "a stray image beside the splits of a class": (
        "cat/x.jpg cat/train*2 cat/test*1 dog/train*1 dog/test*1",
        {"train cat": 2, "test cat": 1, "train dog": 1, "test dog": 1},
    ),
    "a folder of texts beside train": ("train/a*1 train/b*1 docs/x.txt", {"train a": 1, "train b": 1}),
    "system folders": ("a*1 b*1 a/@eaDir*1 __MACOSX/a*1 .git*1 lost+found/ b/.ipynb_checkpoints*2", {"a": 1, "b": 1}),
    "a linked class": ("a*1 .store/b*2 b->.store/b", {"a": 1, "b": 2}),
    "two links to one folder": ("a*1 .store/b*2 b->.store/b c->.store/b", {"a": 1, "b": 2, "c": 2}),
    "a link upwards": ("a*1 b*1 a/up->. c->.", {"a": 1, "b": 1}),
    "a linked image": ("a*1 b*1 b/1.jpg->a/0.jpg", {"a": 1, "b": 2}),
    "other suffixes": ("a/1.jfif a/2.JPE a/3.TIF b/1.webp b/2.Jpeg b/3.pjpeg", {"a": 3, "b": 3}),
    "names composed in two ways": (
        "train/caf\u00e9*1 train/tea*1 val/cafe\u0301*1",
        {"train caf\u00e9": 1, "train tea": 1, "val caf\u00e9": 1},
    ),
    "capitals in a split": ("Train/a*1 Train/b*1 TEST/a*1", {"train a": 1, "train b": 1, "test a": 1}),
    "data sets with other classes": ("pets/cat*1 pets/dog*1 cars/vw*1 cars/bmw*1", {"pets": 2, "cars": 2}),
    "deep folders": ("a/x/y/z*2 b*1", {"a": 2, "b": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_a_folder_is_read_as_a_person_would(tmp_path, case):
    tree, expected = READ[case]
    assert counts(list_training_folders(plant(tmp_path, tree))) == expected


REFUSED = {
    "folds": ("fold1/a*1 fold1/b*1 fold2/a*1 fold2/b*1", "two ways.*data.root=.*fold1.*data.layout=classes"),
    "parts": ("north/a*1 north/b*1 south/a*1 south/b*1", "two ways.*south hold few images or none.*share the folders a, b"),
    "parts with a stray image each": (
        "siteA*1 siteA/cat*2 siteA/dog*2 siteB*1 siteB/cat*2 siteB/dog*2",
        "two ways.*siteA, siteB.*share the folders cat, dog.*data.layout=classes",
    ),
    "parts with one stray image in a split": ("train/x*1 train/x/a*1 train/x/b*1 train/y/a*1 train/y/b*1", "data.layout=splits"),
    "data sets with splits": ("x/train/a*1 x/train/b*1 y/train/a*1 y/train/b*1 y/test/a*1", "two ways.*share the folders train"),
    "images and masks": ("images/a*1 images/b*1 masks/a*1 masks/b*1", "two ways"),
    "years below classes": ("cat/2020*1 cat/2021*1 dog/2020*1", "two ways"),
    "parts in a split": ("train/x/a*1 train/x/b*1 train/y/a*1 train/y/b*1", "two ways.*data.layout=splits"),
    "classes beside a train folder": (
        "train/steam*1 train/diesel*1 car*1 plane*1",
        "two ways.*data.layout=classes.*data.layout=splits",
    ),
    "deep classes beside a train folder": ("train/steam*1 train/diesel*1 car/vw*1", "two ways"),
    "a class train with folders beside others": ("train*1 train/may*2 plane*1", "two ways.*data.layout=classes"),
    "a folder above": ("archive/cat*1 archive/dog*1", "data.root=.*/archive"),
    "a folder above the splits": ("data/train/a*1 data/train/b*1 data/test/a*1", "data.root=.*/data"),
    "splits that hold images": ("train*3 val*2", "train/ holds no class folder.*data.layout=classes"),
    "no train": ("val/a*1 test/a*1", "found only test, val"),
    "two folders for one split": ("train/a*1 train/b*1 val/a*1 valid/a*1", "Found val and valid. Keep one"),
    "test and testing": ("train/a*1 train/b*1 test/a*1 testing/a*1", "Found test and testing"),
    "one class": ("a*2", "Found only 'a'"),
    "an empty class": ("a*1 b*1 c/", "Classes without one: c. Add"),
    "a class of what is not read": ("a*1 b*1 c/1.psd c/2.psd c/n.txt", r"one: c \(holds 2 x \*.psd, 1 x \*.txt\)"),
    "nothing that is read": ("a/1.psd a/2.psd b/x.pdf", r"no images found.*It holds 2 x \*.psd, 1 x \*.pdf"),
    "no folder": ("1.jpg 2.jpg", "2 images lie directly in it"),
    "nothing": ("", "no images found"),
    "a run": ("run.json model/model.json", "the folder of a run, which holds no images. Give that of the images"),
    "a class only in val": ("train/a*1 train/b*1 val/c*1", "Only in val or test: c"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_fits_no_reading_or_two_is_refused_with_what_to_do(tmp_path, case):
    tree, message = REFUSED[case]
    root = plant(tmp_path, tree)
    with pytest.raises(UserError, match=message) as caught:
        list_training_folders(root)
    assert str(caught.value).startswith(f"data.root={root!r}: ")


SETTLED = {
    "classes that share folders": ("classes", "cat/2020*1 cat/2021*1 dog/2020*1", {"cat": 2, "dog": 1}),
    "classes with the names of splits": ("classes", "train/a*1 test/a*1", {"train": 1, "test": 1}),
    "a class train": ("classes", "train/steam*1 car*2", {"train": 1, "car": 2}),
    "parts with a stray image": ("classes", "x*1 x/a*1 x/b*1 y/a*1 y/b*1", {"x": 3, "y": 2}),
    "a split beside others": ("splits", "train/steam*1 train/diesel*1 car*2", {"train steam": 1, "train diesel": 1}),
    "a split of parts": ("splits", "train/x/a*1 train/x/b*1 train/y/a*1", {"train x": 2, "train y": 1}),
}


@pytest.mark.parametrize("case", SETTLED)
def test_a_setting_decides_between_two_readings(tmp_path, case):
    layout, tree, expected = SETTLED[case]
    assert counts(list_training_folders(plant(tmp_path, tree), layout=layout)) == expected


def test_a_layout_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.layout='split': must be one of .* Did you mean 'splits'"):
        list_training_folders(plant(tmp_path, "a*1 b*1"), layout="split")


def test_folds_can_be_given_as_several_folders(tmp_path):
    root = plant(tmp_path, "fold1/a*1 fold1/b*1 fold2/a*2 fold2/b*1")
    assert counts(list_training_folders([f"{root}/fold1", f"{root}/fold2"])) == {"a": 3, "b": 2}


WARNED = {
    "a folder beside the splits": ("train/a*1 train/b*1 val/a*1 extra/x*3", "folders beside the splits", "extra/ with 3 images"),
    "folders beside the splits": ("train/a*1 train/b*1 val/a*1 c*3 d*4", "folders beside the splits", "2 folders with 7 images"),
    "a split of loose images": ("train/a*1 train/b*1 test*5", "split without classes", "it is not used; 5 images"),
    "one folder too high": ("pets/cat*1 pets/dog*1 cars/vw*1 cars/bmw*1", "one folder too high", "cars/"),
    "stray images above": ("pets*1 pets/cat*3 pets/dog*3 cars/vw*3", "images below class folders", "9 images lie in folders"),
    "one folder too high in a split": (
        "train/pets/cat*1 train/pets/dog*1 train/cars/vw*1 train/cars/bmw*1",
        "one folder too high",
        "train/",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNED)
def test_what_may_be_meant_otherwise_is_a_warning(tmp_path, case):
    tree, kind, text = WARNED[case]
    listing = list_training_folders(plant(tmp_path, tree))
    assert kinds(listing) == {kind}
    assert text in next(problem.text for problem in listing.problems if problem.kind == kind)


def test_images_two_folders_down_and_other_split_names_are_noted(tmp_path):
    listing = list_training_folders(plant(tmp_path, "Training/a*1 Training/b/may*2 Testing/a*1"))
    notes = [problem.text for problem in listing.problems]
    assert notes == [
        "Training/ is read as the train split",
        "Testing/ is read as the test split",
        "2 images lie in folders below class folders, such as Training/b/may, and are counted in those classes",
    ]


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ("test/a*1 test/b*1", {"test a": 1, "test b": 1}),
        ("val/a*1", {"val a": 1}),
        ("a*1", {"a": 1}),
        ("a*1 b/", {"a": 1}),
    ],
)
def test_a_folder_to_test_on_need_not_be_fit_for_training(tmp_path, tree, expected):
    assert counts(list_folders(plant(tmp_path, tree), use="test")) == expected


def test_an_audit_lists_everything_that_forbids_training(tmp_path):
    root = plant(tmp_path, "train/a*1 train/b*1 train/c/ train/d/x.psd val/e*1")
    listing = list_folders(root, use="audit")
    assert [(problem.kind, problem.files) for problem in listing.problems] == [
        ("classes without a training image", ("e",)),
        ("empty classes", ("c", "d (holds 1 x *.psd)")),
    ]


def test_two_drives_of_windows_are_told_apart(tmp_path, monkeypatch):
    def of_two_drives(paths):
        raise ValueError("Paths don't have the same drive")

    root = plant(tmp_path, "x/a*1 x/b*1 y/a*1 y/b*1 z/a*1 z/b->y/b")
    monkeypatch.setattr("os.path.commonpath", of_two_drives)
    # a link to the other drive does not lead upwards
    assert counts(list_training_folders(f"{root}/z")) == {"a": 1, "b": 1}
    with pytest.raises(UserError, match=r"data\.root: several folders must lie on one drive\. Found .*/x, .*/y\. Copy"):
        list_training_folders([f"{root}/x", f"{root}/y"])


def test_training_prediction_and_the_search_for_what_was_left_out_see_the_same_files(tmp_path):
    root = plant(
        tmp_path / "data",
        "a*2 a/png*1 a/@eaDir*1 a/.hidden*1 b->a/png c->../store/c __MACOSX/a*1 lost+found/1.jpg a/up->.. a/1.jfif",
    )
    plant(tmp_path, "store/c*2 store/c/photo.psd store/c/__MACOSX/photo.psd store/c/.x/photo.psd")
    listing = list_training_folders(root)
    assert sorted(f"{root}/{path}" for path in listing.paths) == sorted(find_images([root]))
    assert len(listing) == 2 + 1 + 1 + 1 + 2
    assert pictures_left_out(root) == [f"{root}/c/photo.psd"]


def test_a_pattern_matches_the_files_that_a_folder_yields(tmp_path):
    root = plant(tmp_path, "a/1.jfif a/2.jpg a/jpg a/3.txt")
    assert list(find_images([f"{root}/a/*"])) == list(find_images([root])) == [f"{root}/a/1.jfif", f"{root}/a/2.jpg"]


def test_a_folder_without_images_says_what_lies_there(tmp_path):
    with pytest.raises(UserError, match=r"no images found.*It holds 2 x \*\.psd, 1 x \*\.txt\."):
        list(find_images([plant(tmp_path, "a/1.psd a/2.psd b/c.txt")]))
