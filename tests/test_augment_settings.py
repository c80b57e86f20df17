import pytest

from finetune.augment_settings import augment_settings
from finetune.config import compose
from finetune.errors import UserError


def test_a_list_is_read_from_names_names_with_arguments_and_nodes():
    settings = augment_settings(
        [
            "standard",
            "RandomVerticalFlip",
            {"RandomRotation": {"degrees": 180, "interpolation": "bilinear"}},
            {"RandomApply": {"transforms": ["RandomInvert"], "p": 0.1}},
            {"_target_": "my.module.Op", "a": 1},
        ]
    )
    v2 = "torchvision.transforms.v2."
    assert settings.base == "standard"
    assert settings.nodes == (
        {"_target_": v2 + "RandomVerticalFlip"},
        {"_target_": v2 + "RandomRotation", "degrees": 180, "interpolation": 2},
        {"_target_": v2 + "RandomApply", "transforms": [{"_target_": v2 + "RandomInvert"}], "p": 0.1},
        {"_target_": "my.module.Op", "a": 1},
    )
    assert settings.text == (
        "standard + RandomVerticalFlip + RandomRotation(degrees=180, interpolation=2) + "
        "RandomApply(transforms=[RandomInvert], p=0.1) + my.module.Op(a=1)"
    )
    assert augment_settings(["RandomInvert"]).text == "evaluation view + RandomInvert"
    assert augment_settings(["light"]) == augment_settings("light")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("standart", "Did you mean 'standard'"),
        ([], "or a list of operations"),
        (7, "or a list of operations"),
        (["standard", "light"], "Found 'light'"),
        ([{"A": {}, "B": {}}], "each operation must be"),
        ([{"RandomRotation": 5}], "each operation must be"),
        ([{}], "each operation must be"),
        ([["RandomInvert"]], "each operation must be"),
        (["os.system"], "each operation must be"),
        ([{"RandomRotation": {"degrees": 5, "interpolation": "cubist"}}], "interpolation='cubist' is not known"),
    ],
)
def test_what_names_no_view_and_no_operation_is_refused(value, message):
    with pytest.raises(UserError, match=r"^schedule\.augment=") as caught:
        augment_settings(value, setting="schedule.augment")
    assert message in str(caught.value)


@pytest.mark.parametrize("preset", ["microscopy", "aerial", "documents"])
def test_a_preset_sets_a_list_that_can_be_read(preset):
    config = compose(["data.root=d", f"augment={preset}"])
    assert augment_settings(config.data.augment).nodes
    assert compose(["data=digits", f"augment={preset}"]).data.augment == config.data.augment


def test_a_wrong_list_is_a_problem_of_the_configuration():
    with pytest.raises(UserError, match=r"schedule\.phases\[0\]\.augment="):
        compose(["data.root=d", "schedule=frozen", "schedule.phases.0.augment=[7]"])
