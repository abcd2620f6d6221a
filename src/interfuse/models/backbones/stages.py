"""A transformers model as a split model of two stages: ``transformer``, and the ``answer`` head.

Keys keep the names that transformers gives below the stage, such as
``transformer.model.layers.3.self_attn.q_proj.weight``. The fusion layer is the final hidden state of the position that
answers, so its width is the model's, whatever the run asks for.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interfuse.data import Inputs, Shape
from interfuse.data.inputs import ONLY, named, shape_text
from interfuse.errors import ModelError, nearest
from interfuse.models.split import SplitModel

M = TypeVar("M", bound=nn.Module)

Kind = Literal["causal", "encoder"]
"""How a model answers: each position sees those before it and the last one answers; or all see all, and their mean
does."""

TOWER = "tower"
"""The group of the keys of what makes tokens of a picture: given, so frozen and common to all."""


@dataclass(frozen=True)
class Body:
    """A transformers model without its head, and what is needed to answer with it.

    Attributes:
        module: From ``input_ids`` or ``inputs_embeds`` to ``last_hidden_state`` [batch, time, width].
        prefix: Its name in keys: what transformers calls it inside a model with a head (``model``, ``bert``).
        embedding: The name, inside ``module``, of what embeds tokens.
        padding: The token that stands before or behind a row shorter than others; None: all of a row are tokens.
        vocabulary: The weight of the language-modelling head, [tokens, width]; None: it has none.
        spread: Standard deviation of a new head's weights.
    """

    module: nn.Module
    prefix: str
    embedding: str
    kind: Kind
    width: int
    padding: int | None = None
    vocabulary: nn.Parameter | None = None
    spread: float = 0.02


@dataclass(frozen=True)
class Sight:
    """What makes tokens of a picture: a frozen ``tower``, then a projection to the width of the transformer.

    Attributes:
        tower: Pictures [batch, channels, height, width] to tokens [batch, k, features].
        projector: A linear layer from features to the transformer's width.
    """

    tower: nn.Module
    projector: nn.Linear


def split_model(
    body: Body,
    sample_shape: Shape,
    outputs: int,
    *,
    answers: Sequence[int] | None = None,
    head: Float[Tensor, "classes width"] | None = None,
    sight: Sight | None = None,
    reads: str | None = None,
) -> SplitModel:
    """The split model of a body, which it takes for its own.

    Where there are as many outputs as tokens in the vocabulary, every position has an output (language modelling) and
    the head is that of the transformers model. Otherwise one position answers, with

    * the rows of that head for the tokens ``answers``, one a class; or
    * the rows of ``head``; or
    * a new linear layer.

    Args:
        sample_shape: Of tokens, ``(time,)``; or by name of tokens and of one picture, which goes before them.
        reads: The name of its tokens where samples have those of several tokenizers.
        outputs: Classes, or tokens.

    Raises:
        ModelError: samples are of another kind, a picture has nothing that sees it, the answers are not as many as the
            classes, or a model without a head of its own is to answer with tokens.
    """
    tokens, picture = _inputs(sample_shape, sight is not None, reads)
    every = body.kind == "causal" and body.vocabulary is not None and outputs == len(body.vocabulary)
    stage = Transformer(body, tokens, picture, every, sight if picture is not None else None)
    answer = nn.Linear(body.width, outputs, bias=body.kind == "encoder")
    if every and body.vocabulary is not None:
        answer.weight = body.vocabulary
    else:
        _begin(answer, body, answers, head)
    made = {"transformer": stage, "answer": answer}
    if picture is None or sight is None:
        return SplitModel(made)
    tower = [f"transformer.tower.{key}" for key in sight.tower.state_dict()]
    return SplitModel(made, groups={TOWER: tower}, given=TOWER)


class Transformer(nn.Module):
    """Tokens, and a picture in front of them, to the final hidden state of the position that answers.

    Padding may stand before or behind the tokens. It is moved behind them, where a causal model does not see it, so
    ``inputs_embeds`` go in without a mask and positions begin with the first token.
    """

    def __init__(
        self, body: Body, tokens: str, picture: str | None = None, every: bool = False, sight: Sight | None = None
    ) -> None:
        super().__init__()
        if sight is not None:
            self.tower, self.projector = sight.tower, sight.projector
        self.add_module(body.prefix, body.module)
        self.prefix, self.embedding = body.prefix, body.embedding
        self.kind, self.padding = body.kind, body.padding
        self.tokens, self.picture, self.every = tokens, picture, every

    def forward(self, x: Inputs) -> Tensor:
        """Tokens ``[batch, time]`` to ``[batch, width]``, or with ``every`` to ``[batch, time, width]``."""
        if self.picture is None:
            return self.after_tower(x)
        inputs = named(x)
        return self.after_tower({**inputs, self.picture: self.tower(inputs[self.picture])})

    @torch.no_grad()
    def seen_before(self, x: Inputs) -> int:
        """How many tokens of its picture stand before those of a sample's text, where the layers see them."""
        seen = None if self.picture is None else self.tower(named(x)[self.picture][:1])
        return 0 if seen is None else int(seen.shape[1])

    def after_tower(self, x: Inputs) -> Tensor:
        """The same from what the tower makes of the picture, ``[batch, k, features]``."""
        inputs = named(x)
        given, body = inputs[self.tokens], self.get_submodule(self.prefix)
        places = torch.arange(given.shape[1], device=given.device).expand_as(given)
        there = torch.ones_like(given) if self.padding is None else (given != self.padding).long()
        leading = (there.cumsum(1) == 0).sum(1, keepdim=True)
        tokens, there = (of.gather(1, (places + leading) % given.shape[1]) for of in (given, there))
        if self.kind == "encoder":
            hidden: Tensor = body(input_ids=tokens, attention_mask=there).last_hidden_state
            weight = there[..., None].to(hidden.dtype)
            return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        embedded, before = body.get_submodule(self.embedding)(tokens), 0
        if self.picture is not None:
            seen = self.projector(inputs[self.picture])
            embedded, before = torch.cat([seen, embedded], 1), seen.shape[1]
        hidden = body(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, before:]
        if self.every:
            back = (places - leading) % given.shape[1]
            # in leading padding nothing was read yet; what stands there after the move has read the whole text
            return hidden.gather(1, back[..., None].expand_as(hidden)) * (places >= leading)[..., None]
        last = (places * there).amax(1)
        return hidden[torch.arange(tokens.shape[0], device=tokens.device), last]


def sharing_copy(module: M) -> M:
    """A copy whose tensors share memory with the original's until one of the two is written to.

    So a backbone is in memory once, however many models are built of it, as long as nobody trains all of it.
    """
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    memo: dict[int, object] = {
        key: nn.Parameter(torch._lazy_clone(t.detach()), t.requires_grad)
        if isinstance(t, nn.Parameter)
        else torch._lazy_clone(t)
        for key, t in tensors.items()
    }
    return copy.deepcopy(module, memo)


def _inputs(shape: Shape, sees: bool, reads: str | None) -> tuple[str, str | None]:
    """The names of tokens and picture."""
    by_name = {ONLY: shape} if isinstance(shape, tuple) else shape
    tokens = [name for name, one in by_name.items() if len(one) == 1]
    if reads is not None:
        if reads not in tokens:
            raise ModelError(f"samples have no tokens {reads!r}, which this model reads: {nearest(reads, tokens)}")
        by_name = {name: one for name, one in by_name.items() if name == reads or name not in tokens}
        tokens = [reads]
    pictures = [name for name, one in by_name.items() if len(one) == 3]
    if len(tokens) == 1 and len(tokens) + len(pictures) == len(by_name) and len(pictures) <= 1:
        if pictures and not sees:
            raise ModelError(
                f"samples have a picture ({pictures[0]}), but this model reads tokens only: take one that sees"
            )
        return tokens[0], pictures[0] if pictures else None
    raise ModelError(
        f"samples are {shape_text(shape)}, but this model takes tokens [time], or tokens and one picture "
        "[channels, height, width] by name: tokenize the texts first, and of several tokens say which it reads"
    )


@torch.no_grad()
def _begin(answer: nn.Linear, body: Body, answers: Sequence[int] | None, head: Tensor | None) -> None:
    """The first values of a head."""
    classes = answer.out_features
    if answers is not None:
        if body.vocabulary is None:
            raise ModelError(
                "answers are tokens of a language-modelling head, which this model has not: leave them out"
            )
        if len(answers) != classes:
            raise ModelError(f"{len(answers)} answers are named, but the data has {classes} classes: name one a class")
        head = body.vocabulary[list(answers)]
    if head is None:
        nn.init.normal_(answer.weight, std=body.spread)
        if answer.bias is not None:
            nn.init.zeros_(answer.bias)
    elif head.shape != answer.weight.shape:
        raise ModelError(f"this model answers {len(head)} classes, but the data has {classes}")
    else:
        answer.weight.copy_(head)
