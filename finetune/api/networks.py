"""Networks by hand, with their arguments checked as those of every public function are."""

from torch import nn

from finetune.arguments import Kind, public
from finetune.models.build import build_backbone as _build_backbone
from finetune.models.classifier import build_classifier as _build_classifier

build_backbone = public(
    name=Kind(form="the name of a network or an nn.Module", fits=lambda value: isinstance(value, (str, nn.Module)))
)(_build_backbone)
build_classifier = public(_build_classifier)
