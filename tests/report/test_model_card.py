from finetune.report.model_card import model_card
from tests.export.trained import settled_classifier


def results(confusion):
    test = {"acc": 0.9, "f1_macro": 0.9, "ece": 0.0, "loss": 0.1, "recall": [1.0, 0.8], "confusion": confusion}
    counts = {"train": [5, 5], "val": [2, 2], "test": [5, 5]}
    backbone = {"source": "timm", "name": "resnet10t", "weights": "none"}
    return {"test": test, "data": {"counts": counts}, "backbone": backbone, "schedule": "full", "seed": 0}


def test_the_card_names_mistakes_and_how_each_client_loads_it():
    model = settled_classifier(name="resnet10t", classes=("cat", "dog"), channels=1)
    card = model_card(model, results([[5, 0], [1, 4]]))
    assert "| dog | cat | 1 |" in card
    for call in ("finetune.load(", "onnxruntime.InferenceSession(", "torch.export.load(", "timm.create_model("):
        assert call in card
    assert '.convert("L")' in card


def test_the_card_says_where_there_are_no_mistakes():
    model = settled_classifier(name="resnet10t", classes=("cat", "dog"))
    assert "No test image was put into a wrong class." in model_card(model, results([[5, 0], [0, 5]]))
