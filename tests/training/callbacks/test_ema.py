"""Averages of weights, against torch's own."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from finetune.training.callbacks.ema import StageEma
from tests.training.building import tiny_classifier

STAGES = ("layer4", "head")


def test_averages_are_torchs_and_those_of_the_named_stages_alone() -> None:
    classifier = tiny_classifier()
    ours = StageEma(classifier, stages=STAGES, decay=0.9)
    theirs = AveragedModel(classifier, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(classifier)  # its first update copies
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        with torch.no_grad():
            for tensor in classifier.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn(tensor.shape, generator=generator))
                else:
                    tensor.add_(1)
        ours.update()
        theirs.update_parameters(classifier)
    expected = {name: t for name, t in theirs.module.state_dict().items() if classifier.stage_of(name) in STAGES}
    assert set(ours.averages) == set(expected)
    for name, average in ours.averages.items():
        if average.is_floating_point():
            torch.testing.assert_close(average, expected[name], rtol=1e-6, atol=1e-6)
        else:
            # torch lets its multi-average round; a count is not averaged here but copied
            assert int(average) == int(classifier.state_dict()[name])


def test_swapping_in_and_out_leaves_every_bit_as_it_was() -> None:
    classifier = tiny_classifier()
    ema = StageEma(classifier, stages=STAGES, decay=0.5)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.mul_(1.5)
    ema.update()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    ema.swap_in()
    inside = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    assert all(torch.equal(inside[name], average) for name, average in ema.averages.items())
    changed = {classifier.stage_of(name) for name in before if not torch.equal(before[name], inside[name])}
    assert changed == set(STAGES)
    ema.swap_out()
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
