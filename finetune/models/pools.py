"""The names of ``backbone.pool``: how a network may turn its last maps or tokens into features."""

# those that timm has for tokens, with its names; the others are computed in finetune/models/pooling.py
TIMM_POOLS = {"cls": "token", "mean": "avg", "map": "map"}
POOLS = ("cls", "mean", "cls_mean", "map", "gem")
