import torch

from finetune.models.heads import build_head
from finetune.models.imprinting import grown_head

# features like those after a ReLU: a large part in common, a small one of the class
COMMON = 5 * torch.ones(16)


def features_of(name):
    if name == "gone":
        return torch.zeros(0)
    generator = torch.Generator().manual_seed(ord(name[0]))
    return (
        COMMON
        + 2 * torch.nn.functional.one_hot(torch.tensor(ord(name[0]) % 16), 16)
        + torch.rand(40, 16, generator=generator)
    )


def old_head():
    head = build_head(name="linear", num_features=16, num_classes=4, seed=3)
    with torch.no_grad():
        # each row answers to its class, and no image has a large logit of all
        for row, name in enumerate(("b", "a", "c")):
            head.fc.weight[row] = features_of(name).mean(0) - COMMON - 0.625
            head.fc.bias[row] = -head.fc.weight[row] @ COMMON
        head.fc.weight[3], head.fc.bias[3] = 0.9 * head.fc.weight[0], 0.9 * head.fc.bias[0]
    return head


def test_old_rows_are_kept_to_the_bit_and_rows_of_one_new_name_are_averaged():
    head = old_head()
    grown = grown_head(head, names=["b", "a", "gone", "b"], classes=["a", "gone", "b", "d"], features_of=features_of)
    for new, old in ((0, 1), (1, 2)):
        assert torch.equal(grown.fc.weight[new], head.fc.weight[old])
        assert torch.equal(grown.fc.bias[new], head.fc.bias[old])
    torch.testing.assert_close(grown.fc.weight[2], (head.fc.weight[0] + head.fc.weight[3]) / 2)
    torch.testing.assert_close(grown.fc.bias[2], (head.fc.bias[0] + head.fc.bias[3]) / 2)
    assert grown.settings["num_classes"] == 4


def test_imprinted_rows_recognise_new_classes_and_leave_the_old_ones_theirs():
    head = old_head()
    classes = ["b", "a", "c", "d", "e"]
    grown = grown_head(head, names=["b", "a", "c", "b"], classes=classes, features_of=features_of)
    with torch.no_grad():
        for number, name in enumerate(classes):
            assert (grown(features_of(name)).argmax(1) == number).float().mean() > 0.9
    length = head.fc.weight.norm(dim=1).mean()
    torch.testing.assert_close(grown.fc.weight[3:].norm(dim=1), length.expand(2))
