"""Feature extractor: a network that turns images into features, from a trained run or a pretrained backbone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from finetune.bundle import find_bundle, load_bundle, read_model_json
from finetune.data.decode import DecodeOptions, decode_bytes
from finetune.data.transforms import eval_view
from finetune.embeddings.embeddings import EmbeddingsError
from finetune.errors import UserError, did_you_mean, shortened
from finetune.inference.decode_options import decode_options_of, recorded_options
from finetune.input_spec import InputSpec
from finetune.models.backbone import Backbone
from finetune.models.batch_norm_folding import optimize_for_inference
from finetune.models.build import build_backbone
from finetune.models.channels import InputAdapter
from finetune.models.chunks import run_in_chunks
from finetune.models.classifier import Classifier
from finetune.models.description import backbone_problems
from finetune.models.hub import cache_alone
from finetune.models.modes import evaluating
from finetune.models.pretrained import WORDS
from finetune.models.sources import fit_to_size
from finetune.models.weights import hash_of_backbone
from finetune.plain import Json

# B = batch, C = channels of the image, H/W = image height/width, D = features


class FeatureExtractor(nn.Module):
    """Maps ``uint8 (B, C, H, W)`` to pooled features ``(B, D)`` of the last stage, or of another.

    Args:
        backbone: Backbone whose stem is adapted to the images' channels. It is shared and not changed.
        spec: Input that the network expects.
        adapt: Method that adapted the images' channels to the stem.
        stage: Stage whose output is pooled; None uses the network's own features.
        decode_options: How files are decoded, to the channels of ``spec``; None for the defaults.
        origin: Where the network can be loaded from again: ``run``, or ``weights`` and ``seed``.

    Raises:
        UserError: The network has no such stage, or cannot be split after it.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        spec: InputSpec,
        adapt: str,
        stage: str | None = None,
        decode_options: DecodeOptions | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.input = InputAdapter(channels=spec.channels, adapt=adapt, mean=spec.mean, std=spec.std)
        if (parameter := next(backbone.net.parameters(), None)) is not None:
            self.input.to(parameter.device)
        self.stage, self.stages = _check_stage(backbone, stage), backbone.stages
        self.spec, self.view = spec, eval_view(spec)
        self.decode_options = replace(decode_options or DecodeOptions(), channels=spec.channels)
        # in a tuple, so that its modules are not registered a second time
        self._backbone, self.adapt = (backbone,), adapt
        # everything that the features depend on, and where to load it from again, as plain JSON values
        self.model = {
            **(origin or {"run": None, "weights": None, "seed": 0}),
            "backbone": backbone.describe(),
            "adapt": adapt,
            "input": spec.to_dict(),
            "hash": hash_of_backbone(backbone),
        }
        # after the last stage these are the features that the head is trained on, with the network's own pooling
        self.net = backbone.split(self.stage)[0] if self.stage in backbone.boundaries else _UpTo(backbone, self.stage)
        # network that :meth:`embed` runs, built when first needed
        self._fast: nn.Module | None = None
        # timm's name for maps with channels last
        self._places = (1, 2) if getattr(backbone.net, "output_fmt", "") == "NHWC" else (2, 3)

    @property
    def backbone(self) -> Backbone:
        """The whole backbone."""
        return self._backbone[0]

    @property
    def identity(self) -> dict[str, Json]:
        """Values that the features depend on: equal values mean equal features."""
        kept = {key: value for key, value in self.model.items() if key not in ("run", "weights", "seed")}
        return {"model": kept, "stage": self.stage, "reading": self.decode_options.to_plain()}

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return features ``(B, D)``: maps are averaged over positions, tokens over the sequence."""
        return self._pooled(self.net, images_BCHW)

    def _prepare(self, images_BCHW: Tensor) -> Tensor:
        images_BSHW: Tensor = self.input(images_BCHW.to(self.input.mean.dtype) / 255)
        return images_BSHW

    def _pooled(self, net: nn.Module, images_BCHW: Tensor) -> Tensor:
        output: Tensor = net(self._prepare(images_BCHW))
        if output.ndim == 4:
            output = output.mean(self._places)
        return output.mean(1) if output.ndim == 3 else output

    def read(self, data: bytearray, path: str) -> Tensor:
        """Return the evaluation view of an image file given as bytes, uint8 (C, H, W).

        Raises:
            UnreadableImage: The image cannot be read.
        """
        return self.view.of_pixels(decode_bytes(data, self.decode_options, path=path, min_side=self.view.min_side))

    @torch.inference_mode()
    def embed(self, images: list[Tensor]) -> npt.NDArray[np.float32]:
        """Return features (N, D) of views, or of any images of one size, with the network in evaluation mode."""
        with evaluating(self):
            net = self._for_inference()
            images_BCHW = torch.stack(images).to(self.input.mean.device)
            features_BD = run_in_chunks(lambda part: self._pooled(net, part), images_BCHW)
        features: npt.NDArray[np.float32] = features_BD.float().cpu().numpy()
        return features

    def _for_inference(self) -> nn.Module:
        """Return the network with BatchNorm folded into its convolutions if possible; its weights must not change afterwards."""
        if self._fast is None:
            self._fast = optimize_for_inference(self.net, self.spec, prepare=self._prepare)
        return self._fast


def _check_stage(backbone: Backbone, stage: str | None) -> str:
    if stage is None:
        return backbone.stages[-1]
    if stage not in backbone.stages:
        hint = did_you_mean(stage, backbone.stages)
        raise UserError(
            f"--stage {stage}: not a stage of {backbone.name!r}. Stages: {', '.join(backbone.stages)}.{hint}"
        )
    reachable = [name for name in backbone.stages if name in backbone.boundaries or _module_of(backbone, name)]
    if stage not in reachable:
        raise UserError(
            f"--stage {stage}: {backbone.name!r} does not expose the output of this stage. Choose one of {shortened(reachable)}."
        )
    return stage


def _module_of(backbone: Backbone, stage: str) -> nn.Module | None:
    """Return the module of a stage, in a network that cannot be split after the stage but has a module of its name."""
    return dict(backbone.net.named_modules()).get(stage)


class _UpTo(nn.Module):
    """The output of a stage, captured while the whole network runs."""

    def __init__(self, backbone: Backbone, stage: str) -> None:
        super().__init__()
        self.backbone, self.stage = backbone, stage

    def forward(self, images_BSHW: Tensor) -> Tensor:
        module = _module_of(self.backbone, self.stage)
        assert module is not None, "checked when this was made"
        outputs: list[Tensor] = []
        hook = module.register_forward_hook(lambda module, given, output: outputs.append(output))
        try:
            self.backbone(images_BSHW)
        finally:
            hook.remove()
        return outputs[0]


def extractor_from_classifier(
    classifier: Classifier,
    *,
    stage: str | None = None,
    decode_options: DecodeOptions | None = None,
    run: str | Path | None = None,
) -> FeatureExtractor:
    """Build an extractor of the features that a classifier's head receives, or of another stage."""
    return FeatureExtractor(
        backbone=classifier.backbone,
        spec=classifier.input_spec,
        adapt=classifier.adapt,
        stage=stage,
        decode_options=decode_options,
        origin={"run": None if run is None else str(Path(run).expanduser().absolute()), "weights": None, "seed": 0},
    )


def extractor_from_run(
    run: str | Path, *, stage: str | None = None, modules: Mapping[str, nn.Module] | None = None
) -> FeatureExtractor:
    """Build an extractor from a run or a bundle.

    Args:
        run: Run folder or bundle folder.
        stage: See :class:`FeatureExtractor`.
        modules: User-supplied modules that the model needs; see :func:`finetune.bundle.load_bundle`.

    Raises:
        UserError: There is no complete bundle, or no such stage.
    """
    return extractor_from_classifier(
        load_bundle(run, modules=modules), stage=stage, decode_options=decode_options_of(run), run=run
    )


def extractor_from_backbone(
    backbone: Backbone,
    *,
    weights: str,
    seed: int,
    channels: int = 3,
    adapt: str = "expand",
    size: tuple[int, int] | None = None,
    stage: str | None = None,
    decode_options: DecodeOptions | None = None,
) -> FeatureExtractor:
    """Build an extractor from a pretrained backbone.

    Args:
        backbone: Backbone with its weights loaded; its stem is adapted in place.
        weights: Setting that the weights were loaded by, recorded so that queries can be embedded the same way.
        seed: Seed of the backbone and of the adapted stem, recorded for the same reason.
        channels: Number of image channels.
        adapt: Method that adapts the image channels to the stem.
        size: Height and width in pixels; None uses those that the weights expect.
        stage: Stage whose output is pooled; None uses the network's own features.
        decode_options: How files are decoded, to that many channels; None for the defaults.

    Raises:
        UserError: Size, channels or stage do not fit the network.
    """
    fit_to_size(backbone, size)
    spec = replace(backbone.input_spec, channels=channels, size=size or backbone.input_spec.size)
    backbone.adapt_input(channels=channels, adapt=adapt, seed=seed)
    path = Path(weights).expanduser()
    # a folder of images may have the name of the weights
    named = weights in WORDS or str(weights).startswith("hub:")
    lasting = str(path.absolute()) if not named and path.exists() else weights
    return FeatureExtractor(
        backbone=backbone,
        spec=spec,
        adapt=adapt,
        stage=stage,
        decode_options=decode_options,
        origin={"run": None, "weights": lasting, "seed": seed},
    )


def restore_extractor(
    metadata: Mapping[str, Any],
    *,
    run: str | Path | None = None,
    modules: Mapping[str, nn.Module] | None = None,
) -> FeatureExtractor:
    """Rebuild the extractor that made a file of embeddings, to embed queries the same way.

    Args:
        metadata: Metadata of the embeddings.
        run: Current location of the run or bundle; None uses the recorded one.
        modules: User-supplied modules that the model needs; see :func:`finetune.bundle.load_bundle`.

    Raises:
        UserError: The model cannot be loaded, or its weights have changed.
    """
    try:
        model, stage, recorded = metadata["model"], metadata["stage"], metadata["reading"]
        description, spec = model["backbone"], InputSpec.from_dict(model["input"])
        decode_options = recorded_options(recorded, channels=spec.channels, name="EMBEDDINGS")
        place = run or model["run"]
        problems = backbone_problems(description)
    except (KeyError, TypeError) as error:
        raise EmbeddingsError(f"its record of the model is damaged. {error} is missing.") from None
    if problems:
        raise EmbeddingsError(f"its record of the model is damaged. {shortened(problems)}.")
    if place is None and model["weights"] is None:
        raise EmbeddingsError("it does not record where its model is. Give --model RUN.")
    if place is not None:
        try:
            folder = find_bundle(place)
        except UserError as error:
            raise UserError(f"{error} Queries need the model that made the embeddings: give --model RUN.") from None
        _check_weights(read_model_json(folder)["backbone_hash"], model["hash"], str(place))
        classifier = load_bundle(folder, modules=modules)
        return extractor_from_classifier(classifier, stage=stage, decode_options=decode_options, run=place)
    with cache_alone():
        backbone = build_backbone(
            source=description["source"],
            name=description["name"],
            weights=model["weights"],
            pool=description.get("pool"),
            seed=model["seed"],
            **description["kwargs"],
        )
    # first, because it changes only a network that records another size
    fit_to_size(backbone, spec.size)
    backbone.input_spec = InputSpec.from_dict(description["input_spec"])
    extractor = extractor_from_backbone(
        backbone,
        weights=model["weights"],
        seed=model["seed"],
        channels=spec.channels,
        adapt=model["adapt"],
        size=spec.size,
        stage=stage,
        decode_options=decode_options,
    )
    _check_weights(extractor.model["hash"], model["hash"], f"backbone.weights={model['weights']}")
    return extractor


def _check_weights(actual: str, expected: str, where: str) -> None:
    if actual != expected:
        raise UserError(
            f"{where}: holds other weights than those that made the embeddings. Make them again with finetune embed, "
            "or give --model RUN with the run that made them."
        )
