"""What a run keeps of its evaluation agrees with what it reports of it."""

import csv
import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import finetune
from finetune.errors import RunError
from finetune.file_schema import EVALUATION, EVALUATION_TENSORS, METRICS_CSV
from finetune.metrics import metrics_of_outputs
from finetune.training.eval_outputs import SplitEvaluation, SplitOutputs, sample_of
from finetune.training.evaluation import require_finite
from tests.runs import train_tiny


def test_only_the_sample_s_embeddings_are_kept_and_rows_come_in_order() -> None:
    outputs = SplitOutputs(torch.tensor([0, 3]))
    for rows in ([3, 1], [2, 0]):
        at = torch.tensor(rows)
        outputs.add(rows=at, targets=at * 10, logits_BK=at[:, None] / 10, features_BD=at[:, None].double())
    found = outputs.gather()
    assert found["rows"].tolist() == [0, 1, 2, 3]
    assert found["targets"].tolist() == [0, 10, 20, 30]
    assert found["embedded_rows"].tolist() == [0, 3]
    assert found["embeddings"].tolist() == [[0.0], [3.0]]


def test_a_sample_spreads_over_all_rows() -> None:
    rows = torch.arange(100, 5100)
    sample = sample_of(rows, 2000)
    assert len(sample.unique()) == 2000
    assert (sample[0], sample[-1]) == (100, 5099)
    assert sample.diff().max() <= 3


def test_a_run_keeps_what_its_bundle_says_of_the_images(words: Callable[..., list[str]], tmp_path: Path) -> None:
    run = train_tiny(words("schedule=frozen", "schedule.phases.0.epochs=1"), tmp_path / "run")
    kept = load_file(run.run_dir / EVALUATION)
    documented = {f"{split}/{name.removeprefix('*/')}" for split in ("val", "test") for name in EVALUATION_TENSORS}
    assert set(kept) == documented
    for split in ("val", "test"):
        right = (kept[f"{split}/probabilities"].argmax(1) == kept[f"{split}/targets"]).float().mean()
        assert float(right) == pytest.approx(json.loads((run.run_dir / "results.json").read_text())[split]["acc"])
    model = finetune.load(run.bundle)
    with torch.no_grad():
        shares = model.probabilities(model.head(kept["test/embeddings"]))
    torch.testing.assert_close(shares, kept["test/probabilities"])
    assert len(kept["val/embeddings"]) == 0
    with (run.run_dir / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert all(any(fnmatch(column, name) for name in METRICS_CSV) for column in columns)


def test_outputs_that_are_not_finite_end_a_run_with_the_file_of_the_weights() -> None:
    logits = torch.zeros(4, 3)
    metrics = metrics_of_outputs(logits, torch.tensor([0, 1, 2, 0]))
    good = SplitEvaluation(metrics=metrics, outputs={"logits": logits})
    require_finite({"val": good}, Path("last.ckpt"))
    broken = SplitEvaluation(
        metrics=metrics, outputs={"logits": logits.clone().index_fill_(0, torch.tensor([1]), torch.nan)}
    )
    with pytest.raises(RunError, match=r"last\.ckpt: the network with these weights gives .*, on 1 of 4 test images\."):
        require_finite({"val": good, "test": broken}, Path("last.ckpt"))
