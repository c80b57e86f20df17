"""Double precision where a device has none."""

from pathlib import Path

import torch

import finetune
from finetune.training.double_precision import doubles


def test_a_tensor_of_a_device_without_double_precision_moves_before_its_type_changes() -> None:
    class OfAppleGpu(torch.Tensor):
        """A tensor that says it is on an Apple GPU, and fails like one."""

        def double(self, *args: object) -> torch.Tensor:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )

        @property
        def device(self) -> torch.device:
            return torch.device("mps")

        def to(self, device: torch.device) -> torch.Tensor:
            assert device.type == "cpu"
            return self.as_subclass(torch.Tensor)

    found = doubles(torch.ones(2).as_subclass(OfAppleGpu))
    assert found.dtype == torch.float64
    assert found.tolist() == [1, 1]


def test_training_and_metrics_make_doubles_in_no_other_way() -> None:
    package = Path(finetune.__file__).parent
    files = [package / "metrics.py", *(package / "training").rglob("*.py")]
    found = [
        f"{file.name}: {line.strip()}"
        for file in files
        for line in file.read_text().splitlines()
        if ".double()" in line and file.name != "double_precision.py" and ".cpu().double()" not in line
    ]
    # of outputs, which are on the CPU
    assert sorted(line.partition(":")[0] for line in found) == ["calibrating.py", "knowing.py", "knowing.py"]
