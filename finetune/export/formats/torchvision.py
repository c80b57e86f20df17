"""``--format torchvision``: a folder in the layout of torchvision."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.atomic_files import write_json
from finetune.export.client import ClientJob, TorchClient
from finetune.export.formats.kind import ExportFormat, ExportJob

if TYPE_CHECKING:
    from finetune.models.classifier import Classifier


class TorchvisionClient(TorchClient):
    """``torchvision.models.NAME(num_classes=K).load_state_dict(load_file(FOLDER/model.safetensors))``."""

    def __init__(self, target: str, options: ClientJob) -> None:
        import torch
        import torchvision
        from safetensors.torch import load_file
        from torchvision.transforms import v2

        with open(f"{target}/classes.json", encoding="utf-8") as file:
            described = json.load(file)
        steps = described["preprocessing"]
        self.classes = described["classes"]
        self.model = torchvision.models.get_model(described["architecture"], num_classes=len(self.classes))
        self.model.load_state_dict(load_file(f"{target}/model.safetensors"))
        self.model.eval()
        self.torch, self.mean, self.std = torch, steps["mean"], steps["std"]
        resize = steps["resize"][:1] if steps["keep_proportions"] else steps["resize"]
        self.transform = v2.Compose(
            [
                # resize the Pillow image, as torchvision's own presets do; torchvision resizes tensors with coarser weights
                v2.Resize(resize, interpolation=v2.InterpolationMode(steps["interpolation"])),
                v2.CenterCrop(steps["center_crop"]),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(self.mean, self.std),
            ]
        )
        self.grey, self.multi_label = bool(options["grey"]), bool(options["multi_label"])
        self.opened_by = f"torchvision {torchvision.__version__}"


_PREPARED = """\
import json
import torch, torchvision
from safetensors.torch import load_file
from torchvision.transforms import v2
{image}
with open("{path}/classes.json", encoding="utf-8") as file:
    described = json.load(file)
model = torchvision.models.get_model(described["architecture"], num_classes=len(described["classes"]))
model.load_state_dict(load_file("{path}/model.safetensors"))
model.eval()
steps = described["preprocessing"]
transform = v2.Compose([
    v2.Resize(steps["resize"][:1] if steps["keep_proportions"] else steps["resize"],
              interpolation=v2.InterpolationMode(steps["interpolation"])),
    v2.CenterCrop(steps["center_crop"]),
    v2.PILToTensor(),  # after the resize: a tensor is resized with coarser weights than a Pillow image
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize(steps["mean"], steps["std"]),
])
"""
_SNIPPET = f"""\
{_PREPARED}\
probabilities = model(transform(image{{rgb}})[None]).softmax(1)[0]
print(described["classes"][int(probabilities.argmax())], float(probabilities.max()))
"""
_SNIPPET_MULTI_LABEL = f"""\
{_PREPARED}\
probabilities = model(transform(image{{rgb}})[None]).sigmoid()[0].tolist()
thresholds = described["finetune"]["thresholds"]
print([name for name, p, t in zip(described["classes"], probabilities, thresholds) if p > t])
"""


def export_torchvision(classifier: "Classifier", folder: Path) -> None:
    """Write a folder with a state dict for ``torchvision.models.NAME(num_classes=K).load_state_dict`` and the class names.

    Raises:
        UserError: torchvision has no such network, or the layout cannot hold its head, stem or crop.
    """
    from finetune.export.export_metadata import KEY, provenance
    from finetune.export.library_formats import (
        no_layout,
        plain_resnet,
        renamed_head,
        resize_sides,
        save_state,
        state_with_linear_head,
    )

    name = plain_resnet(classifier)
    if name is None and classifier.backbone.source == "torchvision" and not classifier.backbone.kwargs:
        name = classifier.backbone.name
    if name is None:
        raise no_layout("torchvision", f"torchvision has no matching layout for {classifier.backbone.name!r}")
    spec = classifier.input_spec
    if spec.crop_mode == "center" and spec.size[0] != spec.size[1]:
        raise no_layout("torchvision", f"its Resize cannot cover a crop of {spec.size[0]} x {spec.size[1]} pixels")
    state = state_with_linear_head(classifier, "torchvision")
    save_state(renamed_head(state, "fc"), folder)
    write_json(
        folder / "classes.json",
        {
            "architecture": name,
            "classes": list(classifier.classes),
            "preprocessing": {
                "resize": resize_sides(spec.size, spec.crop_pct) if spec.crop_mode == "center" else list(spec.size),
                "keep_proportions": spec.crop_mode == "center",
                "center_crop": list(spec.size),
                "interpolation": spec.interpolation,
                "mean": list(spec.mean),
                "std": list(spec.std),
            },
            KEY: provenance(classifier),
        },
    )


def _write(job: ExportJob, path: Path) -> None:
    export_torchvision(job.classifier, path)


TORCHVISION = ExportFormat(
    name="torchvision",
    about="a folder: torchvision.models.NAME().load_state_dict",
    filename="torchvision",
    write=_write,
    client=TorchvisionClient,
    snippet=_SNIPPET,
    snippet_multi_label=_SNIPPET_MULTI_LABEL,
    is_folder=True,
    has_readme=True,
)
