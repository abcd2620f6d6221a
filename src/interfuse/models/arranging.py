"""Layers arranged so that the same function, with the same bits, moves less memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from interfuse.models.split import SplitModel


def pool_first(model: SplitModel) -> None:
    """Put ReLU behind maximum pooling where it stands right before it: there it has a fraction of the values to go
    through.

    ReLU keeps the order of numbers, so it commutes with the maximum. The gradient is the same too: it goes to the first
    of the largest values of a window, unless that is 0 or less, and then nowhere. The one thing that may differ is the
    sign of a zero, where the largest value of a window is -0.0.

    Layers trade places only where nobody else can see in between: PyTorch's own, neighbours in an ``nn.Sequential``
    that is a stage, or lies in such a one, each at one place of the model and without hooks. Neither has tensors, so
    keys stay.
    """
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for stage in model.stage_names:
        for layers in _sequences(model.get_submodule(stage)):
            for place in range(len(layers) - 1):
                relu, pooling = layers[place], layers[place + 1]
                alone = uses[id(relu)] == uses[id(pooling)] == 1 and not _hooked(relu) and not _hooked(pooling)
                if alone and _is_relu(relu) and _is_max_pooling(pooling):
                    layers[place], layers[place + 1] = pooling, relu


def _sequences(module: nn.Module) -> Iterator[nn.Sequential]:
    if type(module) is nn.Sequential:
        yield module
        for inner in module:
            yield from _sequences(inner)


def _is_relu(module: nn.Module) -> bool:
    return type(module) is nn.ReLU and not module.inplace  # in place it changes what others may have of its input


def _is_max_pooling(module: nn.Module) -> bool:
    if not isinstance(module, nn.MaxPool1d | nn.MaxPool2d) or type(module) not in (nn.MaxPool1d, nn.MaxPool2d):
        return False
    dense = module.dilation in (1, (1,), (1, 1))  # otherwise a window may be of padding alone, whose maximum is -inf
    return dense and not module.return_indices


def _hooked(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))
