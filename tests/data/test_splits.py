import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.groups import ALONE
from finetune.data.splits import TEST, TRAIN, VAL, few_per_class, make_folds, make_splits
from finetune.errors import ConfigError, UserError
from finetune.split_settings import SplitSettings

FRACTIONS = st.sampled_from([0.0, 0.1, 0.15, 0.2, 0.34])
COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def content_of(names):
    """A content key a name; equal names are equal contents."""
    return np.array(
        [np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), np.uint64) for name in names]
    )


def samples(counts):
    """Targets and contents of classes of these sizes, all contents different."""
    targets = np.repeat(np.arange(len(counts)), counts)
    return targets, content_of([f"{target}/{row}" for row, target in enumerate(targets)])


@given(counts=COUNTS, seed=st.integers(0, 2**40), val=FRACTIONS, test=FRACTIONS)
def test_splits_are_exhaustive_and_stratified_within_one_sample(counts, seed, val, test):
    targets, content = samples(counts)
    splits = make_splits(
        targets=targets, content=content, split=SplitSettings(seed=seed, val_fraction=val, test_fraction=test)
    )
    assert set(np.unique(splits)) <= {TRAIN, VAL, TEST}
    for target, count in enumerate(counts):
        mine = splits[targets == target]
        assert abs((mine == VAL).sum() - count * val) <= 1
        assert abs((mine == TEST).sum() - count * test) <= 1
        assert (mine == TRAIN).sum() >= 1


@given(counts=COUNTS, seed=st.integers(0, 100), copies=st.lists(st.integers(0, 10_000), max_size=30))
def test_identical_contents_never_lie_on_both_sides(counts, seed, copies):
    targets, content = samples(counts)
    # copies of random samples under random labels, as careless downloads leave them
    sources = np.array([copy % len(targets) for copy in copies], np.int64)
    labels = np.array([copy // 7 % len(counts) for copy in copies], np.int64)
    targets, content = np.concatenate([targets, labels]), np.concatenate([content, content[sources]])
    splits = make_splits(
        targets=targets, content=content, split=SplitSettings(seed=seed, val_fraction=0.2, test_fraction=0.2)
    )
    folds = make_folds(targets=targets, content=content, seed=seed, folds=3)
    for key in np.unique(content, axis=0):
        rows = (content == key).all(axis=1)
        assert len(set(splits[rows])) == 1
        assert len(set(folds[rows])) == 1


@given(counts=COUNTS, seed=st.integers(0, 100), copies=st.lists(st.integers(0, 10_000), max_size=10))
def test_copies_within_a_class_leave_the_shares_nearly_exact(counts, seed, copies):
    targets, content = samples(counts)
    sources = np.array([copy % len(targets) for copy in copies], np.int64)
    targets, content = np.concatenate([targets, targets[sources]]), np.concatenate([content, content[sources]])
    splits = make_splits(
        targets=targets, content=content, split=SplitSettings(seed=seed, val_fraction=0.2, test_fraction=0.2)
    )
    for target in range(len(counts)):
        mine = targets == target
        sizes = np.unique(content[mine], axis=0, return_counts=True)[1]
        for split in (VAL, TEST):
            assert abs((splits[mine] == split).sum() - 0.2 * mine.sum()) <= max(1, sizes.max())


@given(counts=COUNTS, seed=st.integers(0, 100), order=st.randoms(use_true_random=False))
def test_the_order_and_the_names_of_files_do_not_matter(counts, seed, order):
    targets, content = samples(counts)
    splits = make_splits(
        targets=targets, content=content, split=SplitSettings(seed=seed, val_fraction=0.2, test_fraction=0.2)
    )
    shuffled = list(range(len(targets)))
    order.shuffle(shuffled)
    again = make_splits(
        targets=targets[shuffled],
        content=content[shuffled],
        split=SplitSettings(seed=seed, val_fraction=0.2, test_fraction=0.2),
    )
    assert (again == splits[shuffled]).all()


@given(count=st.integers(5, 200), added=st.integers(1, 20), seed=st.integers(0, 100))
def test_adding_files_moves_no_more_old_ones_than_were_added_and_none_between_val_and_test(count, added, seed):
    targets, content = samples([count + added])
    split = SplitSettings(seed=seed, val_fraction=0.2, test_fraction=0.15)
    before = make_splits(targets=targets[:count], content=content[:count], split=split)
    after = make_splits(targets=targets, content=content, split=split)[:count]
    for part in (VAL, TEST):
        assert ((before == part) != (after == part)).sum() <= added
    assert not ((before == VAL) & (after == TEST)).any()
    assert not ((before == TEST) & (after == VAL)).any()


def test_adding_a_tenth_moves_few_of_the_old_files():
    targets, content = samples([1100] * 3)
    old = np.concatenate([np.arange(1000) + 1100 * target for target in range(3)])
    split = SplitSettings()
    before = make_splits(targets=targets[old], content=content[old], split=split)
    after = make_splits(targets=targets, content=content, split=split)[old]
    assert (before != after).mean() < 0.02


def test_adding_to_one_class_leaves_the_others_alone():
    targets, content = samples([30, 40])
    split = SplitSettings(val_fraction=0.2, test_fraction=0.2)
    before = make_splits(targets=targets[:60], content=content[:60], split=split)
    after = make_splits(targets=targets, content=content, split=split)
    assert (before[:30] == after[:30]).all()


def test_another_seed_gives_another_split():
    targets, content = samples([100])
    one, other = (
        make_splits(
            targets=targets, content=content, split=SplitSettings(seed=seed, val_fraction=0.2, test_fraction=0.2)
        )
        for seed in (0, 1)
    )
    assert (one != other).mean() > 0.2


@given(counts=COUNTS, seed=st.integers(0, 100), folds=st.integers(2, 6))
def test_folds_are_disjoint_exhaustive_and_even_in_every_class(counts, seed, folds):
    targets, content = samples(counts)
    fold = make_folds(targets=targets, content=content, seed=seed, folds=folds)
    assert fold.min() >= 0
    assert fold.max() < folds
    for target in range(len(counts)):
        sizes = np.bincount(fold[targets == target], minlength=folds)
        assert sizes.max() - sizes.min() <= 1


def test_classes_smaller_than_the_number_of_folds_do_not_all_start_at_fold_0():
    targets, content = samples([1] * 50)
    assert np.bincount(make_folds(targets=targets, content=content, seed=0, folds=5)).tolist() == [10] * 5


@given(counts=COUNTS, seed=st.integers(0, 100), limit=st.integers(1, 10))
def test_the_few_shot_choice_is_exact_and_nested(counts, seed, limit):
    targets, content = samples(counts)
    kept = few_per_class(targets=targets, content=content, seed=seed, limit=limit)
    more = few_per_class(targets=targets, content=content, seed=seed, limit=limit + 3)
    assert np.bincount(targets[kept], minlength=len(counts)).tolist() == [min(count, limit) for count in counts]
    assert not (kept & ~more).any()


@given(labels=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=8, max_size=60))
@settings(max_examples=50)
def test_images_with_several_labels_are_split_exhaustively_and_keep_rare_labels_in_train(labels):
    targets = np.array(labels, np.uint8)
    content = content_of([str(row) for row in range(len(labels))])
    splits = make_splits(
        targets=targets, content=content, split=SplitSettings(seed=0, val_fraction=0.2, test_fraction=0.2)
    )
    assert len(splits) == len(targets)
    present = targets.any(axis=0)
    rarest = (
        min((count, column) for column, count in enumerate(targets.sum(axis=0)) if present[column])
        if present.any()
        else None
    )
    if rarest is not None:
        assert targets[splits == TRAIN][:, rarest[1]].any()


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.1, 1.0), (0.6, 0.4)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(val, test):
    with pytest.raises(UserError, match=r"data\.(val|test)_fraction="):
        SplitSettings(val_fraction=val, test_fraction=test)


def test_fractions_of_0_leave_their_splits_empty():
    targets, content = samples([10])
    split = SplitSettings(val_fraction=0, test_fraction=0)
    assert (make_splits(targets=targets, content=content, split=split) == TRAIN).all()


def test_all_settings_out_of_range_are_named_together():
    with pytest.raises(ConfigError) as caught:
        SplitSettings(val_fraction=1, test_fraction=-1, folds=1, limit_per_class=0)
    assert [problem.split("=")[0] for problem in caught.value.problems] == [
        "data.val_fraction",
        "data.test_fraction",
        "data.folds",
        "data.limit_per_class",
    ]


def test_many_copies_of_one_picture_leave_the_shares_of_the_others_alone():
    targets = np.zeros(1000, np.int64)
    content = content_of([str(min(row, 100)) for row in range(1000)])
    splits = make_splits(targets=targets, content=content, split=SplitSettings())
    assert [(splits == part).sum() for part in (VAL, TEST)] == [15, 15]
    folds = make_folds(targets=targets, content=content, seed=0, folds=5)
    assert np.sort(np.bincount(folds[:100], minlength=5)).tolist() == [20, 20, 20, 20, 20] or (
        np.sort(np.bincount(folds[:100], minlength=5)).tolist() == [19, 20, 20, 20, 21]
    )
    few = few_per_class(targets=targets, content=content, seed=0, limit=10)
    assert len(np.unique(content[few], axis=0)) == few.sum() == 10


GROUPS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12), st.booleans()), min_size=3, max_size=40)


def grouped(groups):
    """Targets, contents and groups: each group of one class, or with every other image of the next class."""
    targets = [(main + (row % 2 if mixed else 0)) % 4 for main, size, mixed in groups for row in range(size)]
    numbers = [number for number, (_, size, _) in enumerate(groups) for _ in range(size)]
    content = content_of([str(row) for row in range(len(targets))])
    return np.array(targets), content, np.array(numbers)


@settings(max_examples=30, deadline=None)
@given(groups=GROUPS, seed=st.integers(0, 50), copies=st.lists(st.integers(0, 10_000), max_size=6))
def test_no_group_and_no_copy_is_parted(groups, seed, copies):
    targets, content, numbers = grouped(groups)
    for copy in copies:
        content[copy % len(content)] = content[copy // 3 % len(content)]
    numbers[::7] = ALONE
    splits = make_splits(targets=targets, content=content, split=SplitSettings(seed=seed), groups=numbers)
    folds = make_folds(targets=targets, content=content, seed=seed, folds=3, groups=numbers)
    for part in (splits, folds):
        assert all(len(set(part[numbers == number])) == 1 for number in set(numbers.tolist()) - {ALONE})
        assert all(len(set(part[(content == one).all(axis=1)])) == 1 for one in content)


@settings(max_examples=30, deadline=None)
@given(groups=GROUPS, seed=st.integers(0, 50), order=st.randoms(use_true_random=False))
def test_splits_by_groups_do_not_depend_on_the_order_of_files_or_the_numbers_of_groups(groups, seed, order):
    targets, content, numbers = grouped(groups)
    split = SplitSettings(seed=seed)
    splits = make_splits(targets=targets, content=content, split=split, groups=numbers)
    shuffled = list(range(len(targets)))
    order.shuffle(shuffled)
    again = make_splits(
        targets=targets[shuffled], content=content[shuffled], split=split, groups=99 - numbers[shuffled]
    )
    assert (again == splits[shuffled]).all()


@settings(max_examples=30, deadline=None)
@given(groups=GROUPS, seed=st.integers(0, 50))
def test_by_groups_every_class_that_can_is_in_each_split_and_shares_are_off_by_no_more_than_groups_force(groups, seed):
    targets, content, numbers = grouped(groups)
    splits = make_splits(targets=targets, content=content, split=SplitSettings(seed=seed), groups=numbers)
    for target in np.unique(targets):
        shown = targets == target
        assert (splits[shown] == TRAIN).any()
        sizes = np.bincount(numbers[shown])
        # groups of one class alone can even out what mixed ones leave
        if all(not mixed for _, _, mixed in groups) and (sizes > 0).sum() >= 3:
            for part, share in ((VAL, 0.15), (TEST, 0.15), (TRAIN, 0.7)):
                assert (splits[shown] == part).any()
                assert abs((splits[shown] == part).sum() - share * shown.sum()) <= 2 * sizes.max()


def test_folds_by_groups_are_as_even_as_those_of_scikit_learn():
    from sklearn.model_selection import StratifiedGroupKFold

    random = np.random.default_rng(0)
    numbers = np.repeat(np.arange(40), random.integers(2, 30, 40))
    targets = np.where(random.random(len(numbers)) < 0.3, random.integers(0, 3, len(numbers)), numbers % 3)
    ours = make_folds(
        targets=targets, content=content_of(map(str, range(len(targets)))), seed=0, folds=5, groups=numbers
    )
    theirs = np.empty_like(ours)
    for fold, (_, rows) in enumerate(StratifiedGroupKFold(5).split(targets, targets, numbers)):
        theirs[rows] = fold

    def worst(folds):
        counts = np.stack([np.bincount(targets[folds == fold], minlength=3) for fold in range(5)])
        return np.abs(counts / counts.sum(axis=0) - 0.2).max()

    assert worst(ours) <= worst(theirs)
    assert worst(ours) < 0.02


def test_a_few_shot_choice_takes_images_of_as_many_groups_as_it_can():
    targets, content = samples([60])
    numbers = np.repeat(np.arange(6), 10)
    kept = few_per_class(targets=targets, content=content, seed=0, limit=6, groups=numbers)
    more = few_per_class(targets=targets, content=content, seed=0, limit=13, groups=numbers)
    assert np.bincount(numbers[kept]).tolist() == [1] * 6
    assert sorted(np.bincount(numbers[more]).tolist()) == [2, 2, 2, 2, 2, 3]
    assert not (kept & ~more).any()
