"""The names of ``backbone.pool``: how a network may turn its last maps or tokens into features."""

# computed in finetune/models/pooling.py, or by timm's own networks
POOLS = ("cls", "mean", "cls_mean", "map", "gem")
