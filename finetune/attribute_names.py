"""Names under which users of other libraries look for a function, and the call that does it here."""

from collections.abc import Mapping
from typing import Any

from finetune.errors import did_you_mean

_FIT = "finetune.fit(data, backbone='resnet18')"
_LOAD = "finetune.load(run)"

# name in the module -> call
CALLS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "train",
            "fine_tune",
            "finetune",
            "vision_learner",
            "cnn_learner",
            "Learner",
            "Trainer",
            "fit_one_cycle",
            "run",
        ),
        _FIT,
    ),
    **dict.fromkeys(
        ("create_model", "get_model", "list_models", "model", "Model"),
        "finetune.build_backbone('resnet18') or finetune.load(run)",
    ),
    **dict.fromkeys(("load_model", "load_learner", "from_pretrained", "load_bundle", "load_run"), _LOAD),
    **dict.fromkeys(("save", "save_model"), "finetune.save_bundle(model, folder)"),
    **dict.fromkeys(("test", "validate", "score", "eval"), "finetune.evaluate(run)"),
    **dict.fromkeys(("classify", "infer", "inference"), "finetune.predict(run, images)"),
    **dict.fromkeys(("to_onnx", "export_onnx"), "finetune.export(run, 'onnx')"),
    **dict.fromkeys(("features", "extract", "encode"), "finetune.embed(run, images)"),
    **dict.fromkeys(("lr_find", "find_lr"), "finetune lr-find data=DIR in a terminal"),
    **dict.fromkeys(("freeze", "unfreeze"), "finetune.fit(data, schedule=[finetune.Phase(train=['head'])])"),
}

# attribute of a model -> call
CALLS_OF_A_MODEL: Mapping[str, str] = {
    **dict.fromkeys(
        ("fit", "fine_tune", "fit_one_cycle", "unfreeze", "freeze", "freeze_to"),
        "finetune.fit(data, schedule=[finetune.Phase(train=['head'])])",
    ),
    **dict.fromkeys(("evaluate", "validate", "test", "score"), "finetune.evaluate(model)"),
    **dict.fromkeys(("export", "to_onnx"), "finetune.export(model, 'onnx')"),
    **dict.fromkeys(("save", "save_pretrained", "save_bundle"), "finetune.save_bundle(model, folder)"),
    **dict.fromkeys(("embed_images", "get_features", "encode"), "finetune.embed(model, images)"),
    **dict.fromkeys(("predict_proba", "classify", "transform"), "model.predict(images)"),
}

# attribute of the result of a fit -> call
CALLS_OF_A_RUN: Mapping[str, str] = {
    **dict.fromkeys(("load", "model", "classifier", "network"), "finetune.load(run)"),
    **dict.fromkeys(("predict", "classify"), "finetune.predict(run, images)"),
    **dict.fromkeys(("evaluate", "test", "validate", "score"), "finetune.evaluate(run)"),
    **dict.fromkeys(("export", "to_onnx"), "finetune.export(run, 'onnx')"),
    "embed": "finetune.embed(run, images)",
    "resume": "finetune.resume(run)",
    **dict.fromkeys(("metrics", "acc", "accuracy"), "run.results.test.acc"),
    **dict.fromkeys(("plot_confusion", "confusion_matrix"), "finetune.plot_confusion(run)"),
    "top_losses": "finetune.top_losses(run)",
}


def no_attribute(value: Any, name: str, calls: Mapping[str, str]) -> AttributeError:
    """Return the error for an attribute that an object has not; it has the call that does it, if one does.

    >>> no_attribute(3, "export", CALLS_OF_A_RUN)
    AttributeError("int has no attribute 'export'. Use finetune.export(run, 'onnx').")
    """
    names = [known for known in dir(value) if not known.startswith("_")]
    hint = f" Use {calls[name]}." if name in calls else did_you_mean(name, names)
    return AttributeError(f"{type(value).__name__} has no attribute {name!r}.{hint}")
