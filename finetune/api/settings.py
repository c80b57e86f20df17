"""From the arguments of Python's functions to a configuration and the objects beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from finetune.api.phase import PhaseList
from finetune.arguments import described
from finetune.build.python_objects import PYTHON, PythonObjects
from finetune.config import check_overrides, compose
from finetune.config.given import given_in_phases
from finetune.config.ineffective_settings import report
from finetune.config.overrides import data_words, quoted, values_of
from finetune.config.schema import Config, PhaseConfig
from finetune.errors import UserError, type_in_words

if TYPE_CHECKING:
    from torch import nn

    from finetune.data.decode import DecodeOptions
    from finetune.data.image_source import Source
    from finetune.data.listing import Use

# settings of the input that a network brings itself
_OF_THE_INPUT = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True, kw_only=True)
class FitArguments:
    """The arguments of :func:`finetune.fit`, which describes them."""

    data: Any
    backbone: Any = "resnet18"
    head: Any = None
    schedule: str | PhaseConfig | Sequence[PhaseConfig] | PhaseList = "gradual"
    weights: str | Path | None = None
    stages: Mapping[str, Sequence[str]] | None = None
    lr: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    size: int | tuple[int, int] | None = None
    channels: int | None = None
    classes: Sequence[str] | None = None
    freeze: str | Sequence[str] = ()
    augment: str | None = None
    transform: Callable[[Any], Any] | None = None
    loss: "str | nn.Module | None" = None
    monitor: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Any] = ()
    loggers: str | Sequence[Any] | None = None
    run_dir: str | Path | None = None
    resume: str = "never"
    seed: int = 0
    overrides: Sequence[str] = ()

    def config_and_objects(self) -> tuple[Config, PythonObjects]:
        """Return the configuration, and the objects in place of settings.

        Raises:
            UserError: An argument or an override is wrong; one message for all overrides.
        """
        words, data = self._data()
        accepted, phases = check_overrides([*words, *self.words(), *self.overrides]), self._phases()
        config = compose(accepted, phases=phases)
        report(config, values_of(accepted) | given_in_phases(phases or ()))
        source = None if data is None else self._source(data, config)
        if source is not None:
            config = replace(config, input=replace(config.input, channels=source.decode_options.channels))
        return config, self._objects(config, source)

    def words_of_data(self) -> list[str] | None:
        """Return the words that name the data, or None where it is an object that no word names."""
        words, data = self._data()
        return words if data is None else None

    def evaluation_source(self, *, read_as: "DecodeOptions | None" = None, use: "Use" = "test") -> "Source":
        """Build the source of data that need not be valid for training.

        Args:
            use: Purpose of the data.
            read_as: How images of more than 8 bits were read in training, for those given as objects or as files; an override
                takes precedence. None reads them as new data.

        Raises:
            UserError: There is no such data.
        """
        from finetune.build.data import build_source
        from finetune.build.paths import check_paths
        from finetune.runners.run_data import read_as_trained

        words, data = self._data()
        config = compose([*words, *self.words(), *self.overrides])
        if data is not None:
            return self._source(data, config, read_as=read_as, use=use)
        if read_as is not None:
            read_as_trained(config, self.overrides, read_as)
        return build_source(config, use=use, listing=check_paths(config, use=use), download=True)

    def _data(self) -> tuple[list[str], Any]:
        """Return the words that name the data, and the data sets where they are objects."""
        from finetune.data.data_frames import is_frame, write_frame
        from finetune.data.python_datasets import datasets_of_module

        data = self.data
        if isinstance(data, (str, Path)):
            if str(data) == "digits":
                return ["data=digits"], None
            return data_words(str(data)), None
        if is_frame(data):
            # relative paths of a frame start where Python runs, not at the cache
            table = write_frame(data, settings=[word for word in self.overrides if word.startswith("data.")])
            return ["data=manifest", f"data.path={quoted(table)}", f"data.root={quoted(Path.cwd())}"], None
        if hasattr(data, "train_dataloader") and hasattr(data, "setup"):
            data = datasets_of_module(data)
        elif not isinstance(data, Mapping) and not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise UserError(
                f"data: is {type_in_words(data)}. Give a folder, a table, a data frame, a data set of (image, target), data "
                "sets by split, or a LightningDataModule."
            )
        return ["data=digits", f"data.source={PYTHON}"], data

    def words(self) -> list[str]:
        """Return the words of all arguments but the data and the objects."""
        words = [f"seed={self.seed}"]
        if isinstance(self.backbone, str):
            words.append(f"backbone={self.backbone}")
        if isinstance(self.head, str):
            words.append(f"head={self.head}")
        elif isinstance(self.head, Mapping):
            words += [f"head.{key}={value}" for key, value in self.head.items()]
        if isinstance(named := self._schedule.phases, str):
            words.append(f"schedule={named}")
        words += [f"{key}={value}" for key, value in (("lr", self.lr), ("epochs", self.epochs)) if value is not None]
        if isinstance(self.loss, str):
            words.append(f"loss={self.loss}")
        if isinstance(self.loggers, str):
            words.append(f"logger={self.loggers}")
        elif self.loggers is not None:
            words.append("logger=none")
        size = list(self.size) if isinstance(self.size, tuple) else self.size
        settings = {
            "data.batch_size": self.batch_size,
            "input.size": size,
            "input.channels": self.channels,
            "data.augment": self.augment,
            "monitor": self.monitor,
            "freeze": (self.freeze.split(",") if isinstance(self.freeze, str) else list(self.freeze)) or None,
        }
        # their names, which the monitor may name; the objects themselves take their places when the run is built
        words += [f"metrics.{name}.object={type(metric).__name__}" for name, metric in self.metrics.items()]
        words += [f"{key}={value}".replace(" ", "") for key, value in settings.items() if value is not None]
        words += [] if self.weights is None else [f"backbone.weights={quoted(self.weights)}"]
        words += [] if self.run_dir is None else [f"run_dir={quoted(self.run_dir)}"]
        words += [f"resume={self.resume}"] if self.resume != "never" else []
        return words

    def _phases(self) -> list[PhaseConfig] | None:
        """Return the phases of a list, or None for a schedule by its name."""
        phases = self._schedule.phases
        return None if isinstance(phases, str) else list(cast(Sequence[PhaseConfig], phases))

    @property
    def _schedule(self) -> PhaseList:
        return self.schedule if isinstance(self.schedule, PhaseList) else PhaseList(self.schedule)

    def source_for(self, config: Config) -> "Source":
        """Build the data set of a run again from its object.

        Raises:
            UserError: The data is not an object that a run takes.
        """
        _, data = self._data()
        if data is None:
            raise UserError("data: this run's files are named in its configuration. Leave data= out.")
        return self._source(data, config)

    def _source(
        self, data: Any, config: Config, *, read_as: "DecodeOptions | None" = None, use: "Use" = "train"
    ) -> "Source":
        from finetune.build.data import decode_options_from, refuse_other_settings
        from finetune.config.checks import split_settings
        from finetune.data.python_datasets import channels_of, dataset_source
        from finetune.data.sources.kind import OBJECT_KEYS
        from finetune.runners.run_data import read_as_trained

        refuse_other_settings(config.data, taken=OBJECT_KEYS, name="data given as objects")
        if read_as is None:
            channels = config.input.given_channels or channels_of(data)
        else:
            read_as_trained(config, self.overrides, read_as, settings=OBJECT_KEYS)
            channels = read_as.channels
        return dataset_source(
            data,
            classes=self.classes,
            decode_options=decode_options_from(config, channels=channels),
            split=split_settings(config),
            use=use,
        )

    def _refuse_unread(self, config: Config, source: "Source | None") -> None:
        """Refuse arguments that would reach nothing beside the other ones.

        Raises:
            UserError: There is one.
        """
        from finetune.models.backbone import Backbone

        if isinstance(self.backbone, str) and self.stages is not None:
            raise UserError(
                f"stages: only for a module of your own. The library of {self.backbone!r} defines its stages. Leave it out."
            )
        if isinstance(self.backbone, Backbone):
            own = {"weights": self.weights, "stages": self.stages}
            own |= {f"input.{key}": getattr(config.input, key) for key in _OF_THE_INPUT}
            if unread := [name for name, value in own.items() if value is not None]:
                raise UserError(
                    f"{unread[0]}: has no effect on a Backbone, which is built already. Give it to finetune.build_backbone, or "
                    "leave it out."
                )
        if self.classes is not None and source is None:
            raise UserError("classes: only for a data set of numbered classes. A folder or a table names its own.")

    def _objects(self, config: Config, source: "Source | None") -> PythonObjects:
        from torch import nn

        from finetune.build.classifier import image_size
        from finetune.input_spec import InputSpec
        from finetune.models.backbone import Backbone
        from finetune.models.build import build_backbone

        backbone, head, loss = self.backbone, self.head, self.loss
        self._refuse_unread(config, source)
        if isinstance(backbone, nn.Module) and not isinstance(backbone, Backbone):
            spec = InputSpec(size=image_size(config.input.size) or InputSpec().size)
            given = {key: getattr(config.input, key) for key in _OF_THE_INPUT}
            given = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if v is not None}
            backbone = build_backbone(
                backbone, stages=self.stages, weights=self.weights, input_spec=replace(spec, **given)
            )
        for name, value, kinds in (
            ("backbone", backbone, (str, Backbone)),
            ("head", head, (str, Mapping, nn.Module, type(None))),
            ("loss", loss, (str, nn.Module, type(None))),
        ):
            if not isinstance(value, kinds):
                function = callable(value) and not isinstance(value, type)
                hint = (
                    f" Call the function in the forward of an nn.Module, and give {name}=MyModule()."
                    if function
                    else ""
                )
                raise UserError(f"{name}: must be a name or an nn.Module. It is {described(value)}.{hint}")
        loggers: Sequence[Any] = () if self.loggers is None or isinstance(self.loggers, str) else self.loggers
        return PythonObjects(
            source=source,
            backbone=backbone if isinstance(backbone, Backbone) else None,
            head=head if isinstance(head, nn.Module) else None,
            loss=loss if isinstance(loss, nn.Module) else None,
            transform=self.transform,
            metrics=dict(self.metrics),
            callbacks=tuple(self.callbacks),
            loggers=tuple(loggers),
        )
