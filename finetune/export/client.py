"""Open exported models with each format's own library, in a separate process that cannot import this package.

:mod:`finetune.export.parity` runs this file as a script. It imports Pillow, NumPy and the library of the format under test,
and nothing from this package. The class that opens a format is in the format's own file, and its text comes with the job.
"""

import json
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

# N = images, C = channels, H/W = image height/width, K = classes

Array = npt.NDArray[np.generic]


def pillow(path: str, *, grey: bool, reading: Mapping[str, Any] | None = None) -> Image.Image:
    """Open an image file, apply its EXIF orientation, scale high bit depths as ``reading`` says, and convert to RGB or grey."""
    with Image.open(path) as image:
        if grey:
            image.draft(
                "L", image.size
            )  # JPEG files store grey values; this reads them instead of converting from colour
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I") or upright.mode == "F":
            upright = eight_bits(upright, reading or {})
        return upright.convert("L" if grey else "RGB")


def eight_bits(image: Image.Image, reading: Mapping[str, Any]) -> Image.Image:
    """Scale an image of more than 8 bits by the range of the training images, as the snippets show users how to."""
    numbers = np.asarray(image).astype(np.float64)
    black, white = reading.get("float_range" if image.mode == "F" else "integer_range") or (0, 65535)
    if reading.get("high_depth") == "stretch":
        black, white = numbers.min(), numbers.max()
    if white <= black:
        return Image.fromarray(np.zeros(numbers.shape, np.uint8))
    return Image.fromarray(
        np.floor((numbers.clip(black, white) - black) * 255 / (white - black) + 0.5).astype(np.uint8)
    )


def pixels_of(image: Image.Image, layout: str) -> Array:
    """Return the pixels as ``uint8 (1, H, W, C)`` or ``(1, C, H, W)``, by ``layout``."""
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    return np.ascontiguousarray(array if layout == "nhwc" else array.transpose(2, 0, 1))[None]


class ClientJob(TypedDict, total=False):
    """An export to open, as the file of jobs holds it; a part has other keys than a whole model."""

    target: str  # file or folder
    client: str  # name of the class that opens it
    client_code: str  # text of that class
    answers: str  # .npz file to write
    # of a whole model
    grey: bool  # whether images have one channel
    multi_label: bool  # whether probabilities are sigmoids
    pixels: str  # .npy file of prepared images, uint8 (N, C, H, W)
    by_pillow: bool  # whether Pillow reads files of so many channels
    decoded: dict[str, str]  # .npy file of the pixels by number, where plain Pillow decodes to others
    unopened: list[int]  # numbers of the files that plain Pillow cannot open
    files: list[str]
    reading: Mapping[str, Any]  # how the run reads files: high_depth, and the ranges of images of high bit depth
    # of a part
    given: str  # .npy file of what the part takes
    in_chans: int
    code: str  # text of the function that does the part's work
    function: str  # its name


class Opened(TypedDict):
    """What a job prints."""

    opened_by: str
    classes: list[str]


class HeadMetadata(TypedDict):
    """The description of a head in its file, as far as it is needed here."""

    name: str


class BackboneMetadata(TypedDict):
    """The description of a backbone in its file, as far as it is needed here."""

    source: str
    name: str
    kwargs: Mapping[str, Any]  # arguments of the library's constructor
    input_spec: Mapping[str, Any]  # of it only size, height and width in pixels, is needed
    pool: NotRequired[str]  # where it was chosen


class PartMetadata(TypedDict, total=False):
    """The metadata of the file of a part: of a head, or of a backbone."""

    classes: list[str]
    head: HeadMetadata
    backbone: BackboneMetadata


class Client(ABC):
    """What opens one format.

    Args:
        target: File or folder to open.
        options: The whole job.
    """

    classes: Sequence[str] = ()
    opened_by: str
    # how the run reads files, from the job
    reading: Mapping[str, Any] = {}

    @abstractmethod
    def __init__(self, target: str, options: ClientJob) -> None: ...


class GraphClient(Client):
    """A model that takes raw pixels of any size and prepares them itself."""

    layout: str
    grey: bool

    @abstractmethod
    def run(self, pixels: Array) -> Sequence[Array]: ...

    def file(self, path: str) -> Array:
        return self._answer(pixels_of(pillow(path, grey=self.grey, reading=self.reading), self.layout))

    def decoded(self, path: str) -> Array:
        """Return the answer for pixels decoded elsewhere: uint8 (C, H, W) in a ``.npy`` file."""
        image_CHW = np.load(path)
        image = image_CHW if self.layout == "nchw" else image_CHW.transpose(1, 2, 0)
        return self._answer(np.ascontiguousarray(image)[None])

    def _answer(self, pixels: Array) -> Array:
        """Return the probabilities of an image, and after them its score where the model tells unknown images."""
        return np.concatenate([np.asarray(output)[0].reshape(-1) for output in self.run(pixels)])


class LibraryClient(Client):
    """A model of colour images that a library prepares: normalised images to logits."""

    @abstractmethod
    def file(self, path: str) -> Array: ...

    @abstractmethod
    def prepared(self, images_NCHW: Array) -> Array: ...

    def normalise(self, images_NCHW: Array, mean: list[float], std: list[float]) -> Array:
        spread = np.asarray(std, np.float32).reshape(1, -1, 1, 1)
        middle = np.asarray(mean, np.float32).reshape(1, -1, 1, 1)
        colour = np.broadcast_to(images_NCHW, (images_NCHW.shape[0], 3, *images_NCHW.shape[2:]))
        return (colour.astype(np.float32) / np.float32(255) - middle) / spread


class TorchClient(LibraryClient):
    """A torch module of colour images, and the library's transform of a Pillow image."""

    torch: Any
    model: Any  # normalised images to logits
    transform: Any
    mean: list[float]
    std: list[float]
    grey: bool
    multi_label: bool

    def prepared(self, images_NCHW: Array) -> Array:
        return self.probabilities(self.torch.from_numpy(self.normalise(images_NCHW, self.mean, self.std)))

    def file(self, path: str) -> Array:
        image = self.transform(pillow(path, grey=self.grey, reading=self.reading).convert("RGB"))
        return np.asarray(self.probabilities(image[None])[0])

    def probabilities(self, images_NCHW: Any) -> Array:
        with self.torch.no_grad():
            logits_NK = self.model(images_NCHW)
            return np.asarray((logits_NK.sigmoid() if self.multi_label else logits_NK.softmax(1)).numpy())


class PartClient(Client):
    """A part of a model: what it makes of the other part's output, or of prepared images."""

    @abstractmethod
    def run(self, given: Array) -> Array: ...


def described(path: str) -> PartMetadata:
    """Return the JSON entry ``finetune`` from the metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata: PartMetadata = json.loads(file.metadata()["finetune"])
    return metadata


def function_of(options: ClientJob) -> Any:
    """Return the function that came as text with a job: a head's formula, or the builder of a network."""
    code: dict[str, Any] = {"Any": Any, "Mapping": Mapping}
    exec(options["code"], code)
    return code[options["function"]]


def answer(job: ClientJob) -> Opened:
    """Compute one export's probabilities from given pixels and from files, and save both to the file ``answers``."""
    # text of this package, which it cannot import here: see `finetune.export.parity.run_client`
    exec(job["client_code"], globals())
    client = globals()[job["client"]](job["target"], job)
    client.reading = job.get("reading", {})
    if isinstance(client, PartClient):
        given = np.load(job["given"])
        np.savez(
            job["answers"], answers=np.concatenate([client.run(given[at : at + 16]) for at in range(0, len(given), 16)])
        )
        return {"opened_by": client.opened_by, "classes": list(client.classes)}
    decoded = job["decoded"]
    # files of other channels than 1 and 3 are not opened with Pillow
    alone = not job["by_pillow"] and isinstance(client, GraphClient)
    unopened, rows = set(job["unopened"]), []
    for at, file in enumerate(job["files"]):
        if isinstance(client, GraphClient) and (alone or at in unopened):
            rows.append(client.decoded(decoded[str(at)]))
        else:
            # a library that takes files gives no answer to one that it cannot open
            rows.append(np.full(len(client.classes), np.nan) if at in unopened else client.file(file))
    from_files = np.stack(rows)
    if isinstance(client, GraphClient):
        # where Pillow decodes to exactly the pixels that the trained model saw, the file's answer is also the pixels' answer
        from_pixels = from_files.copy()
        for number, path in job["decoded"].items():
            from_pixels[int(number)] = client.decoded(path)
    else:
        images_NCHW = np.load(job["pixels"])
        parts = [client.prepared(images_NCHW[at : at + 16]) for at in range(0, len(images_NCHW), 16)]
        from_pixels = np.concatenate(parts)
    np.savez(job["answers"], from_pixels=from_pixels, from_files=from_files)
    return {"opened_by": client.opened_by, "classes": list(client.classes)}


def main() -> None:
    """Run the jobs listed in a JSON file; save each job's answers to its own file and print a summary as JSON."""
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    warnings.simplefilter("ignore")  # warnings from other libraries in this process are not for our users
    print(json.dumps([answer(job) for job in jobs]))


if __name__ == "__main__":
    main()
