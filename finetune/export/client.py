"""Open exported models with each format's own library, in a separate process that cannot import this package.

:mod:`finetune.export.parity` runs this file as a script. It imports Pillow, NumPy and the library of the format under test,
and nothing from this package: each class below also shows how a user opens that format.
"""

import json
import sys
import warnings
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

# N = images, C = channels, H/W = image height/width, K = classes

Array = npt.NDArray[np.generic]


def pillow(path: str, *, grey: bool) -> Image.Image:
    """Open an image file, apply its EXIF orientation, and convert it to RGB or to grey."""
    with Image.open(path) as image:
        if grey:
            image.draft(
                "L", image.size
            )  # JPEG files store grey values; this reads them instead of converting from colour
        return ImageOps.exif_transpose(image).convert("L" if grey else "RGB")


def pixels_of(image: Image.Image, layout: str) -> Array:
    """Return the pixels as ``uint8 (1, H, W, C)`` or ``(1, C, H, W)``, by ``layout``."""
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    return np.ascontiguousarray(array if layout == "nhwc" else array.transpose(2, 0, 1))[None]


class _Graph(ABC):
    """A model that takes raw pixels of any size and prepares them itself."""

    layout: str
    grey: bool

    @abstractmethod
    def run(self, pixels: Array) -> Array: ...

    def file(self, path: str) -> Array:
        return np.asarray(self.run(pixels_of(pillow(path, grey=self.grey), self.layout))[0])

    def decoded(self, path: str) -> Array:
        """Return the probabilities for pixels decoded elsewhere: uint8 (C, H, W) in a ``.npy`` file."""
        image_CHW = np.load(path)
        image = image_CHW if self.layout == "nchw" else image_CHW.transpose(1, 2, 0)
        return np.asarray(self.run(np.ascontiguousarray(image)[None])[0])


class Onnx(_Graph):
    """``onnxruntime.InferenceSession(FILE).run(None, {"images": pixels})``."""

    def __init__(self, target: str, options: dict[str, Any]) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(target, settings, providers=["CPUExecutionProvider"])
        described = json.loads(self.session.get_modelmeta().custom_metadata_map["finetune"])
        self.classes = described["classes"]
        self.layout = described["pixels"]["layout"]
        self.grey = self.session.get_inputs()[0].shape[3 if self.layout == "nhwc" else 1] == 1
        self.opened_by = f"onnxruntime {onnxruntime.__version__}"

    def run(self, pixels: Array) -> Array:
        return np.asarray(self.session.run(None, {"images": pixels})[0])


class TorchExport(_Graph):
    """``torch.export.load(FILE).module()(pixels)``."""

    def __init__(self, target: str, options: dict[str, Any]) -> None:
        import torch

        extra = {"finetune.json": ""}
        self.torch = torch
        self.model = torch.export.load(target, extra_files=extra).module()
        described = json.loads(extra["finetune.json"])
        self.classes, self.layout = described["classes"], described["pixels"]["layout"]
        self.grey = described["input"]["channels"] == 1
        self.opened_by = f"torch {torch.__version__}"

    def run(self, pixels: Array) -> Array:
        with self.torch.no_grad():
            return np.asarray(self.model(self.torch.from_numpy(pixels)).numpy())


class _Torch:
    """The part that the three libraries share: normalised colour images to logits."""

    def normalise(self, images_NCHW: Array, mean: list[float], std: list[float]) -> Array:
        spread = np.asarray(std, np.float32).reshape(1, -1, 1, 1)
        middle = np.asarray(mean, np.float32).reshape(1, -1, 1, 1)
        colour = np.broadcast_to(images_NCHW, (images_NCHW.shape[0], 3, *images_NCHW.shape[2:]))
        return (colour.astype(np.float32) / np.float32(255) - middle) / spread


class Timm(_Torch):
    """``timm.create_model("local-dir:FOLDER", pretrained=True)`` with its own data config and transform."""

    def __init__(self, target: str, options: dict[str, Any]) -> None:
        import timm
        import torch

        data: Any = timm.data
        self.torch = torch
        self.model: Any = timm.create_model(f"local-dir:{target}", pretrained=True).eval()
        self.config = data.resolve_model_data_config(self.model)
        self.transform = data.create_transform(**self.config, is_training=False)
        cfg: Any = self.model.pretrained_cfg
        self.classes = list(cfg["label_names"])
        self.grey = bool(options["grey"])
        self.opened_by = f"timm {timm.__version__}"

    def prepared(self, images_NCHW: Array) -> Array:
        images = self.normalise(images_NCHW, self.config["mean"], self.config["std"])
        with self.torch.no_grad():
            return np.asarray(self.model(self.torch.from_numpy(images)).softmax(1).numpy())

    def file(self, path: str) -> Array:
        image = self.transform(pillow(path, grey=self.grey).convert("RGB"))
        with self.torch.no_grad():
            return np.asarray(self.model(image[None]).softmax(1)[0].numpy())


class Torchvision(_Torch):
    """``torchvision.models.NAME(num_classes=K).load_state_dict(load_file(FOLDER/model.safetensors))``."""

    def __init__(self, target: str, options: dict[str, Any]) -> None:
        import torch
        import torchvision
        from safetensors.torch import load_file
        from torchvision.transforms import v2

        with open(f"{target}/classes.json", encoding="utf-8") as file:
            described = json.load(file)
        self.torch, self.steps = torch, described["preprocessing"]
        self.classes = described["classes"]
        self.model = torchvision.models.get_model(described["architecture"], num_classes=len(self.classes))
        self.model.load_state_dict(load_file(f"{target}/model.safetensors"))
        self.model.eval()
        resize = self.steps["resize"][:1] if self.steps["keep_proportions"] else self.steps["resize"]
        self.transform = v2.Compose(
            [
                # resize the Pillow image, as torchvision's own presets do; torchvision resizes tensors with coarser weights
                v2.Resize(resize, interpolation=v2.InterpolationMode(self.steps["interpolation"])),
                v2.CenterCrop(self.steps["center_crop"]),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(self.steps["mean"], self.steps["std"]),
            ]
        )
        self.grey = bool(options["grey"])
        self.opened_by = f"torchvision {torchvision.__version__}"

    def prepared(self, images_NCHW: Array) -> Array:
        images = self.normalise(images_NCHW, self.steps["mean"], self.steps["std"])
        with self.torch.no_grad():
            return np.asarray(self.model(self.torch.from_numpy(images)).softmax(1).numpy())

    def file(self, path: str) -> Array:
        image = self.transform(pillow(path, grey=self.grey).convert("RGB"))
        with self.torch.no_grad():
            return np.asarray(self.model(image[None]).softmax(1)[0].numpy())


class Transformers(_Torch):
    """``transformers.pipeline("image-classification", model=FOLDER)(file)``; timm prepares the image."""

    def __init__(self, target: str, options: dict[str, Any]) -> None:
        import torch
        import transformers

        self.torch = torch
        self.pipe: Any = transformers.pipeline("image-classification", model=target, device="cpu")
        names: Any = self.pipe.model.config.id2label
        self.classes = [names[number] for number in range(len(names))]
        self.grey = bool(options["grey"])
        self.opened_by = f"transformers {transformers.__version__}"

    def prepared(self, images_NCHW: Array) -> Array:
        config = self.pipe.image_processor.data_config
        images = self.normalise(images_NCHW, config["mean"], config["std"])
        with self.torch.no_grad():
            return np.asarray(self.pipe.model(self.torch.from_numpy(images)).logits.softmax(1).numpy())

    def file(self, path: str) -> Array:
        # a colour model takes the file name; for a grey model the pipeline converts the one channel back to colour
        given = pillow(path, grey=True) if self.grey else path
        scores = {row["label"]: row["score"] for row in self.pipe(given, top_k=len(self.classes))}
        return np.asarray([scores[name] for name in self.classes])


def described(path: str) -> dict[str, Any]:
    """Return the JSON entry ``finetune`` from the metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["finetune"]))


class HeadClient:
    """``safetensors.torch.load_file(FILE)`` and a matrix product: features to logits."""

    def __init__(self, target: str, options: dict[str, Any]) -> None:
        import torch
        from safetensors.torch import load_file

        self.torch, self.weights = torch, load_file(target)
        entry = described(target)
        self.classes = entry["classes"]
        code: dict[str, Any] = {}
        exec(options["code"], code)
        self.logits_alone = code[options["function"]]
        self.opened_by = f"safetensors, torch {torch.__version__}"

    def run(self, features_ND: Array) -> Array:
        logits = self.logits_alone(self.torch.from_numpy(features_ND), self.weights, self.torch.nn.functional)
        return np.asarray(logits)


class BackboneClient:
    """The library's own network with ``load_state_dict(safetensors.torch.load_file(FILE))``: images to features."""

    classes: tuple[str, ...] = ()

    def __init__(self, target: str, options: dict[str, Any]) -> None:
        import torch
        from safetensors.torch import load_file

        entry = described(target)["backbone"]
        self.torch = torch
        source, name, kwargs, channels = entry["source"], entry["name"], entry["kwargs"], options["in_chans"]
        self.opened_by = f"{source} {__import__(source).__version__}"
        if source == "timm":
            self.model: Any = __import__("timm").create_model(name, num_classes=0, in_chans=channels, **kwargs)
        elif source == "torchvision":
            import torchvision

            self.model = torchvision.models.get_model(name, **kwargs)
            self.model.fc = torch.nn.Identity()
            first = self.model.conv1
            if first.in_channels != channels:
                kept = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding")}
                self.model.conv1 = torch.nn.Conv2d(channels, first.out_channels, bias=False, **kept)
        else:
            import transformers

            config = transformers.ResNetConfig(**{**kwargs, "num_channels": channels})
            self.model = transformers.ResNetModel(config)
        self.model.load_state_dict(load_file(target))
        self.model.eval()

    def run(self, images_NSHW: Array) -> Array:
        with self.torch.no_grad():
            output = self.model(self.torch.from_numpy(images_NSHW))
        return np.asarray(output if isinstance(output, self.torch.Tensor) else output.pooler_output.flatten(1))


CLIENTS: dict[str, Any] = {
    "head": HeadClient,
    "backbone": BackboneClient,
    "onnx": Onnx,
    "torch_export": TorchExport,
    "timm": Timm,
    "torchvision": Torchvision,
    "transformers": Transformers,
}


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Compute one export's probabilities from given pixels and from files, and save both to the file ``answers``."""
    client = CLIENTS[job["format"]](job["target"], job)
    if isinstance(client, (HeadClient, BackboneClient)):
        given = np.load(job["given"])
        np.savez(
            job["answers"], answers=np.concatenate([client.run(given[at : at + 16]) for at in range(0, len(given), 16)])
        )
        return {"opened_by": client.opened_by, "classes": list(client.classes)}
    from_files = np.stack([client.file(path) for path in job["files"]])
    if isinstance(client, _Graph):
        # where Pillow decodes to exactly the pixels that the trained model saw, the file's answer is also the pixels' answer
        from_pixels = from_files.copy()
        for number, path in job["decoded"].items():
            from_pixels[int(number)] = client.decoded(path)
    else:
        images_NCHW = np.load(job["pixels"])
        parts = [client.prepared(images_NCHW[at : at + 16]) for at in range(0, len(images_NCHW), 16)]
        from_pixels = np.concatenate(parts)
    np.savez(job["answers"], from_pixels=from_pixels, from_files=from_files)
    return {"opened_by": client.opened_by, "classes": client.classes}


def main() -> None:
    """Run the jobs listed in a JSON file; save each job's answers to its own file and print a summary as JSON."""
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    warnings.simplefilter("ignore")  # warnings from other libraries in this process are not for our users
    print(json.dumps([answer(job) for job in jobs]))


if __name__ == "__main__":
    main()
