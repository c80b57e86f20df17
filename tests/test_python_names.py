"""Messages that reach a caller in Python name the arguments that were typed, not settings and options of the command line."""

from pathlib import Path

import pytest

import finetune
from finetune.errors import ConfigError, UserError
from finetune.python_names import called_from_python, in_python, python_names


@pytest.mark.parametrize(
    ("message", "arguments", "expected"),
    [
        ("RUN='nope': no such folder.", ["run"], "run='nope': no such folder."),
        ("IMAGES='nope': no such file.", ["model", "images"], "images='nope': no such file."),
        ("input.size=0: must be above 0.", ["size"], "size=0: must be above 0."),
        ("input.size=0: must be above 0.", ["data"], "input.size=0: must be above 0."),
        ("optimizer.lr=0: must be above 0.", ["lr"], "optimizer.lr=0: must be above 0."),
        (
            "--format web: too many channels. Use --format onnx.",
            ["format"],
            "format='web': too many channels. Use format='onnx'.",
        ),
        ("--check 3: too few.", ["check"], "check=3: too few."),
        ("--steps 3: too few.", ["check"], "--steps 3: too few."),
        ("Make one with: finetune export RUN --format onnx", ["format"], "Make one with: finetune.export(run, 'onnx')"),
        ("Make one: finetune embed RUN IMAGES --output FILE.npz", ["output"], "Make one: finetune.embed(run, images)"),
        ("Continue with: finetune resume 'my run' --trust", [], "Continue with: finetune.resume('my run', trust=True)"),
        (
            "Add one:\n  backbone=timm backbone.name=lite0 backbone.weights=package  # here\n  backbone.weights=PATH  # a file",
            ["backbone", "weights"],
            "Add one:\n  backbone='lite0', weights='package'  # here\n  weights=PATH  # a file",
        ),
    ],
)
def test_a_message_names_what_the_caller_of_a_function_typed(message: str, arguments: list[str], expected: str) -> None:
    assert in_python(message, arguments) == expected


def test_an_override_keeps_its_name() -> None:
    assert in_python("data.root='a': no.", ["data"], typed=["data.root=a"]) == "data.root='a': no."


def test_every_problem_of_several_is_renamed_and_the_error_keeps_its_type() -> None:
    with pytest.raises(ConfigError) as raised, python_names(["size", "weights"]):
        raise ConfigError(["input.size=0: wrong.", "backbone.weights='x': wrong."])
    assert raised.value.problems == ("size=0: wrong.", "weights='x': wrong.")
    assert str(raised.value) == "size=0: wrong.\nweights='x': wrong."


def test_what_is_printed_can_ask_whether_a_function_is_running() -> None:
    assert not called_from_python()
    with python_names([]):
        assert called_from_python()
    assert not called_from_python()


def test_functions_and_methods_name_their_arguments(tmp_path: Path) -> None:
    for call, message in (
        (lambda: finetune.load(tmp_path / "no"), r"^path='.*no': no such folder"),
        (lambda: finetune.predict(tmp_path / "no", "x"), r"^model='.*no': no such folder"),
        (lambda: finetune.export(tmp_path / "no", "onnx"), r"^run='.*no': no such folder"),
        (lambda: finetune.audit(tmp_path / "no"), r"^data='.*no': no such folder"),
        (lambda: finetune.fit("digits", weights="nothing"), r"^weights='nothing': neither a file"),
    ):
        with pytest.raises(UserError, match=message):
            call()
