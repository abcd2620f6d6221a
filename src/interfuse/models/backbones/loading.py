"""Transformers models from local folders and, for those online, from a hub. Needs the extra ``[transformers]``."""

from __future__ import annotations

import functools
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args
from urllib.parse import parse_qs

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from interfuse.data import Shape
from interfuse.errors import ConfigError, nearest
from interfuse.models.backbones.stages import Body, Kind, sharing_copy, split_model
from interfuse.models.split import SplitModel
from interfuse.randomness import seeded
from interfuse.references import COMMIT, HUB, is_commit

_USE = ("answers", "reads")
"""Options of any model: how it is used."""
_OPTIONS = ("gguf", "revision", "kind", *_USE)
_NO_CODE = MappingProxyType({"trust_remote_code": False})
"""A model's own code is never run. Without this transformers asks whoever sits at the terminal."""


@dataclass(frozen=True)
class Use:
    """How a model answers.

    Attributes:
        answers: The token of each class, whose rows of the head answer; empty: a new head.
        reads: The name of its tokens where samples have those of several tokenizers.
    """

    answers: tuple[int, ...] = ()
    reads: str | None = None

    @classmethod
    def of(cls, name: str, options: Mapping[str, str]) -> Use:
        """The options that are about this, of a model that goes by a name.

        Raises:
            ConfigError: answers are no numbers.
        """
        try:
            answers = tuple(int(token) for token in options.get("answers", "").split(",") if token)
        except ValueError:
            raise ConfigError(
                f"model {name!r}: answers are numbers of tokens with commas between, one a class"
            ) from None
        return cls(answers, options.get("reads"))

    @classmethod
    def parse(cls, text: str) -> tuple[str, Use]:
        """``NAME?answers=12,7&reads=words`` as the name, and how it is used.

        Raises:
            ConfigError: another option, or an impossible one.
        """
        name, options = _options_of(text, _USE)
        return name, cls.of(text, options)


@dataclass(frozen=True)
class Reference:
    """Where a transformers model is, and how it answers: see :class:`Use`.

    Attributes:
        place: A local folder, or a name of a hub.
        gguf: The GGUF file in it to read; None: safetensors.
        revision: The commit at the hub, 40 hexadecimal digits: names of branches and tags move.
        kind: None: as the model's own configuration says.
    """

    place: str
    gguf: str | None = None
    revision: str | None = None
    kind: Kind | None = None
    answers: tuple[int, ...] = ()
    reads: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """A reference out of ``FOLDER`` or ``NAME?revision=COMMIT``, with options as in an address.

        >>> Reference.parse("models/small?gguf=small.gguf&answers=12,7")
        Reference(place='models/small', gguf='small.gguf', revision=None, kind=None, answers=(12, 7), reads=None)

        Raises:
            ConfigError: an option is unknown or impossible, or there is neither such a folder nor a revision.
        """
        place, options = _options_of(f"{HUB}{text}", _OPTIONS)
        kinds = {kind: kind for kind in get_args(Kind)}
        if options.get("kind", "causal") not in kinds:
            raise ConfigError(f"model 'hf:{text}': kind is {options['kind']!r}, must be {' or '.join(kinds)}")
        kind = kinds[options["kind"]] if "kind" in options else None
        use = Use.of(f"{HUB}{text}", options)
        return cls(place.removeprefix(HUB), options.get("gguf"), options.get("revision"), kind, use.answers, use.reads)

    @property
    def where(self) -> tuple[str, dict[str, Any]]:
        """The place, and the other arguments by which transformers finds it."""
        folder = Path(self.place).expanduser()
        local = folder.is_dir()
        options: dict[str, Any] = {"local_files_only": local, "revision": self.revision or "main"}
        if self.gguf is not None:
            options["gguf_file"] = self.gguf
        return (str(folder) if local else self.place), options

    def check(self) -> None:
        """Check that there is something to load, as far as that can be told without a network.

        Raises:
            ConfigError: there is neither such a folder nor a commit.
        """
        folder = Path(self.place).expanduser()
        if folder.is_dir():
            if self.gguf is not None and not (folder / self.gguf).is_file():
                raise ConfigError(f"model 'hf:{self.place}': the folder has no file {self.gguf}")
            return
        if not is_commit(self.revision):
            raise ConfigError(
                f"model 'hf:{self.place}': there is no such folder; for a model of a hub add its commit, as in "
                f"'hf:{self.place}?revision=...' with {COMMIT} hexadecimal digits"
            )


def _options_of(text: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What stands before the question mark, and the options behind it.

    Raises:
        ConfigError: one is not among the known ones.
    """
    place, _, query = text.partition("?")
    options = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    for name in options:
        if name not in known:
            raise ConfigError(f"model {text!r} has the option {name!r}: {nearest(name, known)}")
    return place, options


def build(reference: Reference, sample_shape: Shape, classes: int, width: int) -> SplitModel:
    """A split model of the transformers model; see :func:`~.stages.split_model`. ``width`` changes nothing."""
    body = body_of(sharing_copy(load(reference)))
    return split_model(body, sample_shape, classes, answers=reference.answers or None, reads=reference.reads)


@functools.cache
def load(reference: Reference) -> PreTrainedModel:
    """The model with its weights in float32, in evaluation mode: once in a process, so it must not be changed.

    Raises:
        ConfigError: it is not there, or cannot be read.
    """
    # no pickle: weights are safetensors or GGUF
    safe = {} if reference.gguf is not None else {"use_safetensors": True}
    try:
        config, make = _read(reference)
        place, options = reference.where
        # it may draw what it then overwrites, in the first process that asks for it only
        with seeded(0, "load"), _quiet():
            model, told = make.from_pretrained(
                place, config=config, dtype=torch.float32, output_loading_info=True, **options, **safe, **_NO_CODE
            )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"model 'hf:{reference.place}' cannot be loaded: {error}") from error
    found = settled(model)
    if missing := sorted(told["missing_keys"] & {*found.state_dict()}):
        warnings.warn(
            f"model 'hf:{reference.place}' has no values for {len(missing)} of its tensors, which are random: "
            f"{', '.join(missing[:3])}",
            RuntimeWarning,
            stacklevel=2,
        )
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and reports of transformers, which would be drawn over the progress of a run."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):  # the bar of a GGUF file listens to no switch
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def described(reference: Reference) -> str:
    """What the model's configuration says, as JSON for :func:`empty`.

    Raises:
        ConfigError: it is not there, or cannot be read.
    """
    try:
        config, _ = _read(reference)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"model 'hf:{reference.place}' cannot be loaded: {error}") from error
    return json.dumps(config.to_dict())


def empty(reference: Reference, description: str) -> PreTrainedModel:
    """The same model with other weights."""
    config = AutoConfig.for_model(**json.loads(description))
    with seeded(0, "load"):
        model: PreTrainedModel = _class_of(reference, config).from_config(config, dtype=torch.float32, **_NO_CODE)
    return settled(model)


def _read(reference: Reference) -> tuple[Any, Any]:
    """The model's configuration, and the class that makes such models."""
    reference.check()
    place, options = reference.where
    config = AutoConfig.from_pretrained(place, **options, **_NO_CODE)
    return config, _class_of(reference, config)


def _class_of(reference: Reference, config: Any) -> Any:
    """Of transformers' classes the one that makes such models."""
    return AutoModelForCausalLM if (reference.kind or kind_of(config, reference.gguf)) == "causal" else AutoModel


def settled(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode, without what it has beside body and head, its tensors in memory of their own."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.detach().clone()  # weights may lie in a mapped file, which cannot be shared
    body = base_of(model)
    if "pooler" in dict(body.named_children()):
        body.register_module("pooler", None)  # its output is not what answers
    return model.eval()


def kind_of(config: Any, gguf: str | None = None) -> Kind:
    """How a model answers that says nothing else: as the class it was saved as, a GGUF as a causal one."""
    saved = (config.architectures or ["?ForCausalLM" if gguf is not None else "?Model"])[0]
    return "causal" if saved.endswith(("ForCausalLM", "LMHeadModel")) else "encoder"


def base_of(model: PreTrainedModel) -> nn.Module:
    """The model without its head."""
    base: nn.Module = model.base_model
    return base


def body_of(model: PreTrainedModel) -> Body:
    """The parts of a transformers model that answer."""
    body, head = base_of(model), model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    config = model.config
    return Body(
        body,
        prefix=model.base_model_prefix or "model",
        embedding=next(name for name, module in body.named_modules() if module is embedding),
        kind="encoder" if head is None else "causal",
        width=config.hidden_size,
        padding=next((t for t in (config.pad_token_id, config.eos_token_id) if isinstance(t, int)), None),
        vocabulary=None if head is None else head.weight,
        spread=config.initializer_range,
    )
