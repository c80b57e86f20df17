"""The ordered stages of a network, and the stage of each parameter, buffer and module."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

# part of a name that torch.nn.utils.parametrize puts between a layer and the modules that compute its weight
_PARAMETRIZED = ".parametrizations."
RESERVED = ("stem", "head")
# stages of every ResNet with torchvision's names, by the prefixes of their parameters
RESNET_STAGES = {
    "stem": ("conv1.", "bn1."),
    "layer1": ("layer1.",),
    "layer2": ("layer2.",),
    "layer3": ("layer3.",),
    "layer4": ("layer4.",),
}


def group_names(groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Name each group of parameters: ``stem`` for the first, then the shortest dotted prefix that no other group has.

    Args:
        groups: Parameter names by group, in order from the input; no group is empty.

    Returns:
        As many distinct names, none of them ``head`` (that name belongs to the classifier).

    >>> group_names([["conv1.weight"], ["layer1.0.conv1.weight", "layer1.1.conv1.weight"], ["head.norm.weight"]])
    ('stem', 'layer1', 'head.norm')
    >>> group_names([["embed"], ["blocks.0.w"], ["blocks.1.w", "norm.w"]])
    ('stem', 'blocks.0', 'blocks.1')
    """
    names = ["stem"]
    for group in groups[1:]:
        parts = group[0].split(".")
        prefixes = [".".join(parts[: length + 1]) for length in range(len(parts))]
        others = [name for other in groups if other is not group for name in other]
        free = (p for p in prefixes if p not in RESERVED and not any(f"{name}.".startswith(f"{p}.") for name in others))
        names.append(next(free, f"group{len(names)}"))
    return tuple(names)


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a normalisation layer, of PyTorch or of a library that builds on it."""
    return any("Norm" in base.__name__ for base in type(module).__mro__)


class StageMap:
    """An assignment of every parameter, buffer and module of a network to exactly one stage.

    Args:
        net: Network to divide.
        names: Stage names in order from the input.
        groups: Parameter names of each stage; together they are exactly the parameters of ``net``.

    Raises:
        ValueError: The groups do not cover the parameters of the network exactly once.
    """

    def __init__(self, net: nn.Module, *, names: Sequence[str], groups: Sequence[Iterable[str]]) -> None:
        self.names = tuple(names)
        self._stage_of_parameter: dict[str, int] = {}
        for index, group in enumerate(groups):
            for name in group:
                if name in self._stage_of_parameter:
                    raise ValueError(f"parameter {name!r} is in two stages")
                self._stage_of_parameter[name] = index
        if wrong := set(self._stage_of_parameter) ^ {name for name, _ in net.named_parameters()}:
            raise ValueError(f"parameters without a stage, or stages without a parameter: {sorted(wrong)}")
        # by identity from here on: a parameter or module that is used twice has several names but one stage
        stages = {id(parameter): self._stage_of_parameter[name] for name, parameter in net.named_parameters()}
        for name, parameter in net.named_parameters(remove_duplicate=False):
            self._stage_of_parameter[name] = stages[id(parameter)]
        placed = self._place_modules(net, stages)
        every = net.named_modules(remove_duplicate=False)
        self._stage_of_module = {name: placed[id(module)] for name, module in every}

    def _place_modules(self, net: nn.Module, stages: Mapping[int, int]) -> dict[int, int]:
        """Assign each module to the stage of its parameters; one without any follows its parent or the module before it.

        A container that spans several stages belongs to the last of them, because it does its own work after its children (an
        example is timm's functional dropout before the classifier).
        """
        placed: dict[int, int] = {}
        inside_one: dict[str, bool] = {"": False}
        previous = 0
        for name, module in net.named_modules():
            own = [stages[id(parameter)] for parameter in module.parameters(recurse=False)]
            below = {stages[id(parameter)] for parameter in module.parameters()}
            parent = name.rpartition(".")[0]
            inside_one[name] = len(below) == 1
            if own:
                stage = min(own)
            elif below:
                stage = max(below)
            else:
                inside_one[name] = bool(name) and inside_one[parent]
                stage = placed[id(net.get_submodule(parent))] if inside_one[name] else previous
            placed[id(module)] = stage
            if own or len(below) <= 1:
                previous = stage
        return placed

    def stage_of(self, name: str) -> str:
        """Return the stage of a parameter or buffer, by its name in the network.

        Raises:
            KeyError: The network has no module that could own this name.
        """
        layer, _, inside = name.partition(_PARAMETRIZED)
        if inside:
            return self.names[self._stage_of_module[layer]]
        if name in self._stage_of_parameter:
            return self.names[self._stage_of_parameter[name]]
        return self.names[self._stage_of_module[name.rpartition(".")[0]]]

    def modules(self, net: nn.Module) -> dict[str, list[nn.Module]]:
        """Return all modules of the network by stage, containers included; each module once."""
        by_stage: dict[str, list[nn.Module]] = {name: [] for name in self.names}
        for name, module in net.named_modules():
            layer = f"{name}.".partition(_PARAMETRIZED)[0].removesuffix(".")
            by_stage[self.names[self._stage_of_module[layer]]].append(module)
        return by_stage

    def divide(self, net: nn.Module, chain: Sequence[nn.Module]) -> dict[str, list[nn.Module]] | None:
        """Divide a chain of modules that computes the network into stages.

        Args:
            net: The network.
            chain: Modules that compute it, run one after the other; one without parameters goes with the one before it.

        Returns:
            The modules of each stage; None if a module belongs to several stages, or they are not in the order of the stages.
        """
        stages = {id(parameter): self._stage_of_parameter[name] for name, parameter in net.named_parameters()}
        steps: dict[str, list[nn.Module]] = {name: [] for name in self.names}
        position = 0
        for module in chain:
            found = {stages[id(parameter)] for parameter in module.parameters()} or {position}
            if len(found) > 1 or min(found) < position:
                return None
            (position,) = found
            steps[self.names[position]].append(module)
        return steps if all(steps.values()) else None


def groups_by_prefix(net: nn.Module, prefixes: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Group parameter names into stages, where each stage is given by the prefixes of its names.

    Args:
        net: Network that has the parameters.
        prefixes: Dotted prefixes of each stage, by stage name, in order from the input.
    """
    names = [name for name, _ in net.named_parameters()]
    return [[name for name in names if f"{name}.".startswith(stage_prefixes)] for stage_prefixes in prefixes.values()]
