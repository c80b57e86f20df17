"""The ResNet family built from its own blocks, with every design choice a setting: for reading and experiments.

A residual block learns a correction ``F`` and adds it to its input (He et al. 2015, arXiv 1512.03385)::

    post (2015)   x --+-- conv-BN-ReLU-conv-BN -- scale -- + -- ReLU --
                      +------------ shortcut ------------- +
    pre (2016)    x --+-- BN-ReLU-conv-BN-ReLU-conv -- scale -- + --
                      +--------------- shortcut --------------- +

``dL/dx = dL/dy (1 + dF/dx)``: the shortcut keeps a path for the gradient however small ``dF/dx`` is.

Tensors are named as in torchvision (``conv1 bn1 layer1.0.conv1 ... fc``), so its state dicts load here.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (the name that PyTorch's own documentation uses)
from torch import Tensor, nn

from finetune.errors import UserError, did_you_mean

# B = batch, S = channels of the image, C = channels of a feature map, H/W = height/width, D = features, K = classes

CHOICES = {
    "block": ("basic", "bottleneck"),
    "shortcut": ("identity", "projection", "zero_pad", "none"),
    "activation": ("post", "pre"),
    "norm": ("batch", "none"),
    "scaling": ("none", "skipinit", "fixup", "layerscale"),
}
EXPANSION = {"basic": 1, "bottleneck": 4}
CONVOLUTIONS = {"basic": 2, "bottleneck": 3}


def branch_order(*, convolutions: int, activation: str, norm: str, scaling: str) -> tuple[list[str], list[str]]:
    """Return the layers of a branch in the order they run: those shared with a projection shortcut, and the others.

    >>> branch_order(convolutions=2, activation="post", norm="batch", scaling="none")
    ([], ['conv1', 'bn1', 'relu', 'conv2', 'bn2'])
    >>> branch_order(convolutions=2, activation="pre", norm="batch", scaling="skipinit")
    (['bn1', 'relu'], ['conv1', 'bn2', 'relu', 'conv2', 'scale'])
    >>> branch_order(convolutions=2, activation="post", norm="none", scaling="fixup")
    (['bias1a'], ['conv1', 'bias1b', 'relu', 'bias2a', 'conv2', 'scale', 'bias2b'])
    """
    bn = norm == "batch"
    fixup = scaling == "fixup"
    order: list[str] = []
    for i in range(1, convolutions + 1):
        last = i == convolutions
        if activation == "pre":
            order += [f"bn{i}"] * bn + ["relu", f"conv{i}"]
        else:
            order += [f"bias{i}a"] * fixup + [f"conv{i}"] + [f"bn{i}"] * bn
            order += [] if last else [f"bias{i}b"] * fixup + ["relu"]
    order += ["scale"] * (scaling != "none") + [f"bias{convolutions}b"] * fixup
    opening = order.index("conv1")
    return order[:opening], order[opening:]


def branch_plan(block: str, *, c_in: int, width: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Return ``(in, out, kernel, stride)`` of each convolution in a branch.

    ``basic`` has two 3x3 convolutions. ``bottleneck`` reduces by 1x1, convolves by 3x3 (which has the stride: "v1.5"),
    and expands by 1x1: with C channels outside it has 17/16 C² weights, against 27 C² for three 3x3 convolutions.
    """
    if block == "basic":
        return [(c_in, width, 3, stride), (width, width, 3, 1)]
    return [(c_in, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]


class Bias(nn.Module):
    """A single learned bias for the whole tensor, initially 0 (Fixup)."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Scale(nn.Module):
    """The gate of a residual branch: one learned factor for the branch (``size=1``), or one for each channel.

    Args:
        size: Number of factors: 1, or the number of channels.
        start: Initial value of the factors.
    """

    def __init__(self, *, size: int, start: float) -> None:
        super().__init__()
        # one-dimensional, so that weight decay skips it; decay would pull the branch towards zero
        self.gate = nn.Parameter(torch.full((size,), float(start)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * self.gate.view(-1, 1, 1)


class ZeroPad(nn.Module):
    """A shortcut without parameters (option A): every ``stride``-th pixel, new channels filled with 0.

    Args:
        channels: Number of output channels.
        stride: Stride in both directions.
    """

    def __init__(self, *, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
        return F.pad(x_BCHW, (0, 0, 0, 0, 0, self.channels - x_BCHW.shape[1]))


class ResidualBlock(nn.Module):
    """A residual block ``y = shortcut(x) + F(x)``, with the layers of F in the order of :func:`branch_order`.

    Args:
        c_in: Number of input channels.
        width: Number of channels inside the branch; the output has as many (basic) or four times as many (bottleneck).
        stride: Stride of the block.
        block: Kind of branch, ``basic`` or ``bottleneck``.
        shortcut: Kind of shortcut: ``identity`` where the shapes agree and a projection elsewhere (He et al.'s option
            B), ``projection`` in every block (C), ``zero_pad`` (A), or ``none`` for a plain network.
        activation: Place of the activations, ``post`` or ``pre``.
        norm: Normalisation, ``batch`` or ``none``.
        scaling: Scaling of the branch: ``none``; ``skipinit``: one factor; ``layerscale``: one per channel; ``fixup``:
            one, and biases.
        scale_start: Initial value of the factors.
    """

    def __init__(
        self,
        *,
        c_in: int,
        width: int,
        stride: int,
        block: str,
        shortcut: str,
        activation: str,
        norm: str,
        scaling: str,
        scale_start: float,
    ) -> None:
        super().__init__()
        c_out = width * EXPANSION[block]
        plan = branch_plan(block, c_in=c_in, width=width, stride=stride)
        self.opening, self.rest = branch_order(
            convolutions=len(plan), activation=activation, norm=norm, scaling=scaling
        )
        self.pre = activation == "pre"
        self.plain = shortcut == "none"
        self.relu = nn.ReLU(inplace=norm == "batch")  # in place only on the output of BatchNorm, never on the input
        for i, (before, after, kernel, step) in enumerate(plan, start=1):
            self.add_module(f"conv{i}", _conv(before, after, kernel, step, norm=norm, scaling=scaling))
            if norm == "batch":
                self.add_module(f"bn{i}", nn.BatchNorm2d(before if self.pre else after))
            if scaling == "fixup":
                self.add_module(f"bias{i}a", Bias())
                self.add_module(f"bias{i}b", Bias())
        if scaling != "none":
            self.scale = Scale(size=c_out if scaling == "layerscale" else 1, start=scale_start)
        self.downsample: nn.Module | None = None
        changes = stride != 1 or c_in != c_out
        if shortcut == "zero_pad" and changes:
            self.downsample = ZeroPad(channels=c_out, stride=stride)
        elif shortcut == "projection" or (shortcut == "identity" and changes):
            self.downsample = nn.Sequential(_conv(c_in, c_out, 1, stride, norm=norm, scaling=scaling))
            if norm == "batch" and not self.pre:
                self.downsample.append(nn.BatchNorm2d(c_out))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        entered = _run(self, self.opening, x_BCHW)
        y_BCHW = _run(self, self.rest, entered)
        if not self.plain:
            y_BCHW = y_BCHW + (x_BCHW if self.downsample is None else self.downsample(entered))
        return y_BCHW if self.pre else F.relu(y_BCHW, inplace=self.relu.inplace)


class ResidualNet(nn.Module):
    """A network of residual blocks.

    Args:
        layers: Number of blocks in each stage.
        block: Kind of branch, ``basic`` or ``bottleneck``.
        width: Number of channels of the first stage; each further stage has twice as many and half the resolution.
        small_images: Whether to begin with a 3x3 convolution (He et al.'s CIFAR networks) instead of 7x7, stride 2 and
            pooling.
        num_classes: Number of classes K; 0 gives features.
        shortcut: Kind of shortcut; for this and the following arguments see :class:`ResidualBlock`.
        activation: Place of the activations, ``post`` or ``pre``.
        norm: Normalisation, ``batch`` or ``none``.
        scaling: Scaling of the branch: ``none``, ``skipinit``, ``fixup`` or ``layerscale``.
        scale_start: Initial value of the factors; None for the paper's value: 0 for SkipInit, 1 for Fixup, and for
            LayerScale 0.1 up to 18 blocks, 1e-5 up to 24, then 1e-6.

    Raises:
        UserError: A setting is unknown, or no paper defines the combination.
    """

    def __init__(
        self,
        *,
        layers: Sequence[int],
        block: str = "basic",
        width: int = 64,
        small_images: bool = False,
        num_classes: int = 1000,
        shortcut: str = "identity",
        activation: str = "post",
        norm: str = "batch",
        scaling: str = "none",
        scale_start: float | None = None,
    ) -> None:
        super().__init__()
        _check(block=block, shortcut=shortcut, activation=activation, norm=norm, scaling=scaling)
        blocks = sum(layers)
        start = first_scale(scaling, blocks=blocks) if scale_start is None else scale_start
        pre, fixup = activation == "pre", scaling == "fixup"
        self.conv1 = _conv(3, width, 3 if small_images else 7, 1 if small_images else 2, norm=norm, scaling=scaling)
        if norm == "batch" and not pre:
            self.bn1 = nn.BatchNorm2d(width)
        if fixup:
            self.bias1, self.bias2 = Bias(), Bias()
        self.relu = nn.ReLU(inplace=True)
        if not small_images:
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = tuple(f"layer{i + 1}" for i in range(len(layers)))
        c_in = width
        for i, (name, count) in enumerate(zip(self.stages, layers, strict=True)):
            stage = nn.Sequential()
            for j in range(count):
                stage.append(
                    ResidualBlock(
                        c_in=c_in,
                        width=width * 2**i,
                        stride=2 if i > 0 and j == 0 else 1,
                        block=block,
                        shortcut=shortcut,
                        activation=activation,
                        norm=norm,
                        scaling=scaling,
                        scale_start=start,
                    )
                )
                c_in = width * 2**i * EXPANSION[block]
            self.add_module(name, stage)
        if pre and norm == "batch":
            self.norm = nn.BatchNorm2d(c_in)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.num_features = c_in
        self.fc = nn.Linear(c_in, num_classes) if num_classes else nn.Identity()
        has = dict(self.named_children())
        opening = ["conv1", "bn1", "bias1"] + ["relu"] * (not pre) + ["maxpool"]
        closing = ["norm"] + ["relu"] * pre + ["avgpool"]
        self.opening = [name for name in opening if name in has]
        self.closing = [name for name in closing if name in has]
        initialise(self, blocks=blocks, convolutions=CONVOLUTIONS[block], fixup=fixup)

    def forward(self, images_BSHW: Tensor) -> Tensor:
        maps_BCHW = _run(self, [*self.opening, *self.stages, *self.closing], images_BSHW)
        features_BD = maps_BCHW.flatten(1)
        return _run(self, ["bias2", "fc"] if hasattr(self, "bias2") else ["fc"], features_BD)


def first_scale(scaling: str, *, blocks: int) -> float:
    """Return a factor's initial value: De and Smith 2020, Zhang et al. 2019, Touvron et al. 2021 (CaiT, section 2).

    >>> first_scale("skipinit", blocks=50), first_scale("fixup", blocks=50), first_scale("layerscale", blocks=50)
    (0.0, 1.0, 1e-06)
    """
    if scaling == "layerscale":
        return 0.1 if blocks <= 18 else 1e-5 if blocks <= 24 else 1e-6
    return 0.0 if scaling == "skipinit" else 1.0


def initialise(net: ResidualNet, *, blocks: int, convolutions: int, fixup: bool) -> None:
    """Draw He et al.'s normal weights; Fixup scales them by ``L^(-1/(2m-2))`` in a branch, 0 at its end and in fc."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if not fixup:
        return
    with torch.no_grad():
        for block in net.modules():
            if isinstance(block, ResidualBlock):
                for i in range(1, convolutions):
                    block.get_parameter(f"conv{i}.weight").mul_(blocks ** (-1 / (2 * convolutions - 2)))
                nn.init.zeros_(block.get_parameter(f"conv{convolutions}.weight"))
    if isinstance(net.fc, nn.Linear):
        nn.init.zeros_(net.fc.weight)
        nn.init.zeros_(net.fc.bias)


def gate_names(net: nn.Module) -> list[str]:
    """Return the names of the factors that multiply residual branches."""
    return [f"{name}.gate" for name, module in net.named_modules() if isinstance(module, Scale)]


@torch.no_grad()
def without_gates(net: nn.Module) -> dict[str, Tensor]:
    """Return a state dict of the same function without gates, each merged into the BatchNorm that ends its branch.

    Other tools can then open trained weights; the outputs are equal up to rounding. The gates must follow a BatchNorm
    (``post``).

    Args:
        net: Network, a :class:`ResidualNet` with ``scaling`` ``skipinit`` or ``layerscale``.

    Raises:
        UserError: A branch does not end in BatchNorm.
    """
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name, block in net.named_modules():
        if isinstance(block, ResidualBlock) and hasattr(block, "scale"):
            last = block.rest[block.rest.index("scale") - 1]
            if not last.startswith("bn"):
                raise UserError(
                    f"backbone.kwargs.activation: the gate of {name} follows {last}, not BatchNorm, so it cannot be "
                    "multiplied into one. Export it with its gates."
                )
            gate = state.pop(f"{name}.scale.gate")
            for leaf in ("weight", "bias"):
                state[f"{name}.{last}.{leaf}"] *= gate
    return state


def _run(owner: nn.Module, names: Iterable[str], x: Tensor) -> Tensor:
    for name in names:
        x = getattr(owner, name)(x)
    return x


def _conv(c_in: int, c_out: int, kernel: int, stride: int, *, norm: str, scaling: str) -> nn.Conv2d:
    """Make a convolution; it has its own bias without normalisation, except under Fixup, which has scalar biases."""
    bias = norm == "none" and scaling != "fixup"
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=bias)


def _check(**words: str) -> None:
    for key, word in words.items():
        if word not in CHOICES[key]:
            raise UserError(
                f"backbone.kwargs.{key}={word!r}: unknown. Choose one of {', '.join(CHOICES[key])}."
                f"{did_you_mean(word, CHOICES[key])}"
            )
    if words["scaling"] == "fixup" and (words["norm"] != "none" or words["activation"] != "post"):
        raise UserError(
            "backbone.kwargs.scaling='fixup': stands in for normalisation, in post-activation blocks. "
            f"Found norm={words['norm']} activation={words['activation']}. Set norm=none activation=post."
        )
    if words["scaling"] != "none" and words["shortcut"] == "none":
        raise UserError(
            f"backbone.kwargs.scaling={words['scaling']!r}: scales the branch beside a shortcut. "
            "A plain network (shortcut=none) has none. Set scaling=none."
        )
