"""transformers' Trainer on its own ResNet."""

import time
from pathlib import Path

import torch
from job import WEIGHT_DECAY, Job, job
from safetensors.torch import load_file
from torch import Tensor
from torchvision.datasets import ImageFolder
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments
from with_torchvision import network, views


def renamed(name: str) -> str:
    """A name of torchvision's ResNet-18 in transformers' words."""
    parts = name.split(".")
    if parts[0] in ("conv1", "bn1"):
        return f"embedder.embedder.{'convolution' if parts[0] == 'conv1' else 'normalization'}.{parts[-1]}"
    stage, block, part = int(parts[0][-1]) - 1, parts[1], parts[2]
    if part == "downsample":
        inner = f"shortcut.{'convolution' if parts[3] == '0' else 'normalization'}"
    else:
        inner = f"layer.{int(part[-1]) - 1}.{'convolution' if part.startswith('conv') else 'normalization'}"
    return f"encoder.stages.{stage}.layers.{block}.{inner}.{parts[-1]}"


def pretrained(job: Job) -> ResNetForImageClassification:
    """The network with the weights of the file, checked against torchvision's on random pixels."""
    config = ResNetConfig(
        layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], num_labels=job.classes
    )
    model = ResNetForImageClassification(config)
    model.resnet.load_state_dict({renamed(name): tensor for name, tensor in load_file(job.weights).items()})
    reference = network(job).eval()
    with torch.no_grad():
        model.classifier[1].weight.copy_(reference.fc.weight)
        model.classifier[1].bias.copy_(reference.fc.bias)
        pixels = torch.randn(2, 3, 224, 224)
        torch.testing.assert_close(model.eval()(pixels).logits, reference(pixels), rtol=1e-3, atol=1e-3)
    return model


def collated(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """A batch."""
    return {
        "pixel_values": torch.stack([image for image, _ in samples]),
        "labels": torch.tensor([target for _, target in samples]),
    }


def main() -> None:
    """Train and answer."""
    told = job()
    torch.manual_seed(told.seed)
    model = pretrained(told)
    if told.mode != "full":
        model.resnet.requires_grad_(False)
    arguments = TrainingArguments(
        output_dir=str(Path(told.scratch) / "trainer"),
        per_device_train_batch_size=told.batch,
        per_device_eval_batch_size=told.batch,
        num_train_epochs=told.epochs,
        learning_rate=told.phases[0].lr,
        lr_scheduler_type="constant",
        weight_decay=WEIGHT_DECAY,
        eval_strategy="epoch",
        dataloader_num_workers=told.workers,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        seed=told.seed,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=collated,
        train_dataset=ImageFolder(f"{told.data}/train", views(augment=told.augment)),
        eval_dataset=ImageFolder(f"{told.data}/valid", views(augment=False)),
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
    )
    began = time.perf_counter()
    trainer.train()
    train_s = time.perf_counter() - began
    accuracy = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry][-1]
    told.done(accuracy=accuracy, train_s=train_s)


if __name__ == "__main__":
    main()
