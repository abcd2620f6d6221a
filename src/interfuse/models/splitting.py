"""Split models out of anybody's module: the forward pass is traced and cut after a named submodule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn

from interfuse.errors import ModelError, nearest
from interfuse.models.split import SplitModel, measure, pair


def split_at(
    module: nn.Module, name: str, width: int | None = None, sample_shape: tuple[int, ...] | None = None
) -> SplitModel:
    """Cut a module after the (last) call of its submodule ``name`` into the parts ``base`` and ``modular``.

    Both parts use the original submodules (shared, not copied) under the original names: ``layer3.0.conv1.weight``
    becomes ``base.layer3.0.conv1.weight``. Optional arguments of ``forward`` keep their defaults. The forward pass must
    be traceable by ``torch.fx``: its path may depend neither on values nor on ``self.training``.

    With ``width``, the exchanged code is a vector of that length after a ReLU: the base block ends in flatten, linear
    and ReLU (``to_fusion``), the modular block begins with a linear layer back to the original shape (``from_fusion``).
    A code that has ``width`` numbers already is only flattened and restored, without parameters and without ReLU. The
    size of the code is found by running zeros of ``sample_shape``, the shape of one sample.

    Raises:
        ModelError: there is no such submodule, ``forward`` does not call it or cannot be traced, more than one value
            crosses the cut, or a parameter is used on both sides of it.
    """
    if width is not None and sample_shape is None:
        raise ModelError("split_at with a width needs sample_shape (of one sample) to size the layers it adds")
    trace = _traced(module)
    cut = _position(module, trace, name)
    if len(trace.crossing(cut)) != 1:
        raise ModelError(_crossing_text(module, trace, name, cut))
    base, modular = _halves(trace, cut)
    shared = {id(parameter): key for key, parameter in base.named_parameters()}
    for key, parameter in modular.named_parameters():
        if id(parameter) in shared:
            raise ModelError(f"parameter {key!r} is used on both sides of a cut after {name!r}; cut elsewhere")
    if width is not None and sample_shape is not None:
        _fuse(base, modular, width, sample_shape)
    return pair(base, modular)


class _Trace(fx.Tracer):
    """The graph of a forward pass with one input, and after how many of its nodes each call of a submodule ended."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: list[tuple[nn.Module, int]] = []
        # A shallow copy, because tracing hangs the constants it meets on the module.
        self.source = copy.copy(module)
        self.nodes = list(self.trace(self.source).nodes)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        self.calls.append((m, len(self.graph.nodes)))
        return output

    def crossing(self, cut: int) -> list[fx.Node]:
        """The values computed by the first ``cut`` nodes and used by the others. Parameters are no such values."""
        after = set(self.nodes[cut:])
        return [node for node in self.nodes[:cut] if node.op != "get_attr" and not after.isdisjoint(node.users)]


def _traced(module: nn.Module) -> _Trace:
    kind = type(module).__name__
    modes = [(part, part.training) for part in module.modules()]
    try:
        trained, evaluated = (_Trace(module.train(mode)) for mode in (True, False))
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"cannot trace the forward pass of {kind}: {error}; write it without decisions on values, "
            "or build the two blocks yourself and join them with pair(base, modular)"
        ) from error
    finally:
        for part, training in modes:
            part.training = training
    if str(evaluated.graph) != str(trained.graph):
        raise ModelError(
            f"the forward pass of {kind} reads self.training, which tracing would freeze; "
            "use modules such as nn.Dropout instead of functions with training=self.training"
        )
    return evaluated


def _position(module: nn.Module, trace: _Trace, name: str) -> int:
    """How many nodes of the graph lie before the cut."""
    known = {path for path, _ in module.named_modules(remove_duplicate=False) if path}
    if name not in known:
        raise ModelError(f"{type(module).__name__} has no submodule {name!r}: {nearest(name, known)}")
    target = module.get_submodule(name)
    # Some containers (ModuleList) are never called themselves: their last member stands for them.
    for stands_for_it in ({target}, set(target.modules())):
        ends = [end for called, end in trace.calls if called in stands_for_it]
        if ends:
            return ends[-1]
    raise ModelError(
        f"the forward pass of {type(module).__name__} does not call {name!r} by itself; "
        f"cut after one of: {', '.join(_names(module, trace.calls))}"
    )


def _names(module: nn.Module, calls: Iterable[tuple[nn.Module, int]]) -> list[str]:
    names = {part: path for path, part in module.named_modules()}
    return list(dict.fromkeys(names[called] for called, _ in calls))


def _crossing_text(module: nn.Module, trace: _Trace, name: str, cut: int) -> str:
    values = ", ".join(node.name for node in trace.crossing(cut)) or "none"
    later = [call for call in trace.calls if call[1] > cut and len(trace.crossing(call[1])) == 1]
    hint = f"cut later, for example after {_names(module, later)[0]!r}" if later else "no later submodule would do"
    return f"exactly one tensor may cross a cut; after {name!r} these cross: {values}; {hint}"


def _halves(trace: _Trace, cut: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    (crossing,) = trace.crossing(cut)
    before, after = fx.Graph(), fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in _with_attributes(trace.nodes, trace.nodes[:cut]):
        values[node] = before.node_copy(node, values.__getitem__)
    before.output(values[crossing])
    values = {crossing: after.placeholder("z")}
    for node in _with_attributes(trace.nodes, trace.nodes[cut:]):
        values[node] = after.node_copy(node, values.__getitem__)
    return fx.GraphModule(trace.source, before, "Base"), fx.GraphModule(trace.source, after, "Modular")


def _with_attributes(nodes: Iterable[fx.Node], side: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """The nodes of one side, and those that read a parameter or buffer for it, wherever they stand."""
    own = set(side)
    return (node for node in nodes if (not own.isdisjoint(node.users) if node.op == "get_attr" else node in own))


def _fuse(base: fx.GraphModule, modular: fx.GraphModule, width: int, sample_shape: tuple[int, ...]) -> None:
    """Make the code between the two blocks a vector of ``width``."""
    shape = measure(pair(base, modular), torch.zeros(2, *sample_shape)).fusion_shape
    flat = math.prod(shape)
    if shape == (width,):
        return
    device = next((tensor.device for tensor in base.state_dict().values()), torch.device("cpu"))
    down: list[nn.Module] = [nn.Flatten()]
    up: list[nn.Module] = [nn.Unflatten(1, shape)]
    if flat != width:
        down += [nn.Linear(flat, width, device=device), nn.ReLU()]
        up = [nn.Linear(width, flat, device=device), *up]

    _add(base, "to_fusion", nn.Sequential(*down))
    output = base.graph.output_node()
    with base.graph.inserting_before(output):
        output.args = (base.graph.call_module("to_fusion", output.args),)
    base.recompile()

    _add(modular, "from_fusion", nn.Sequential(*up))
    (z,) = modular.graph.find_nodes(op="placeholder")
    with modular.graph.inserting_after(z):
        restored = modular.graph.call_module("from_fusion", (z,))
    z.replace_all_uses_with(restored, delete_user_cb=lambda user: user is not restored)
    modular.recompile()


def added_behind(model: SplitModel) -> int:
    """How many numbers the code has before the layer that :func:`split_at` added for a width; 0 where it added none."""
    weight = model.tensors().get("base.to_fusion.1.weight")
    return 0 if weight is None else weight.shape[1]


def _add(half: fx.GraphModule, name: str, layers: nn.Module) -> None:
    if name in dict(half.named_children()):
        raise ModelError(f"the model has a submodule {name!r} already; rename it to let split_at add its own")
    half.add_submodule(name, layers)
