import numpy as np
import pytest
import tifffile
from PIL import Image

from finetune.build.data import decode_options_from
from finetune.config.schema import Config, DataConfig
from finetune.data.decode import DecodeOptions, decode_file
from finetune.data.sources.folder import folder_source
from finetune.errors import UserError
from finetune.export import client
from finetune.input_spec import InputSpec
from finetune.report.loading_snippets import how_to_load
from finetune.runners.run_data import read_as_trained
from tests.data.raw_formats import png


def write_deep(folder, top, *, count=4, seed=0):
    """Write 16-bit pictures of two classes whose numbers go from 0 to ``top``."""
    generator = np.random.default_rng(seed)
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for number in range(count):
            values = generator.integers(0, top // 2, (12, 12, 1)).astype(np.uint16)
            values[0, 0] = top if (name, number) == ("a", 0) else top // 2
            (folder / name / f"{number}.png").write_bytes(png(values))
    return str(folder)


def write_floats(folder, pictures):
    for number, values in enumerate(pictures):
        path = folder / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(values.astype(np.float32)).save(path)
    return str(folder)


@pytest.mark.parametrize(
    ("top", "white"), [(200, 255), (256, 1023), (1023, 1023), (3912, 4095), (9000, 16383), (16384, 65535)]
)
def test_integers_fill_the_fewest_bits_that_hold_the_largest_of_the_set(tmp_path, top, white):
    source = folder_source(root=write_deep(tmp_path, top))
    assert source.decode_options.integer_range == (0, white)
    row = next(row for row in range(len(source.index)) if source.index.path(row).endswith("a/0.png"))
    # equal numbers are equal levels in every image, also in those that do not reach the top
    others = [other for other in range(len(source.index)) if other != row]
    assert int(source.read(row).max()) == int(top * 255 / white + 0.5)
    assert {int(source.read(other).max()) for other in others} == {int(top // 2 * 255 / white + 0.5)}


def test_the_start_of_a_run_says_how_deep_images_are_read(tmp_path):
    (note,) = folder_source(root=write_deep(tmp_path / "deep", 3912)).index.notes
    assert note == (
        "8 images with more than 8 bits (integer, 0 to 3912): 0 becomes black and 4095 white (12 bits), measured over the data "
        "set."
    ) or note.startswith("8 images with more than 8 bits (integer, ")
    assert "4095 white (12 bits)" in note
    wide = folder_source(
        root=write_deep(tmp_path / "wide", 3912), decode_options=DecodeOptions(integer_range=(0, 65535))
    )
    (note,) = wide.index.notes
    assert note.startswith("warning: ")
    assert "65535 white (16 bits), as given. The images use only 6.0% of that range" in note
    narrow = folder_source(
        root=write_deep(tmp_path / "narrow", 3912), decode_options=DecodeOptions(integer_range=(0, 255))
    )
    (note,) = narrow.index.notes
    assert note.startswith("warning: ")
    assert "255 white (8 bits), as given. All values above 255 become white, up to 3912." in note
    # a window that is not a bit depth is meant
    window = folder_source(
        root=write_deep(tmp_path / "window", 3912), decode_options=DecodeOptions(integer_range=(40, 240))
    )
    assert not window.index.notes[0].startswith("warning: ")


def test_eight_bit_images_are_read_as_ever_beside_deep_ones(tmp_path):
    folder = write_deep(tmp_path, 3912)
    plain = np.arange(144, dtype=np.uint8).reshape(12, 12)
    Image.fromarray(plain).save(tmp_path / "a" / "plain.png")
    source = folder_source(root=folder)
    row = next(row for row in range(len(source.index)) if source.index.path(row).endswith("plain.png"))
    assert np.array_equal(source.read(row)[0].numpy(), plain)


def test_one_sparkling_pixel_darkens_no_floating_point_picture(tmp_path):
    generator = np.random.default_rng(0)
    pictures = [generator.random((40, 40)) for _ in range(6)]
    pictures[0][0, 0] = 1.0001
    pictures[1][3, 3] = 7.5
    source = folder_source(root=write_floats(tmp_path, pictures))
    assert source.decode_options.float_range == (0, 1)
    assert all(int(source.read(row).max()) >= 250 for row in range(len(source.index)))
    assert all(100 < source.read(row).float().mean() < 155 for row in range(len(source.index)))


def test_a_hot_pixel_that_widens_the_range_of_integers_is_warned_of(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(4):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        values = generator.integers(0, 4096, (40, 40, 1)).astype(np.uint16)
        values[0, 0] = 65535 if number == 0 else 9
        path.write_bytes(png(values))
    source = folder_source(root=str(tmp_path))
    assert source.decode_options.integer_range == (0, 65535)
    note = next(note for note in source.index.notes if "more than 8 bits" in note)
    assert note.startswith("warning: ")
    assert "so most of the range is left to a few bright pixels. If they do not matter, set data.bit_depth=12." in note
    # what the warning says to set brings no other warning
    as_told = folder_source(root=str(tmp_path), decode_options=DecodeOptions(integer_range=(0, 4095)))
    assert not any("warning: " in note and "more than 8 bits" in note for note in as_told.index.notes)


def test_signed_numbers_share_one_range_over_the_set(tmp_path):
    source = folder_source(
        root=write_floats(tmp_path, [np.full((8, 8), value) for value in (-1000.0, 0.0, 1000.0, 0.0)])
    )
    assert source.decode_options.float_range == (-1000, 1000)
    assert sorted(int(source.read(row)[0, 0, 0]) for row in range(4)) == [0, 128, 128, 255]


def test_signed_numbers_of_8_bits_share_one_range_too(tmp_path):
    for number, value in enumerate((-100, 0, 100, 0)):
        path = tmp_path / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, np.full((8, 8), value, np.int8))
    source = folder_source(root=str(tmp_path))
    assert source.decode_options.integer_range == (-100, 100)
    assert sorted(int(source.read(row)[0, 0, 0]) for row in range(4)) == [0, 128, 128, 255]


def test_stretching_needs_no_range(tmp_path):
    source = folder_source(root=write_deep(tmp_path, 3912), decode_options=DecodeOptions(high_depth="stretch"))
    assert source.decode_options.integer_range is None
    assert not source.index.notes


def test_settings_of_the_range_are_checked():
    def options(**data):
        return decode_options_from(Config(data=DataConfig(**data)))

    assert options(bit_depth=12).integer_range == (0, 4095)
    assert options(integer_range=[-160, 240]).integer_range == (-160, 240)
    with pytest.raises(UserError, match=r"data\.bit_depth=13: must be auto or one of 8, 10, 12, 14, 16"):
        options(bit_depth=13)
    with pytest.raises(UserError, match=r"data\.bit_depth=12: has no effect under data\.high_depth=stretch"):
        options(bit_depth=12, high_depth="stretch")
    with pytest.raises(UserError, match=r"data\.bit_depth=12: contradicts data\.integer_range"):
        options(bit_depth=12, integer_range=[0, 9])
    with pytest.raises(UserError, match=r"data\.float_range=\[1, 0\]: must be two numbers"):
        options(float_range=[1, 0])


TRAINED = {"integer_range": (0, 4095), "float_range": (0, 2)}


@pytest.mark.parametrize(
    ("own", "trained", "typed", "expected"),
    [
        ({}, TRAINED, {}, TRAINED),
        ({}, TRAINED, {"bit_depth": 16}, TRAINED | {"integer_range": (0, 65535)}),
        ({}, TRAINED, {"bit_depth": "auto"}, TRAINED),
        ({}, TRAINED, {"high_depth": "full"}, TRAINED),
        ({}, TRAINED, {"high_depth": "stretch"}, {"high_depth": "stretch"}),
        ({"bit_depth": 12}, TRAINED, {}, TRAINED),
        ({"bit_depth": 12}, TRAINED, {"integer_range": [0, 9]}, TRAINED | {"integer_range": (0, 9)}),
        ({"bit_depth": 12}, TRAINED, {"high_depth": "stretch"}, {"high_depth": "stretch"}),
        ({"integer_range": [0, 4095]}, TRAINED, {"bit_depth": 8}, TRAINED | {"integer_range": (0, 255)}),
        ({"high_depth": "stretch"}, {"high_depth": "stretch"}, {"bit_depth": 12}, {"integer_range": (0, 4095)}),
    ],
)
def test_other_images_are_read_as_trained_unless_a_typed_setting_says_otherwise(own, trained, typed, expected):
    config = Config(data=DataConfig(source="folder", **own | typed))
    words = [f"data.{key}={value}" for key, value in typed.items()]
    read_as_trained(config, words, DecodeOptions(**trained))
    assert decode_options_from(config) == DecodeOptions(**expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "reading",
    [
        {"high_depth": "full", "integer_range": [0.0, 4095.0], "float_range": [-2.0, 3.5]},
        {"high_depth": "stretch"},
    ],
    ids=["ranges", "stretch"],
)
def test_clients_and_snippets_give_the_levels_of_training(tmp_path, monkeypatch, channels, reading):
    generator = np.random.default_rng(0)
    deep, floating = tmp_path / "deep.png", tmp_path / "float.tif"
    deep.write_bytes(png(generator.integers(0, 5000, (12, 20, 1)).astype(np.uint16)))
    Image.fromarray((generator.random((12, 20)) * 6 - 2.5).astype(np.float32)).save(floating)
    code = how_to_load("timm", InputSpec(channels=channels), path=".", reading=reading)
    lines = code[code.index("import numpy") : code.index("model =")]
    for path in (deep, floating):
        expected = decode_file(str(path), DecodeOptions(channels=channels, **reading))
        with client.pillow(str(path), grey=channels == 1, reading=reading) as image:
            assert np.array_equal(np.asarray(image).reshape(expected.shape), expected)
        names: dict[str, object] = {}
        exec(lines.replace("photo.png", str(path)), names)
        assert np.array_equal(np.asarray(names["image"]).reshape(expected.shape), expected)
