"""``--format transformers``: a folder in the layout of transformers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.atomic_files import write_json
from finetune.export.client import Array, ClientJob, LibraryClient, pillow
from finetune.export.formats.kind import ExportFormat, ExportJob

if TYPE_CHECKING:
    from finetune.input_spec import InputSpec
    from finetune.models.classifier import Classifier
    from finetune.plain import Json

WITHOUT_TIMM = "without_timm"
_PILLOW_FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}


class TransformersClient(LibraryClient):
    """``transformers.pipeline("image-classification", model=FOLDER)(file)``; timm prepares the image."""

    def __init__(self, target: str, options: ClientJob) -> None:
        import torch
        import transformers

        self.torch = torch
        self.pipe: Any = transformers.pipeline("image-classification", model=target, device="cpu")
        names: Any = self.pipe.model.config.id2label
        self.classes = [names[number] for number in range(len(names))]
        self.grey, self.multi_label = bool(options["grey"]), bool(options["multi_label"])
        self.opened_by = f"transformers {transformers.__version__}"

    def prepared(self, images_NCHW: Array) -> Array:
        config = self.pipe.image_processor.data_config
        images = self.normalise(images_NCHW, config["mean"], config["std"])
        with self.torch.no_grad():
            logits_NK = self.pipe.model(self.torch.from_numpy(images)).logits
            return np.asarray((logits_NK.sigmoid() if self.multi_label else logits_NK.softmax(1)).numpy())

    def file(self, path: str) -> Array:
        # a colour model takes the file name; for a grey model the pipeline converts the one channel back to colour
        deep = {"integer_range", "float_range"} & set(self.reading)
        given = pillow(path, grey=self.grey, reading=self.reading) if self.grey or deep else path
        scores = {row["label"]: row["score"] for row in self.pipe(given, top_k=len(self.classes))}
        return np.asarray([scores[name] for name in self.classes])


_SNIPPET = """\
import transformers  # needs timm beside it: its transform prepares the images
{image}
classify = transformers.pipeline("image-classification", model="{path}")
# without timm, up to a pixel beside: image_processor="{path}/without_timm"
print(classify(image))
"""
_SNIPPET_MULTI_LABEL = """\
import transformers  # needs timm beside it: its transform prepares the images
{image}
classify = transformers.pipeline("image-classification", model="{path}")
# without timm, up to a pixel beside: image_processor="{path}/without_timm"
described = classify.model.config.finetune
thresholds = dict(zip(described["classes"], described["thresholds"]))
print([row for row in classify(image, top_k=len(thresholds)) if row["score"] > thresholds[row["label"]]])
"""


def export_transformers(classifier: "Classifier", folder: Path) -> None:
    """Write a folder for ``transformers.pipeline("image-classification", model=FOLDER)``; timm prepares its images.

    transformers' own processors resize with other filter weights and round half a pixel of the crop down, while timm,
    torchvision and our evaluation round it to even: a quarter of all images would be cropped one pixel off. transformers'
    ``TimmWrapperImageProcessor`` runs timm's transform instead. ``without_timm/`` holds a processor that does not need timm.

    Raises:
        UserError: The network is not one of the plain ResNets, or the layout cannot hold its head or stem.
    """
    from finetune.export.export_metadata import KEY, provenance
    from finetune.export.library_formats import (
        RESNETS,
        no_layout,
        plain_resnet,
        save_state,
        state_with_linear_head,
        timm_preparation,
    )
    from finetune.models.adaptations import PRETRAINED_CHANNELS
    from finetune.models.state_dict_names import to_transformers

    name, spec, own = plain_resnet(classifier), classifier.input_spec, classifier.backbone.source == "transformers"
    if name is None and not own:
        raise no_layout(
            "transformers",
            f"its ResNet family holds {', '.join(RESNETS)}, and this network is {classifier.backbone.name!r}",
        )
    state = state_with_linear_head(classifier, "transformers")
    head = {key: state.pop(key) for key in ("fc.weight", "fc.bias")}
    if own:
        architecture = dict(classifier.backbone.kwargs)
    else:
        architecture, state = _architecture(*RESNETS[str(name)]), to_transformers(state)
    save_state({**{f"resnet.{key}": value for key, value in state.items()}, **to_transformers(head)}, folder)
    names = {str(number): name for number, name in enumerate(classifier.classes)}
    write_json(
        folder / "config.json",
        {
            "architectures": ["ResNetForImageClassification"],
            "model_type": "resnet",
            "num_channels": PRETRAINED_CHANNELS,
            **architecture,
            "id2label": names,
            "label2id": {name: int(number) for number, name in names.items()},
            # by which the pipeline chooses sigmoid or softmax
            "problem_type": "multi_label_classification" if classifier.multi_label else "single_label_classification",
            "dtype": "float32",
            "image_processor_type": "TimmWrapperImageProcessor",
            "architecture": name or classifier.backbone.name,
            "pretrained_cfg": timm_preparation(spec),
            KEY: provenance(classifier),
        },
    )
    if spec.crop_mode == "squash" or spec.size[0] == spec.size[1]:
        (folder / WITHOUT_TIMM).mkdir(exist_ok=True)
        write_json(folder / WITHOUT_TIMM / "preprocessor_config.json", _bit_preparation(spec))


def _architecture(depths: tuple[int, ...], layer: str) -> "dict[str, Json]":
    return {
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512] if layer == "basic" else [256, 512, 1024, 2048],
        "depths": list(depths),
        "layer_type": layer,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def _bit_preparation(spec: "InputSpec") -> "dict[str, Json]":
    """Describe transformers' own processor, which crops a quarter of images one pixel off; see export_transformers."""
    from finetune.export.library_formats import resize_sides

    (height, width), covers = spec.size, spec.crop_mode == "center"
    shortest = {"shortest_edge": resize_sides(spec.size, spec.crop_pct)[0]}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": shortest if covers else {"height": height, "width": width},
        "resample": _PILLOW_FILTERS[spec.interpolation],
        "do_center_crop": covers,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def _write(job: ExportJob, path: Path) -> None:
    export_transformers(job.classifier, path)


TRANSFORMERS = ExportFormat(
    name="transformers",
    about='a folder: pipeline("image-classification", model=FOLDER)',
    filename="transformers",
    write=_write,
    client=TransformersClient,
    snippet=_SNIPPET,
    snippet_multi_label=_SNIPPET_MULTI_LABEL,
    is_folder=True,
    has_readme=True,
    needs=("transformers",),
    extra="transformers",
)
