"""How to use the trained model, as runnable code."""

import shlex

_PYTHON = """\
import finetune

model = finetune.load({bundle!r}{trust})
print(model.predict(["photo.jpg"]))  # a table: files, folders, Pillow images and arrays all do
"""


def python_snippet(run: str, *, trust: bool = False, modules: str = "") -> str:
    """Return Python code that classifies one image.

    Args:
        run: Run folder.
        trust: Whether the model needs user-supplied classes.
        modules: Text of the modules that Python must be given, from :func:`finetune.models.user_modules.modules_text`.
    """
    trusted = f", {modules}" if modules else ", trust=True" if trust else ""
    return _PYTHON.format(bundle=f"{run}/model", trust=trusted)


def commands(
    run: str, *, trust: bool = False, modules: str = "", python: bool = False, reported: bool = True
) -> list[tuple[str, str]]:
    """Return command lines, each with what it does; lines of Python for a model that no command can build.

    Args:
        run: Run folder.
        trust: Whether the model needs user-supplied classes.
        modules: Text of the modules that Python must be given, from :func:`finetune.models.user_modules.modules_text`.
        python: Whether to return lines of Python for every model.
        reported: Whether the run has its report.
    """
    export = "export it for programs without PyTorch"
    if modules or python:
        what, given = ("open it", ", trust=True" if trust else "")
        if modules:
            what, given = "open it in Python, with your own modules", f", {modules}"
        return [
            (what, f"model = finetune.load({run!r}{given})"),
            ("classify a folder of images", "model.predict('IMAGES')"),
            ("test it on other data", "finetune.evaluate(model, 'DIR')"),
            (export, "finetune.export(model, 'onnx')"),
        ]
    name, option = shlex.quote(run), " --trust" if trust else ""
    return [
        ("classify a folder of images", f"finetune predict {name} IMAGES --output predictions.csv{option}"),
        ("test it on other data", f"finetune evaluate {name} data=DIR{option}"),
        (export, f"finetune export {name} --format onnx{option}"),
        *([] if reported else [("write its report", f"finetune report {name}{option}")]),
    ]
