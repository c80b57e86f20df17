from finetune.report.loading_snippets import how_to_load
from finetune.report.model_card import model_card
from tests.export.trained import settled_classifier
from tests.imaginary_results import imaginary_results


def test_the_card_names_mistakes_and_how_each_client_loads_it():
    model = settled_classifier(name="resnet10t", classes=("cat", "dog"), channels=1)
    card = model_card(model, imaginary_results([[5, 0], [1, 4]]))
    assert "| dog | cat | 1 |" in card
    for call in ("finetune.load(", "onnxruntime.InferenceSession(", "torch.export.load(", "timm.create_model("):
        assert call in card
    assert '.convert("L")' in card


def test_the_card_says_where_there_are_no_mistakes():
    model = settled_classifier(name="resnet10t", classes=("cat", "dog"))
    assert "No test image was put into a wrong class." in model_card(model, imaginary_results([[5, 0], [0, 5]]))


def test_the_card_of_a_pt2_export_says_that_opening_it_executes_what_its_maker_put_there():
    model = settled_classifier(name="resnet10t", classes=("cat", "dog"))
    says = "Opening a `.pt2` file executes what its maker put there"
    assert says in how_to_load("torch_export", model.input_spec, path="model.pt2")
    section = (
        model_card(model, imaginary_results([[5, 0], [0, 5]])).partition("## torch_export")[2].partition("## timm")[0]
    )
    assert says in section
    for form in ("finetune", "onnx", "timm", "torchvision", "transformers"):
        assert "executes" not in how_to_load(form, model.input_spec, path="x")
