"""Networks of timm as chains: the modules that compute a network when they run one after the other.

A network that is a chain can be cut after any stage, so that frozen stages are computed once. Each family is listed by the class
of timm, whose ``forward`` was read; a test holds the chain of each against it, to the bit.
"""

# B = batch, N = tokens, D = width of a token

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# the children that the network runs, in order; of those with a star, their own children
_CHILDREN: Mapping[str, str] = {
    "ResNet": "conv1 bn1 act1 maxpool layer1 layer2 layer3 layer4 global_pool fc",
    "ResNetV2": "stem stages* norm head",
    "RegNet": "stem s1 s2 s3 s4 final_conv head",
    "ByobNet": "stem stages* final_conv head",
    "ConvNeXt": "stem stages* norm_pre head",
    "EfficientNet": "conv_stem bn1 blocks* conv_head bn2 global_pool classifier",
    "MobileNetV3": "conv_stem bn1 blocks* global_pool conv_head norm_head act2 flatten classifier",
    "SwinTransformer": "patch_embed layers* norm head",
    "SwinTransformerV2": "patch_embed layers* norm head",
}


def chain_of(net: Any) -> list[nn.Module] | None:
    """Return the modules that compute a network of timm, without its classifier, in order; None if it is not such a chain.

    Args:
        net: Network of timm, built without classifier.
    """
    # timm applies this dropout as a function between two children
    if net.__dict__.get("drop_rate"):
        return None
    kind = type(net).__name__
    if kind == "VisionTransformer":
        return [_Tokens(net), *net.blocks, net.norm, _Pool(net), net.fc_norm]
    if kind == "Eva" and net.patch_drop is None and not getattr(net, "rope_mixed", False) and _has_one_grid(net):
        return [_Tokens(net), *(_RotaryBlock(net, block) for block in net.blocks), net.norm, _Pool(net), net.fc_norm]
    if kind not in _CHILDREN:
        return None
    chain: list[nn.Module] = []
    for name in _CHILDREN[kind].split():
        child = getattr(net, name.removesuffix("*"))
        chain += list(child) if name.endswith("*") else [child]
    return chain


def _has_one_grid(net: Any) -> bool:
    """Tell whether a network takes images of the size only that it was built for or resized to."""
    return not net.dynamic_img_size or bool(net.pretrained_cfg.get("fixed_input_size"))


class _Tokens(nn.Module):
    """The start of a vision transformer, from images to tokens ``(B, N, D)``."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        for name in ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre"):
            setattr(self, name, getattr(net, name, None))
        # a plain entry does not register the whole network as a part of its start
        self.__dict__["net"] = net

    def forward(self, images_BCHW: Tensor) -> Tensor:
        net = self.__dict__["net"]
        tokens_BND = net._pos_embed(net.patch_embed(images_BCHW))
        if isinstance(tokens_BND, tuple):  # Eva returns the rotations of its blocks beside them
            started: Tensor = net.norm_pre(tokens_BND[0])
        else:
            started = net.norm_pre(net.patch_drop(tokens_BND))
        return started


class _RotaryBlock(nn.Module):
    """A block of Eva, which gets the rotary positions of the network's grid."""

    def __init__(self, net: Any, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.__dict__["net"] = net

    def forward(self, tokens_BND: Tensor) -> Tensor:
        net = self.__dict__["net"]
        # with dynamic_img_size too, see `_has_one_grid`
        shape = (
            {"shape": net.patch_embed.grid_size} if net.dynamic_img_size or not hasattr(net.rope, "feat_shape") else {}
        )
        rope = None if net.rope is None else net.rope.get_embed(**shape)
        changed_BND: Tensor = self.block(tokens_BND, rope=rope)
        return changed_BND


class _Pool(nn.Module):
    """The pooling of a vision transformer, from tokens ``(B, N, D)`` to features ``(B, D)``."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.attn_pool = net.attn_pool
        self.__dict__["net"] = net

    def forward(self, tokens_BND: Tensor) -> Tensor:
        pooled_BD: Tensor = self.__dict__["net"].pool(tokens_BND)
        return pooled_BD
