"""How to use the trained model, as runnable code."""

import shlex

from finetune.file_schema import THRESHOLD

_SHORT = """\
import finetune

model = finetune.load({bundle!r}{trust})
print(model.predict(["photo.jpg"]))  # a table: files, folders, Pillow images and arrays all do
"""
# with a temperature, which predict does not apply
_PYTHON = """\
import finetune
import torch
from finetune.data.decode import decode_file, to_tensor
from finetune.data.transforms import eval_view

model = finetune.load({bundle!r}{trust})
image = to_tensor(decode_file("photo.jpg", model.decode))  # uint8 (C, H, W), any size
with torch.inference_mode():
    logits = model(eval_view(model.input_spec)(image)[None])
probabilities = model.probabilities(logits)[0]
{answer}
"""
_ONE = "print(model.classes[int(probabilities.argmax())], float(probabilities.max()))"
_SEVERAL = f"print([name for name, share in zip(model.classes, probabilities) if share > {THRESHOLD}])"


def python_snippet(
    run: str, *, multi_label: bool, temperature: float | None = None, trust: bool = False, modules: str = ""
) -> str:
    """Return Python code that classifies one image.

    Args:
        run: Run folder.
        multi_label: Whether an image may show several classes.
        temperature: Divisor of the logits; None leaves the probabilities unscaled.
        trust: Whether the model needs user-supplied classes.
        modules: Text of the modules that Python must be given, from :func:`finetune.models.user_modules.modules_text`.
    """
    bundle, trusted = f"{run}/model", f", {modules}" if modules else ", trust=True" if trust else ""
    if temperature is None:
        return _SHORT.format(bundle=bundle, trust=trusted)
    text = _PYTHON.format(bundle=bundle, trust=trusted, answer=_SEVERAL if multi_label else _ONE)
    return text.replace("(logits)", f"(logits / {temperature:.4g})")


def commands(
    run: str, *, multi_label: bool, trust: bool = False, modules: str = "", python: bool = False
) -> list[tuple[str, str]]:
    """Return command lines, each with what it does; lines of Python for a model that no command can build.

    Args:
        run: Run folder.
        multi_label: Whether an image may show several classes.
        trust: Whether the model needs user-supplied classes.
        modules: Text of the modules that Python must be given, from :func:`finetune.models.user_modules.modules_text`.
        python: Whether to return lines of Python for every model.
    """
    # the other programs' formats hold one label per image
    form = "head" if multi_label else "onnx"
    export = "export the head" if multi_label else "export it for programs without PyTorch"
    if modules or python:
        what, given = ("open it", ", trust=True" if trust else "")
        if modules:
            what, given = "open it in Python, with your own modules", f", {modules}"
        return [
            (what, f"model = finetune.load({run!r}{given})"),
            ("classify a folder of images", "model.predict('IMAGES')"),
            ("test it on other data", "finetune.evaluate(model, 'DIR')"),
            (export, f"finetune.export(model, {form!r})"),
        ]
    name, option = shlex.quote(run), " --trust" if trust else ""
    return [
        ("classify a folder of images", f"finetune predict {name} IMAGES --output predictions.csv{option}"),
        ("test it on other data", f"finetune evaluate {name} data=DIR{option}"),
        (export, f"finetune export {name} --format {form}{option}"),
    ]
