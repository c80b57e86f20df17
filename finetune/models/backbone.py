"""The backbone: a pretrained network without its classifier, divided into named stages."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from finetune.counted import counted
from finetune.errors import UserError
from finetune.input_spec import InputSpec
from finetune.models.adaptations import PRETRAINED_CHANNELS, adaptation
from finetune.models.channels import adapt_stem, stem_channels
from finetune.models.stages import StageMap
from finetune.models.user_modules import OWN
from finetune.plain import Json

# B = batch, S = input channels of the stem, H/W = image height/width, D = features

PRESETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class Backbone(nn.Module):
    """A network without its classifier, from normalised images ``(B, S, H, W)`` to features ``(B, D)``.

    Args:
        net: Network of the library, with its classifier removed.
        source: Library of the network, one of :data:`finetune.models.sources.NETWORK_SOURCES`, or ``own`` for a user-supplied
            module.
        name: Name of the network in that library; of a user-supplied module, its class.
        kwargs: Further keywords of its constructor; plain values.
        stage_map: Stage of each parameter and module.
        num_features: Length ``D`` of the features.
        input_spec: Input that the weights expect; ``mean`` has one number for each channel of the stem, which are three except
            in user-supplied modules.
        first_convs: Dotted names of the convolutions in ``net`` that take the image; a stem with branches has several.
        fixed_size: Whether the network takes only images of ``input_spec.size``
            (:func:`finetune.models.sources.fit_to_size` changes it).
        steps: Modules of each stage that, run one after the other, compute the network; None if the network is not such a
            chain and can only be split after its last stage.
        neutral: Tensors that weights may lack because a network without them computes the same (gates at 1).
        pooling: Computes the features from what the network returns (:mod:`finetune.models.pooling`); None if it returns them.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        source: str,
        name: str,
        kwargs: Mapping[str, Any],
        stage_map: StageMap,
        num_features: int,
        input_spec: InputSpec,
        first_convs: Sequence[str],
        fixed_size: bool = False,
        steps: Mapping[str, Sequence[nn.Module]] | None = None,
        neutral: Mapping[str, Tensor] | None = None,
        pooling: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.source = source
        self.name = name
        self.kwargs = dict(kwargs)
        self.num_features = num_features
        self.input_spec = input_spec
        self.first_convs = tuple(first_convs)
        self.fixed_size = fixed_size
        self.neutral = dict(neutral or {})
        self.adapted: tuple[int, str] | None = None
        # how it pools, where that was chosen
        self.pool: str | None = None
        self.pooling = pooling
        self._stage_map = stage_map
        self._set_steps(steps)

    def _set_steps(self, steps: Mapping[str, Sequence[nn.Module]] | None) -> None:
        # a plain dictionary does not register the modules a second time under other names
        self._steps = {stage: list(modules) for stage, modules in steps.items()} if steps else None
        if self._steps is not None:
            assert tuple(self._steps) == self.stages
            if self.pooling is not None:
                self._steps[self.stages[-1]].append(self.pooling)

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the stage names in order from the input, without ``head``."""
        return self._stage_map.names

    def stage_of(self, name: str) -> str:
        """Return the stage of a parameter or buffer, by its name in ``net``."""
        return self._stage_map.stage_of(name)

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """Return all modules of ``net`` by stage, each once; set their modes one by one, not recursively."""
        return self._stage_map.modules(self.net)

    def set_chain(self, chain: Sequence[nn.Module] | None) -> None:
        """Say anew which modules compute the network when they run one after the other; None if it is not such a chain."""
        self._set_steps(None if chain is None else self._stage_map.divide(self.net, chain))

    def set_pool(
        self,
        pool: str,
        *,
        stage_map: StageMap,
        chain: Sequence[nn.Module] | None,
        num_features: int,
        pooling: nn.Module | None,
    ) -> None:
        """Take over a changed pooling of the network.

        Args:
            pool: Its name, one of :data:`finetune.models.pools.POOLS`.
            stage_map: Stages of the changed network.
            chain: As for :meth:`set_chain`.
            num_features: Length ``D`` of the features.
            pooling: Computes the features from what the network returns; None if it returns them.
        """
        self.pool = pool
        self._stage_map = stage_map
        self.num_features = num_features
        self.pooling = pooling
        self.set_chain(chain)

    def forward(self, images_BSHW: Tensor) -> Tensor:
        """Compute the features ``(B, D)``."""
        output = self.net(images_BSHW)
        if self.pooling is not None:
            pooled_BD: Tensor = self.pooling(output)
            return pooled_BD
        # transformers returns a structure whose pooled map is still (B, D, 1, 1)
        features_BD: Tensor = output if isinstance(output, Tensor) else output.pooler_output.flatten(1)
        return features_BD

    @property
    def boundaries(self) -> tuple[str, ...]:
        """Return the stages after which :meth:`split` can cut."""
        return self.stages if self._steps is not None else self.stages[-1:]

    def split(self, stage: str) -> tuple[nn.Module, nn.Module]:
        """Cut the network in two after a stage; the two parts in sequence give a result bitwise identical to :meth:`forward`.

        Args:
            stage: Stage to cut after, one of :attr:`boundaries`.

        Returns:
            The prefix, from the input to the activation after ``stage``, and the suffix, from there to the features.
            After the last stage the prefix gives the features and the suffix is the identity. Both share their modules
            with the network.

        Raises:
            ValueError: The network cannot be cut there.
        """
        if stage not in self.boundaries:
            raise ValueError(f"{self.name} cannot be split after {stage!r}, only after {', '.join(self.boundaries)}")
        if stage == self.stages[-1]:
            # `Backbone.forward` turns a structure (transformers) or a map into the features
            pooled_here = self.pooling is not None or self.source == "transformers"
            return _Whole(self) if pooled_here else self.net, nn.Identity()
        assert self._steps is not None
        cut = self.stages.index(stage) + 1
        parts = [[module for name in names for module in self._steps[name]] for names in self._halves(cut)]
        return nn.Sequential(*parts[0]), nn.Sequential(*parts[1])

    def _halves(self, cut: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.stages[:cut], self.stages[cut:]

    def adapt_input(self, *, channels: int, adapt: str, seed: int) -> None:
        """Change the first convolution in place to take images of another number of channels.

        Raises:
            UserError: Channels and adaptation cannot be combined, or the stem was already adapted in another way.
        """
        if self.adapted is not None:
            if self.adapted != (channels, adapt):
                raise UserError(
                    f"input.adapt={adapt!r}: these weights have a stem made for input.channels={self.adapted[0]} "
                    f"input.adapt={self.adapted[1]}. Give these two, or weights with the pretrained stem."
                )
            return
        mean, std = self.input_spec.mean, self.input_spec.std
        if self.source == OWN and self._takes_as_is(channels=channels, adapt=adapt):
            return
        for position, name in enumerate(self.first_convs):
            conv = self.net.get_submodule(name)
            if not isinstance(conv, nn.Conv2d):
                raise UserError(
                    f"input.adapt={adapt!r}: {self.name!r} begins with {name!r}, which is not a convolution. "
                    "Use images with three channels, or another backbone."
                )
            adapt_stem(conv, channels=channels, adapt=adapt, mean=mean, std=std, seed=seed + position)
            self._tell_owners(name, conv.in_channels)
        if stem_channels(channels=channels, adapt=adapt) != PRETRAINED_CHANNELS or adaptation(adapt).is_new:
            self.adapted = (channels, adapt)

    def _takes_as_is(self, *, channels: int, adapt: str) -> bool:
        """Tell whether a user-supplied module takes these images without a change to its stem.

        Raises:
            UserError: The module does not take them, and its stem cannot be changed.
        """
        native = len(self.input_spec.mean)
        if channels == native and adaptation(adapt).keeps_native:
            return True
        if native != PRETRAINED_CHANNELS:
            raise UserError(
                f"input.channels={channels}: {self.name} takes {counted(native, 'channel')}, by its mean and std. Give images of "
                f"{counted(native, 'channel')} and leave input.adapt out."
            )
        changes = adaptation(adapt).is_new or stem_channels(channels=channels, adapt=adapt) != native
        if changes and not self.first_convs:
            raise UserError(f"input.adapt={adapt!r}: {self.name} has no convolution to adapt. Use input.adapt=expand.")
        return False

    def _tell_owners(self, name: str, in_channels: int) -> None:
        """Set the number of channels against which the stem of transformers checks an image."""
        parts = name.split(".")
        for depth in range(len(parts)):
            owner = self.net.get_submodule(".".join(parts[:depth]))
            if getattr(owner, "num_channels", None) == PRETRAINED_CHANNELS:
                owner.num_channels = in_channels  # type: ignore[assignment]  # nn.Module types attributes as Tensor

    def describe(self) -> dict[str, Json]:
        """Return plain JSON values from which :func:`backbone_from_description` builds the same architecture."""
        return {
            "source": self.source,
            "name": self.name,
            "kwargs": dict(self.kwargs),
            "input_spec": self.input_spec.to_dict(),
            **({} if self.pool is None else {"pool": self.pool}),
        }


class _Whole(nn.Module):
    """The whole backbone as the prefix of a split."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images_BSHW: Tensor) -> Tensor:
        features_BD: Tensor = self.backbone(images_BSHW)
        return features_BD
