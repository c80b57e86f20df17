"""Weight files: what is recognised in them, what is refused, and what a head is tied to."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune.errors import UserError
from finetune.models.build import build_backbone
from finetune.models.heads import build_head
from finetune.models.weights import (
    fit_state_dict,
    head_classes,
    load_head,
    load_state_dict_file,
    save_backbone,
    save_head,
    save_tensors,
    state_hash,
)

STATE = {"conv.weight": torch.ones(2, 2), "conv.bias": torch.zeros(2)}


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (STATE, ""),
        (prefixed("module."), "the prefix 'module.'"),
        (prefixed("_orig_mod.module."), "the prefix '_orig_mod.', the prefix 'module.'"),
        ({"state_dict": STATE, "epoch": 3}, "the state dict under 'state_dict'"),
        ({"state_dict": prefixed("other."), "state_dict_ema": STATE}, "the state dict under 'state_dict_ema'"),
        ({"model": prefixed("backbone.")}, "the state dict under 'model', the prefix 'backbone.'"),
        (
            {"pytorch-lightning_version": "2.6.0", "state_dict": prefixed("model.backbone.net.")},
            "a Lightning 2.6.0 checkpoint, the state dict under 'state_dict', the prefix 'model.', "
            "the prefix 'backbone.', the prefix 'net.'",
        ),
        (
            {"pytorch-lightning_version": "2.6.0", "state_dict": prefixed("classifier.backbone.net.")},
            "the prefix 'classifier.backbone.', the prefix 'net.'",
        ),
        ({**prefixed("module."), "n_averaged": torch.tensor(7)}, "the counter of an averaged model"),
    ],
)
def test_what_is_around_a_state_dict_is_recognised_and_said(
    content: dict[str, Any], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO, logger="finetune"):
        assert same(load_state_dict_file(tmp_path / "weights.pth"), STATE)
    assert (said in caplog.text) if said else not caplog.records


def test_safetensors_and_torch_files_give_the_same_tensors(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "weights.pt")
    save_file(STATE, tmp_path / "weights.safetensors")
    assert same(load_state_dict_file(tmp_path / "weights.pt"), load_state_dict_file(tmp_path / "weights.safetensors"))


class Payload:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("forced", [False, True])
def test_a_pickle_is_refused_and_not_executed(forced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if forced:
        # torch's switch for the whole process, which an explicit weights_only=True overrules
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": STATE, "payload": Payload(tmp_path / "executed")}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"holds a Python object: \S+mkdir\. Nothing in it was executed"):
        load_state_dict_file(tmp_path / "weights.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": {}, "epoch": 1}, "holds no state dict. Its keys: epoch, optimizer"),
        ({}, "holds no tensors"),
        ([1, 2], "holds no tensors. It is a list"),
        ({"state_dict": {"a": torch.ones(1), "b": 1}}, "No tensor under b"),
        ({"a": torch.ones(1), "module.a": torch.ones(1)}, "same names with and without the prefix 'module.' .module.a"),
    ],
)
def test_what_is_no_state_dict_is_refused_with_what_it_is(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message):
        load_state_dict_file(tmp_path / "weights.pth")


def test_a_damaged_or_missing_file_is_told_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"not a tensor in sight")
    (tmp_path / "weights.pth").write_bytes(b"nor here")
    with pytest.raises(UserError, match=r"not a safetensors file"):
        load_state_dict_file(tmp_path / "weights.safetensors")
    (tmp_path / "clears the screen.pth").write_bytes(b"\x80\x02\x1b[2J")
    for name in ("weights.pth", "clears the screen.pth"):
        with pytest.raises(UserError, match=r"cannot be read as plain tensors") as caught:
            load_state_dict_file(tmp_path / name)
        assert "\x1b" not in str(caught.value)
        # torch's sentence is advice on how to read it unsafely, and breaks off
        assert "weights_only" not in str(caught.value)
        assert "Weights only load failed" not in str(caught.value)
    with pytest.raises(UserError, match=r"no such file"):
        load_state_dict_file(tmp_path / "absent.pth")


def test_one_flipped_bit_in_a_pth_is_noticed(tmp_path: Path) -> None:
    path, weight = tmp_path / "weights.pth", torch.arange(7.0)
    torch.save({"weight": weight}, path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(weight.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"weights\.pth'.*damaged\. .*data/0 has changed since it was written"):
        load_state_dict_file(path)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(2, 2)
        self.bn = nn.BatchNorm1d(2)


def test_everything_that_does_not_fit_is_told_at_once_and_nothing_is_loaded() -> None:
    net = Net()
    before = state_hash(net)
    state = {**net.state_dict(), "conv.bias": torch.zeros(3), "neck.weight": torch.zeros(1)}
    state["bn.bias"] = torch.tensor([1.0, float("nan")])
    del state["bn.running_mean"]
    with pytest.raises(UserError) as caught:
        fit_state_dict(net, state, origin="some.pth")
    for part in (
        "backbone.weights='some.pth'",
        "missing (1): bn.running_mean",
        "extra (1): neck.weight",
        "other shape (1): conv.bias 3 instead of 2",
        "not finite (1): bn.bias",
    ):
        assert part in str(caught.value)
    assert state_hash(net) == before


def test_a_classifier_in_the_file_is_cut_and_said(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    state = {**{key: value + 1 for key, value in net.state_dict().items()}, "fc.weight": torch.ones(3, 2)}
    with caplog.at_level(logging.INFO, logger="finetune"):
        assert fit_state_dict(net, state) == ["fc.weight"]
    assert "dropped the classifier weights fc.weight" in caplog.text
    assert torch.equal(net.conv.weight, state["conv.weight"])


def test_the_hash_sees_values_names_and_types_and_not_the_step_counter() -> None:
    state = Net().state_dict()
    one = state_hash(state)
    state["bn.num_batches_tracked"] += 1
    assert state_hash(dict(reversed(state.items()))) == one
    assert state_hash({**state, "conv.bias": state["conv.bias"].double()}) != one
    assert state_hash({**state, "conv.bias": state["conv.bias"] + 1e-7}) != one
    assert state_hash({("bn.bios" if key == "bn.bias" else key): value for key, value in state.items()}) != one


def test_a_head_comes_back_on_its_backbone_and_classes_and_nowhere_else(tmp_path: Path) -> None:
    head = build_head(name="mlp", num_features=4, num_classes=3, hidden=5, drop_rate=0.1, seed=1)
    path = tmp_path / "head.safetensors"
    save_head(path, head=head, settings=head.settings, backbone_hash="aaaa", classes=("cat", "dog", "owl"))
    again = load_head(path, backbone_hash="aaaa", classes=("cat", "dog", "owl"))
    assert again.settings == head.settings
    assert same(again.state_dict(), head.state_dict())
    with pytest.raises(UserError, match=r"trained on another backbone. .* hash aaaa, this one's bbbb"):
        load_head(path, backbone_hash="bbbb", classes=("cat", "dog", "owl"))
    with pytest.raises(UserError, match=r"another class list. It has 3 classes, the data 3; 'dog' instead of 'owl'"):
        load_head(path, backbone_hash="aaaa", classes=("cat", "owl", "dog"))
    with pytest.raises(UserError, match=r"one list is the beginning of the other"):
        load_head(path, backbone_hash="aaaa", classes=("cat", "dog"))


def test_a_file_that_holds_no_head_is_refused_as_one(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "plain.safetensors")
    save_backbone(tmp_path / "b.safetensors", backbone=build_backbone(source="timm", name="resnet18", weights="none"))
    for name in ("plain", "b"):
        with pytest.raises(UserError, match=r"not a head"):
            load_head(tmp_path / f"{name}.safetensors", backbone_hash="a", classes=("a", "b"))
    with pytest.raises(UserError, match=r"no such file"):
        load_head(tmp_path / "absent.safetensors", backbone_hash="a", classes=("a", "b"))
    damaged = {"format": 1, "kind": "head", "head": {}, "classes": [["a"], 7], "backbone_hash": "a"}
    save_tensors(tmp_path / "damaged.safetensors", STATE, metadata=damaged)
    with pytest.raises(UserError, match=r"head\.weights='.*damaged\.safetensors': damaged. Its classes must be names"):
        head_classes(tmp_path / "damaged.safetensors")


def test_a_file_of_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    save_tensors(tmp_path / "new.safetensors", STATE, metadata={"format": 99, "kind": "head"})
    with pytest.raises(UserError, match=r"written in format 99. This version reads 1. Update"):
        load_head(tmp_path / "new.safetensors", backbone_hash="a", classes=("a", "b"))
