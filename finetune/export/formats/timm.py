"""``--format timm``: a folder in the layout of timm."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.atomic_files import write_json
from finetune.export.client import ClientJob, TorchClient
from finetune.export.formats.kind import ExportFormat, ExportJob

if TYPE_CHECKING:
    from finetune.models.classifier import Classifier


class TimmClient(TorchClient):
    """``timm.create_model("local-dir:FOLDER", pretrained=True)`` with its own data config and transform."""

    def __init__(self, target: str, options: ClientJob) -> None:
        import timm
        import torch

        data: Any = timm.data
        self.torch = torch
        self.model = timm.create_model(f"local-dir:{target}", pretrained=True).eval()
        config = data.resolve_model_data_config(self.model)
        self.transform = data.create_transform(**config, is_training=False)
        self.mean, self.std = config["mean"], config["std"]
        cfg: Any = self.model.pretrained_cfg
        self.classes = list(cfg["label_names"])
        self.grey, self.multi_label = bool(options["grey"]), bool(options["multi_label"])
        self.opened_by = f"timm {timm.__version__}"


_SNIPPET = """\
import timm
{image}
model = timm.create_model("local-dir:{path}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
probabilities = model(transform(image{rgb})[None]).softmax(1)[0]
print(model.pretrained_cfg["label_names"][int(probabilities.argmax())], float(probabilities.max()))
"""
_SNIPPET_MULTI_LABEL = """\
import json
import pathlib
import timm
{image}
model = timm.create_model("local-dir:{path}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
described = json.loads(pathlib.Path("{path}/config.json").read_text(encoding="utf-8"))["finetune"]
probabilities = model(transform(image{rgb})[None]).sigmoid()[0].tolist()
print([name for name, p, t in zip(described["classes"], probabilities, described["thresholds"]) if p > t])
"""


def export_timm(classifier: "Classifier", folder: Path) -> None:
    """Write a folder for ``timm.create_model("local-dir:FOLDER", pretrained=True)``, with data config and label names.

    Raises:
        UserError: The network does not come from timm, or the layout cannot hold its head or stem.
    """
    from finetune.export.export_metadata import KEY, provenance
    from finetune.export.library_formats import (
        no_layout,
        plain_resnet,
        renamed_head,
        save_state,
        state_with_linear_head,
        timm_preparation,
    )
    from finetune.models.user_modules import OWN

    net = classifier.backbone
    plain = plain_resnet(classifier)
    if net.source != "timm" and plain is None:
        origin = "is a user-supplied class" if net.source == OWN else f"comes from {net.source}"
        raise no_layout("timm", f"the network {net.name!r} {origin}")
    state, spec = state_with_linear_head(classifier, "timm"), classifier.input_spec
    name = net.name if net.source == "timm" else str(plain)
    cfg = getattr(net.net, "pretrained_cfg", None) or {}
    classifier_name = cfg.get("classifier", "fc")
    if not isinstance(classifier_name, str):
        raise no_layout("timm", f"{name} has several classifiers there")
    arguments = dict(net.kwargs) if net.source == "timm" else {}
    if net.pool is not None:
        from finetune.models.sources.from_timm import layout_arguments

        pooling = layout_arguments(net)
        if pooling is None:
            raise no_layout("timm", f"timm has no backbone.pool={net.pool}")
        arguments |= pooling
    if net.fixed_size:
        arguments["img_size"] = list(spec.size)
    save_state(renamed_head(state, classifier_name), folder)
    write_json(
        folder / "config.json",
        {
            "architecture": name.partition(".")[0],
            "num_classes": len(classifier.classes),
            "num_features": net.num_features,
            "label_names": list(classifier.classes),
            **({"model_args": arguments} if arguments else {}),
            "pretrained_cfg": {
                "custom_load": False,
                "fixed_input_size": net.fixed_size,
                **timm_preparation(spec),
                "num_classes": len(classifier.classes),
                "pool_size": None,
                "first_conv": net.first_convs[0] if len(net.first_convs) == 1 else list(net.first_convs),
                "classifier": classifier_name,
            },
            KEY: provenance(classifier),
        },
    )


def _write(job: ExportJob, path: Path) -> None:
    export_timm(job.classifier, path)


TIMM = ExportFormat(
    name="timm",
    about='a folder: timm.create_model("local-dir:FOLDER", pretrained=True)',
    filename="timm",
    write=_write,
    client=TimmClient,
    snippet=_SNIPPET,
    snippet_multi_label=_SNIPPET_MULTI_LABEL,
    is_folder=True,
    has_readme=True,
)
