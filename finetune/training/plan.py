"""What a schedule will do, before it does it: stages, rates, parameters and steps of each phase."""

from collections.abc import Sequence
from typing import Any

from finetune.activation_cache.policy import CachePolicy
from finetune.data.datamodule import ImageDataModule
from finetune.models.classifier import Classifier
from finetune.training.freezing import trainable_names
from finetune.training.phases import Phase


def build_plan(
    classifier: Classifier, phases: Sequence[Phase], data: ImageDataModule, *, caches: Sequence[CachePolicy]
) -> list[dict[str, Any]]:
    """One entry a phase, in plain JSON values; nothing is trained or changed.

    Each entry has ``name``, ``train``, ``frozen``, ``epochs``, ``steps`` (optimizer steps, at most), ``images`` (seen in
    training, at most), ``trainable`` (parameters), ``total`` (parameters), ``stages``: for each stage of the network
    ``{"mode", "lr", "weight_decay", "batch_norm", "parameters"}``, ``cache``: whether it trains on cached activations, of how
    many views, and why, and ``settings``: the phase as it was resolved.
    """
    images = len(data.source.index.rows("train"))
    counts = {name: parameter.numel() for name, parameter in classifier.named_parameters()}
    plan = []
    for phase, cache in zip(phases, caches, strict=True):
        names = trainable_names(classifier, train=phase.train, parameters=phase.parameters)
        rates = phase.rates()
        per_epoch = -(-data.batches_per_epoch(phase.batch_size) // phase.accumulate)
        steps = min(phase.epochs * per_epoch, phase.max_steps or phase.epochs * per_epoch)
        stages = {}
        for stage in classifier.stages:
            trains = stage in phase.train
            stages[stage] = {
                "mode": "train" if trains else "frozen",
                "lr": rates[stage] if trains else 0.0,
                "weight_decay": phase.weight_decay if trains else 0.0,
                "batch_norm": phase.batch_norm if trains else "eval",
                "parameters": sum(n for name, n in counts.items() if classifier.stage_of(name) == stage),
                "trainable": sum(counts[name] for name in names if classifier.stage_of(name) == stage),
            }
        plan.append(
            {
                "name": phase.name,
                "train": list(phase.train),
                "frozen": list(phase.frozen),
                "epochs": phase.epochs,
                "steps": steps,
                "images": min(steps * phase.batch_size * phase.accumulate, phase.epochs * images),
                "trainable": sum(counts[name] for name in names),
                "total": sum(counts.values()),
                "stages": stages,
                "cache": cache.to_plain(),
                "settings": phase.to_plain(),
            }
        )
    return plan


def duration(seconds: float) -> str:
    """A time for a person.

    >>> duration(4.23), duration(48.2), duration(300), duration(9000)
    ('4.2 s', '48 s', '5.0 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_table(plan: Sequence[dict[str, Any]]) -> str:
    """The plan as text: one block a phase, one line a stage."""
    lines = []
    for number, phase in enumerate(plan):
        settings = phase["settings"]
        share = phase["trainable"] / phase["total"]
        cache = phase["cache"]
        tried = ", ".join(f"{rate:g}" for rate in settings["lr_trials"])
        room = f" ({cache['bytes'] / 1e6:.1f} MB)" if cache["cached_stage"] else ""
        lines += [
            f"phase {number}: {phase['name']}  {phase['epochs']} epochs, {phase['steps']} steps, {phase['images']} images, "
            f"batch {settings['batch_size']}, {settings['lr_schedule']}, augment {settings['augment']}, "
            f"restore {settings['restore']}",
            *([f"  heads side by side, at lr {tried}"] if tried else []),
            f"  trains {phase['trainable']:,} of {phase['total']:,} parameters ({share:.1%})",
            f"  cache: {'on' if cache['cached_stage'] else 'none'}, {cache['why']}{room}",
            *([_time(phase["time"])] if "time" in phase else []),
            f"  {'stage':12}  {'mode':6}  {'lr':>9}  {'decay':>7}  {'norm':5}  {'trainable':>11}",
        ]
        for stage, row in phase["stages"].items():
            rate = f"{row['lr']:.3g}" if row["mode"] == "train" else "-"
            decay = f"{row['weight_decay']:.3g}" if row["mode"] == "train" else "-"
            norm = row["batch_norm"] if row["mode"] == "train" else "-"
            trainable = f"{row['trainable']:,}" if row["mode"] == "train" else "-"
            lines.append(f"  {stage:12}  {row['mode']:6}  {rate:>9}  {decay:>7}  {norm:5}  {trainable:>11}")
        lines.append("")
    return "\n".join(lines)


def _time(taken: dict[str, float]) -> str:
    filling = f", of which {duration(taken['cache_s'])} fill the cache" if taken["cache_s"] else ""
    return f"  time: about {duration(taken['cache_s'] + taken['train_s'])}{filling}"
