"""Tokens of the run's public data, and what the layers of a frozen transformer make of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from interfuse.data import PublicData
from interfuse.data.task import IGNORED
from interfuse.errors import ModelError
from interfuse.families.matching import Tokens, in_common, matches, own_places
from interfuse.models import SplitModel
from interfuse.models.adapters import transformer_layers
from interfuse.randomness import generator

BATCH = 32
"""Rows of the public data that a model takes at a time."""


@dataclass(frozen=True)
class Seen:
    """What a module was given, and what it made of it."""

    inputs: Tensor
    outputs: Tensor


def chosen_rows(public: PublicData, most: int) -> Int64[Tensor, "rows"]:
    """All rows of the public data, or so many of them, evenly spread."""
    return _evenly(torch.arange(len(public)), most)


def chosen_tokens(model: SplitModel, public: PublicData, rows: Int64[Tensor, "rows"], most: int) -> Tokens:
    """All tokens of these rows on which the model's output depends, or so many of them, evenly spread, of which at most
    half are an answer's if there are others.

    Padding that the model does not see is none of them. What is an answer's is asked of the model's gradients, so it
    holds for the last token, for a mean over all and for a prediction at each place; places whose target does not
    count are no answer's.
    """
    layers, draws = _layers(model), generator(0, "tokens")
    row, place, answer = [], [], []
    for index in torch.split(rows, BATCH):
        batch = public.rows(index)
        with _recording(model, (layers[0], layers[-1]), graph=True) as seen:
            output = model(batch.x)
            hidden = [seen[layers[0]].inputs, seen[layers[-1]].outputs]
            gradients = torch.autograd.grad(output, hidden, _cotangents(output, batch.y, draws))
        counts, answers = (bool_of.cpu() for bool_of in ((g != 0).any(-1) for g in gradients))
        at, places = counts.nonzero(as_tuple=True)
        row.append(index[at])
        place.append(places)
        answer.append(answers[at, places])
    found = Tokens(torch.cat(row), torch.cat(place), torch.cat(answer))
    if matches(public):
        found = in_common(model, public, found)
    of_answers, others = found.answer.nonzero().flatten(), (~found.answer).nonzero().flatten()
    picked = _evenly(of_answers, max(most // 2, most - len(others)))
    picked = torch.cat([picked, _evenly(others, most - len(picked))]).sort().values
    return Tokens(found.row[picked], found.place[picked], found.answer[picked])


def observed(
    model: SplitModel, public: PublicData, tokens: Tokens, sources: Mapping[str, str], *, gradients: bool = False
) -> dict[str, Seen]:
    """What linear layers are given at these tokens ``[tokens, in]``, with what others put out there ``[tokens, out]``,
    on the processor.

    Args:
        sources: By the path of a linear layer, that of the module whose outputs go with its inputs.
        gradients: In the place of outputs, gradients towards them of random sums of the model's outputs: the same sums
            for all models.

    Raises:
        ModelError: the model's sequences have no such places.
    """
    rows, at = torch.unique(tokens.row, return_inverse=True)
    places = own_places(model, public, tokens.row, tokens.place) if matches(public) else tokens.place
    draws = generator(0, "cotangents")
    found: dict[str, list[Seen]] = {path: [] for path in sources}
    for number, index in enumerate(torch.split(rows, BATCH)):
        batch = public.rows(index)
        with _recording(model, {*sources, *sources.values()}, graph=gradients) as seen:
            output = model(batch.x)
            outputs = [seen[source].outputs for source in sources.values()]
            if gradients:
                outputs = list(torch.autograd.grad(output, outputs, _cotangents(output, batch.y, draws)))
        mine = (at >= number * BATCH) & (at < (number + 1) * BATCH)
        picked = at[mine] - number * BATCH, places[mine]
        if len(picked[1]) and int(picked[1].max()) >= outputs[0].shape[1]:
            raise ModelError(
                f"the models make sequences of different lengths of the same rows, here of {outputs[0].shape[1]} "
                "tokens: A and B are aligned token by token, so take models of one tokenizer, or align = 'none'"
            )
        for path, out in zip(sources, outputs, strict=True):
            found[path].append(Seen(seen[path].inputs.detach()[picked].cpu(), out.detach()[picked].cpu()))
    return {
        path: Seen(torch.cat([part.inputs for part in parts]), torch.cat([part.outputs for part in parts]))
        for path, parts in found.items()
    }


def layer_of(path: str, model: SplitModel) -> str:
    """The path of the transformer's layer that has the module of this path."""
    return next(layer for layer in _layers(model) if path.startswith(layer + "."))


def vocabulary(model: SplitModel) -> int:
    """How many tokens the model knows; 0: it embeds none."""
    return max((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=0)


def _layers(model: SplitModel) -> list[str]:
    """The paths of a transformer's layers: what those of all linear layers of one have in common."""
    found = []
    for layer in transformer_layers(model):
        names = zip(*(path.split(".") for path in layer.values()), strict=False)
        common = [next(iter({*level})) if len({*level}) == 1 else "" for level in names]
        found.append(".".join(common[: common.index("")]))
    return found


def _evenly(items: Int64[Tensor, "n"], most: int) -> Int64[Tensor, "m"]:
    """So many of them, or all, evenly spread and in their order."""
    count = min(len(items), most)
    return items[torch.arange(count) * len(items) // max(count, 1)]


def _cotangents(output: Float[Tensor, "batch *out"], y: Tensor, draws: torch.Generator) -> Float[Tensor, "batch *out"]:
    """Random weights of the model's outputs, none where a target does not count."""
    weights = torch.randn(output.shape, generator=draws).to(output.device)
    if y.dim() > 1 and y.shape == output.shape[:-1]:
        weights = weights * (y != IGNORED)[..., None]
    return weights


@contextmanager
def _recording(model: SplitModel, paths: Sequence[str] | set[str], *, graph: bool) -> Iterator[dict[str, Seen]]:
    """What modules see while the model runs inside the block, in evaluation mode; with ``graph`` part of its graph."""
    seen: dict[str, Seen] = {}
    given: dict[str, Tensor] = {}

    def enter(path: str, arguments: tuple[Tensor, ...]) -> None:
        given[path] = _in_graph(arguments[0], graph)

    def leave(path: str, output: Tensor | tuple[Tensor, ...]) -> None:
        made = output if isinstance(output, Tensor) else output[0]
        seen[path] = Seen(given[path], _in_graph(made, graph))

    hooks = []
    for path in paths:
        module = model.get_submodule(path)
        hooks.append(module.register_forward_pre_hook(lambda _, arguments, path=path: enter(path, arguments)))
        hooks.append(module.register_forward_hook(lambda _, __, output, path=path: leave(path, output)))
    try:
        with model.in_evaluation_mode(), torch.set_grad_enabled(graph):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _in_graph(tensor: Tensor, graph: bool) -> Tensor:
    return tensor.requires_grad_() if graph and not tensor.requires_grad else tensor
