"""Which process this one is, told from the environment."""

import os

import pytest

from finetune.distributed import environment_restored, is_rank_zero, process_name, processes_started, started_together


@pytest.mark.parametrize(
    ("variables", "first", "name"),
    [
        ({}, True, "process 0"),
        ({"LOCAL_RANK": "1"}, False, "process 1"),
        ({"RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1"}, False, "process 3"),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False, "process 0 of node 1"),
        ({"SLURM_PROCID": "2"}, False, "process 2"),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True, "process 0"),
        # torchrun started by srun: its agents number the nodes in an order of their own
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, True, "process 0"),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "8", "LOCAL_RANK": "0", "SLURM_PROCID": "0"}, False, "process 8"),
    ],
)
def test_the_first_process_is_the_one_with_no_number_above_zero(
    variables: dict[str, str], first: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert is_rank_zero() is first
    assert process_name() == name


def test_what_a_run_leaves_in_the_environment_is_gone_for_the_next_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with environment_restored():
        os.environ |= {"MASTER_PORT": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "FINETUNE_RUN_DIR": "here"}
        assert not started_together()
        del os.environ["FINETUNE_RUN_DIR"]
        assert started_together()
    assert os.environ["MASTER_PORT"] == "29500"
    assert {"LOCAL_RANK", "WORLD_SIZE", "FINETUNE_RUN_DIR"}.isdisjoint(os.environ)
    assert not started_together()


@pytest.mark.parametrize(
    ("variables", "started"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, None),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"}, (2, 3)),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_NTASKS": "1"}, (2, 4)),
    ],
)
def test_how_many_processes_were_started_is_what_torchrun_and_srun_say(
    variables: dict[str, str], started: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert processes_started() == started
