"""Settings by the names that other tools give them, and settings of other libraries that a run decides itself."""

from collections.abc import Callable, Mapping


def _pretrained(value: str) -> list[str]:
    return [f"weights={'none' if value.lower() in ('false', '0', 'no') else 'imagenet'}"]


def _device(value: str) -> list[str]:
    kind, _, number = value.lower().partition(":")
    accelerator = "gpu" if kind in ("cuda", "gpu") else kind
    return [f"trainer.accelerator={accelerator}", *([f"trainer.devices=[{number}]"] if number else [])]


def _training(value: str) -> list[str]:
    """Return a schedule of one phase that trains some stages; the others are frozen."""
    if value.lower() in ("all", "true", "full", "network"):
        return ["schedule=full"]
    stages = [stage for stage in value.strip("[]").split(",") if stage]
    listed = stages if "head" in stages else [*stages, "head"]
    return ["schedule=full", f"schedule.phases.0.train={','.join(listed)}"]


def _number_of(key: str, *, usual: str) -> Callable[[str], list[str]]:
    """Return the function from a switch elsewhere, or its number, to the setting of a number."""

    def words(value: str) -> list[str]:
        switched = {"true": usual, "yes": usual, "on": usual, "false": "null", "no": "null", "off": "null"}
        return [f"{key}={switched.get(value.lower(), value)}"]

    return words


def _frozen_backbone(value: str) -> list[str]:
    return ["schedule=full"] if value.lower() in ("false", "0", "no") else ["schedule=frozen"]


# name elsewhere -> key here, or a function from the value to the overrides
FOREIGN: Mapping[str, str | Callable[[str], list[str]]] = {
    **dict.fromkeys(("model", "arch", "architecture", "net", "network", "encoder", "model_name"), "backbone"),
    **dict.fromkeys(("learning_rate", "base_lr", "max_lr", "rate"), "lr"),
    **dict.fromkeys(("bs", "batch", "batchsize", "train_batch_size", "per_device_train_batch_size"), "batch_size"),
    **dict.fromkeys(("epoch", "num_epochs", "max_epochs", "n_epochs", "nb_epochs", "num_train_epochs"), "epochs"),
    **dict.fromkeys(("img_size", "imgsz", "image_size", "resolution", "size", "input_size"), "input.size"),
    **dict.fromkeys(("train_dir", "data_dir", "dataset", "dataset_dir", "dir", "folder", "images", "root"), "data"),
    **dict.fromkeys(
        ("output", "output_dir", "out", "out_dir", "save_dir", "save_path", "rundir", "project"), "run_dir"
    ),
    **dict.fromkeys(("wd", "weight_decay", "l2"), "schedule.weight_decay"),
    **dict.fromkeys(("gpus", "num_gpus", "n_gpu", "devices", "ngpus"), "trainer.devices"),
    **dict.fromkeys(("workers", "num_workers", "nw"), "data.num_workers"),
    **dict.fromkeys(("opt", "optim", "optimiser"), "optimizer"),
    **dict.fromkeys(("early_stopping", "early_stop"), _number_of("schedule.patience", usual="3")),
    **dict.fromkeys(("ema", "model_ema"), _number_of("schedule.ema_decay", usual="0.999")),
    **dict.fromkeys(("augmentation", "aug"), "data.augment"),
    **dict.fromkeys(("precision", "amp"), "trainer.precision"),
    **dict.fromkeys(("dropout", "drop"), "head.drop_rate"),
    **dict.fromkeys(("strategy", "mode", "preset"), "schedule"),
    **dict.fromkeys(("random_state", "random_seed", "manual_seed"), "seed"),
    **dict.fromkeys(("frozen", "freeze_layers", "freeze_stages"), "freeze"),
    **dict.fromkeys(("val_split", "validation_split", "valid_pct", "val_size"), "data.val_fraction"),
    **dict.fromkeys(("test_split", "test_size"), "data.test_fraction"),
    **dict.fromkeys(("train", "trainable", "unfreeze", "unfreeze_layers", "train_layers", "thaw"), _training),
    **dict.fromkeys(("freeze_backbone", "freeze_encoder", "freeze_base", "feature_extract"), _frozen_backbone),
    "channels": "input.channels",
    "in_chans": "input.channels",
    "layer_decay": "schedule.layer_decay",
    "momentum": "optimizer.momentum",
    "criterion": "loss",
    "pretrained": _pretrained,
    "device": _device,
    "accelerator": "trainer.accelerator",
    "grad_clip": "schedule.gradient_clip",
    "clip_grad": "schedule.gradient_clip",
}

# setting of another library that would have no effect -> why, and the key that has one
MISPLACED: Mapping[str, tuple[str, str]] = {
    "optimizer.lr": ("has no effect. The phases of the schedule set the learning rate.", "lr"),
    "optimizer.weight_decay": ("has no effect. The phases of the schedule set it.", "schedule.weight_decay"),
    "trainer.max_epochs": ("the run sets it, phase by phase.", "epochs"),
    "trainer.max_steps": ("the run sets it, phase by phase.", "schedule.max_steps"),
    "trainer.gradient_clip_val": ("the run sets it, phase by phase.", "schedule.gradient_clip"),
    "trainer.accumulate_grad_batches": ("the run sets it, phase by phase.", "schedule.accumulate"),
}
