"""The table at the end of a run has every metric that is a single number, those of the user too."""

from dataclasses import replace

from finetune.report.result_table import result_table
from tests.imaginary_results import imaginary_results


def test_a_metric_of_ones_own_has_a_row() -> None:
    results = imaginary_results([[3, 1], [0, 4]])
    phase_free = replace(
        results, val=replace(results.val, own={"kappa": 0.5}), test=replace(results.test, own={"kappa": 0.25})
    )
    rows = [line.split() for line in result_table(phase_free).splitlines()]
    assert ["kappa", "0.5000", "0.2500"] in rows
    assert ["accuracy", "0.9000", "0.9000"] in rows
