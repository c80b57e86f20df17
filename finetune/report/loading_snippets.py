"""How to load a trained model in each client, as Markdown with runnable code."""

from finetune.input_spec import InputSpec

_IMAGE = """\
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")
"""
_GREY = (
    "The model was trained on grey images. Convert to grey first, as below; the layout holds colour, so the grey channel is "
    'repeated by `.convert("RGB")`.\n'
)
_CODE = {
    "finetune": """\
import finetune

model = finetune.load("{path}")  # uint8 images (B, C, H, W) of the size below to logits (B, K)
""",
    "onnx": """\
import json
import numpy as np, onnxruntime
{image}
session = onnxruntime.InferenceSession("{path}")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
pixels = np.asarray(image).reshape(1, image.height, image.width, -1)  # uint8, any size
probabilities = session.run(None, {{"images": pixels}})[0][0]
print(classes[probabilities.argmax()], probabilities.max())
""",
    "torch_export": """\
import json
import numpy as np, torch
{image}
extra = {{"finetune.json": ""}}
model = torch.export.load("{path}", extra_files=extra).module()
classes = json.loads(extra["finetune.json"])["classes"]
pixels = np.array(image).reshape(1, image.height, image.width, -1)  # uint8, any size
probabilities = model(torch.from_numpy(pixels))[0]
print(classes[int(probabilities.argmax())], float(probabilities.max()))
""",
    "timm": """\
import timm
{image}
model = timm.create_model("local-dir:{path}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
probabilities = model(transform(image{rgb})[None]).softmax(1)[0]
print(model.pretrained_cfg["label_names"][int(probabilities.argmax())], float(probabilities.max()))
""",
    "torchvision": """\
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
probabilities = model(transform(image{rgb})[None]).softmax(1)[0]
print(described["classes"][int(probabilities.argmax())], float(probabilities.max()))
""",
    "transformers": """\
import transformers  # needs timm beside it: its transform prepares the images
{image}
classify = transformers.pipeline("image-classification", model="{path}")
# without timm, up to a pixel beside: image_processor="{path}/without_timm"
print(classify(image))
""",
}


# the only format we write that can execute code: torch.export.load unpickles parts of the file
CAUTIONS = {
    "torch_export": "Opening a `.pt2` file executes what its maker put there: `torch.export.load` unpickles parts of it. Open "
    "only those whose maker you trust; the bundle and the ONNX file hold the same model as data.",
}


def how_to_load(form: str, spec: InputSpec, *, path: str) -> str:
    """Return the Markdown section for one client.

    Args:
        form: ``finetune``, ``onnx``, ``torch_export``, ``timm``, ``torchvision`` or ``transformers``.
        spec: Input of the model.
        path: Path of the export.
    """
    grey = spec.channels == 1
    repeated = grey and form in ("timm", "torchvision", "transformers")
    code = _CODE[form].format(
        image=_IMAGE.format(mode="L" if grey else "RGB"), path=path, rgb='.convert("RGB")' if repeated else ""
    )
    caution = f"{CAUTIONS[form]}\n" if form in CAUTIONS else ""
    return f"## {form}\n\n{caution}{_GREY if repeated else ''}\n```python\n{code}```\n"
