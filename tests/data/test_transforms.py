import pickle
import random

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torchvision.transforms import v2

from finetune.data.decode import decode_image
from finetune.data.transforms import AUGMENTS, eval_view, in_words, train_view
from finetune.errors import UserError
from finetune.input_spec import InputSpec


def noise(height, width, channels=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (channels, height, width), np.uint8))


def smooth(height, width):
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [128 + 60 * np.sin(9 * x + c) + 50 * np.cos(7 * y * (c + 1)) for c in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def spec(**changes):
    return InputSpec(**{"size": (32, 32)} | changes)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (33, 97), (200, 31), (32, 32), (7, 9), (4, 400), (90, 13)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_the_evaluation_view_is_torchvisions_resize_and_centre_crop_of_a_pillow_image(shape, interpolation, crop_pct):
    image = noise(*shape)
    reference = v2.Compose(
        [v2.Resize(int(32 / crop_pct), interpolation=v2.InterpolationMode(interpolation)), v2.CenterCrop(32)]
    )
    view = eval_view(spec(interpolation=interpolation, crop_pct=crop_pct))
    wanted = v2.functional.pil_to_tensor(reference(Image.fromarray(image.permute(1, 2, 0).numpy())))
    assert torch.equal(view(image), wanted)
    assert torch.equal(view.of_pixels(image.permute(1, 2, 0).numpy()), wanted)


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(64, 64), (64, 40), (40, 64)])
def test_the_evaluation_view_is_timms_level_for_level(size, interpolation, mode):
    crop_pct = 0.875 if mode == "center" else 1.0
    reference = timm.data.create_transform(
        input_size=(3, *size),
        interpolation=interpolation,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        crop_pct=crop_pct,
        crop_mode=mode,
    )
    view = eval_view(spec(size=size, interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode))
    for height, width in ((90, 123), (91, 124), (200, 77), (30, 47), (480, 640)):
        pixels = smooth(height, width)
        found = view(torch.from_numpy(pixels).permute(2, 0, 1))
        assert torch.equal(found, (reference(Image.fromarray(pixels)) * 255).round().to(torch.uint8))


def test_squashing_shows_the_whole_image():
    image = torch.zeros(1, 20, 60, dtype=torch.uint8)
    image[:, :, :30] = 200
    view = eval_view(spec(channels=1, crop_mode="squash"))(image)
    assert view.shape == (1, 32, 32)
    assert (view[0, :, :14] == 200).all()
    assert (view[0, :, 18:] == 0).all()


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (30, 30)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (10, 2000), (2000, 10), (31, 33)])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_every_view_gives_the_size_asked_for_from_images_of_any_size(size, shape, augment):
    for channels in (1, 3):
        view = train_view(spec(size=size, channels=channels), augment=augment)
        found = view(noise(*shape, channels=channels))
        assert found.shape == (channels, *size)
        assert found.dtype == torch.uint8
        assert found.is_contiguous()


def test_a_very_long_image_is_seen_in_its_middle_at_the_right_scale():
    stripes = torch.zeros(1, 10, 4000, dtype=torch.uint8)
    stripes[:, :, 1999:2001] = 255
    view = eval_view(spec(channels=1, crop_pct=1.0))(stripes)[0].float()
    columns = view.mean(dim=0)
    # ten rows become 32, so two columns become 6.4 around the middle
    assert columns[15:17].min() > 200
    assert columns[:11].max() == 0
    assert columns[21:].max() == 0


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_view_is_a_function_of_the_image_and_of_torchs_generator_alone(augment):
    image = noise(50, 70)
    view = pickle.loads(pickle.dumps(train_view(spec(), augment=augment)))
    views = []
    for attempt in range(3):
        random.seed(attempt)
        np.random.seed(attempt)
        torch.manual_seed(123)
        views.append(view(image))
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2])


@pytest.mark.parametrize("augment", [name for name in AUGMENTS if name != "none"])
def test_another_state_of_the_generator_gives_another_view(augment):
    view = train_view(spec(), augment=augment)
    image = noise(150, 210)
    torch.manual_seed(0)
    seen = {view(image).numpy().tobytes() for _ in range(20)}
    assert len(seen) >= 19


def test_no_augmentation_is_the_evaluation_view():
    image = noise(50, 70)
    assert torch.equal(train_view(spec(), augment="none")(image), eval_view(spec())(image))


def test_a_view_leaves_its_image_alone():
    image = noise(50, 70)
    before = image.clone()
    for augment in AUGMENTS:
        for _ in range(10):
            train_view(spec(), augment=augment)(image)
    assert torch.equal(image, before)


@pytest.mark.parametrize(("augment", "mirrors"), [("light", False), ("standard", True)])
def test_only_views_that_say_so_are_mirrored(augment, mirrors):
    left_to_right = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    view = train_view(spec(), augment=augment)
    torch.manual_seed(0)
    rising = [bool((view(left_to_right)[0, 0].float().diff() >= 0).all()) for _ in range(200)]
    assert (not all(rising)) == mirrors
    if mirrors:
        assert 0.35 < np.mean(rising) < 0.65


def test_crops_are_spread_like_torchvisions():
    """Area, ratio and place of 4,000 crops of each, told apart by their means and quartiles."""
    view = train_view(spec(size=(8, 8)), augment="standard")
    reference = v2.RandomResizedCrop(8, scale=(0.25, 1.0), ratio=(3 / 4, 4 / 3))
    image = torch.zeros(3, 300, 400, dtype=torch.uint8)
    torch.manual_seed(0)
    ours = np.array([view._box(300, 400, None) for _ in range(4000)], np.float64)
    params = [reference.make_params([image]) for _ in range(4000)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in params], np.float64)

    def shape_of(boxes):
        top, left, height, width = boxes.T
        free_down, free_right = np.maximum(300 - height, 1), np.maximum(400 - width, 1)
        return np.stack([height * width / 120_000, np.log(width / height), top / free_down, left / free_right], axis=1)

    for quantile in (0.25, 0.5, 0.75):
        assert (
            np.abs(np.quantile(shape_of(ours), quantile, 0) - np.quantile(shape_of(theirs), quantile, 0)).max() < 0.04
        )


def test_one_channel_never_draws_a_colour_operation(monkeypatch):
    drawn = []
    for kind in (v2.TrivialAugmentWide, v2.RandAugment):
        original = kind._apply_image_or_video_transform

        def spy(self, image, transform_id, *rest, original=original, **options):
            drawn.append(transform_id)
            return original(self, image, transform_id, *rest, **options)

        monkeypatch.setattr(kind, "_apply_image_or_video_transform", spy)
    torch.manual_seed(0)
    for augment in ("trivial_augment", "rand_augment"):
        view = train_view(spec(channels=1), augment=augment)
        for _ in range(150):
            view(noise(40, 40, channels=1))
    assert "Color" not in drawn
    assert len(set(drawn)) == 13


@pytest.mark.parametrize("augment", ["trivial_augment", "rand_augment"])
def test_operations_on_colours_are_refused_for_channels_that_are_none(augment):
    message = rf"data\.augment='{augment}': takes images of 1 or 3 channels\. .* has 4\. Use augment=standard"
    with pytest.raises(UserError, match=message):
        train_view(spec(channels=4), augment=augment)
    assert train_view(spec(channels=4), augment="standard")(noise(40, 40, channels=4)).shape[0] == 4


def test_the_plan_says_what_is_left_out_for_one_channel():
    assert "without its colour operation" in in_words(spec(channels=1), augment="trivial_augment")
    assert in_words(spec(), augment="trivial_augment").endswith("mirrored at random, TrivialAugment")
    assert in_words(spec(), augment="none") == "the evaluation view, no augmentation"


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"data\.augment='standart'.* Did you mean 'standard'\?"):
        train_view(spec(), augment="standart")


def test_the_views_of_a_scaled_decoding_are_those_of_the_full_one_to_two_levels(tmp_path):
    # a random crop is rounded to whole pixels of the smaller image, so its edges lie up to half of them elsewhere
    path = tmp_path / "x.jpg"
    Image.fromarray(smooth(768, 1024)).save(path, quality=92)
    for augment in ("none", "light", "standard"):
        view = train_view(spec(size=(64, 64)), augment=augment)
        full = decode_image(str(path), channels=3)
        scaled = decode_image(str(path), channels=3, min_side=view.min_side)
        assert min(scaled.shape[1:]) < min(full.shape[1:])
        views = []
        for image in (full, scaled):
            torch.manual_seed(5)
            views.append(view(image).float())
        assert (views[0] - views[1]).abs().mean() < (1.0 if augment == "none" else 2.0)


@pytest.mark.parametrize("augment", ["light", "standard"])
def test_no_training_view_is_read_less_sharp_than_evaluation_shows_it(augment):
    for crop_pct in (0.875, 1.0):
        spec = InputSpec(size=(224, 224), crop_pct=crop_pct)
        assert train_view(spec, augment=augment).min_side >= 224 / crop_pct
    # no crop of `light`, 80 to 100 % of the area, is enlarged
    assert train_view(InputSpec(), augment="light").min_side * 0.8**0.5 >= 224
