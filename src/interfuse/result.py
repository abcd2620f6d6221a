"""What a run gave, in Python: numbers, models, compositions, and how a notebook shows it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from numpy.typing import ArrayLike
from torch import Tensor

from interfuse import artefacts, report
from interfuse.artefacts import Artefact, Owner, Part, Trained, make, write
from interfuse.client import Client, ClientId
from interfuse.data import Dataset, load
from interfuse.engines import InProcess
from interfuse.errors import ConfigError, ModelError, RunError, nearest
from interfuse.evaluation import STEPS, Adaptation, Side, adapted_scores, compose, drawn_by, unseen_share
from interfuse.federation import Federation
from interfuse.messages import Message
from interfuse.method import Method
from interfuse.models import SplitModel
from interfuse.report.progress import following
from interfuse.report.text import title
from interfuse.runs import Callback, Given, Progress, resume
from interfuse.runs.commits import Commit
from interfuse.runs.config import changed_sources, run_key
from interfuse.runs.folder import RunFolder
from interfuse.runs.loop import assemble
from interfuse.runs.summary import Rows, Scores, Spread, Summary
from interfuse.setup import Setup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_STARTS = 100
"""From the models of so many clients a new one starts, where nobody names them."""

Samples = ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor]


class Result:
    """A run's folder as arrays, models and compositions.

    Attributes:
        path: The run folder.
        config: The complete configuration.
        metrics: The lines of ``metrics.jsonl``.
        notices: What of the folder nothing vouches for, or is not there any more; and, once a model was asked for, that
            an older state is used because the newest is damaged, or that its code was changed.
    """

    def __init__(self, path: str | Path, given: Given = Given()) -> None:  # noqa: B008 (frozen)
        self.path = Path(path)
        folder = RunFolder(self.path)
        self.config = folder.config()
        self.metrics, self._summary = folder.metrics(), folder.summary()
        self.notices = folder.notices()
        self._given = given

    def __repr__(self) -> str:
        noticed = [f"notice: {text}" for text in self.notices]
        if self._summary is None:
            return "\n".join([self._unfinished, *noticed, str(self.path)])
        scores = [
            f"{name}: {value}" + "".join(f", {other} {beside}" for other, beside in others.items())
            for name, value, others in report.scores(self._summary)
        ]
        warnings = [f"warning: {one.name}. {one.text} Try: {one.remedy}" for one in self._summary.warnings]
        stopped = [] if self._summary.stopped is None else [str(self._summary.stopped)]
        lines = [
            title(self._summary),
            self._summary.headline.text,
            *scores,
            *stopped,
            *warnings,
            *noticed,
            str(self.path),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        from interfuse.report.html import render

        if self._summary is None:
            return render(
                "result.html", unfinished=self._unfinished, path=self.path, summary=None, notices=self.notices
            )
        found, heading = report.scores(self._summary), title(self._summary)
        return render(
            "result.html",
            unfinished="",
            path=self.path,
            summary=self._summary,
            title=heading,
            scores=found,
            others=list(found[0][2]) if found else [],
            notices=self.notices,
        )

    @property
    def _unfinished(self) -> str:
        done = self.metrics[-1].round if self.metrics else 0
        text = f"{self.config.method}: not finished, round {done} of {self.config.rounds}"
        return f"{text}; interfuse.resume goes on with it"

    def extend(self, rounds: int, *, progress: Progress | None = None, callbacks: Sequence[Callback] = ()) -> Result:
        """The same run with more rounds: as if it had had so many from its beginning, to the bit. Writes its report.

        Args:
            rounds: Of the whole run, those that are done included.
            progress, callbacks: As for :func:`interfuse.run`.

        Raises:
            RunError: it has so many already, or further rounds would make another run of it; says why.
        """
        if rounds <= self.config.rounds:
            raise RunError(
                f"{self.path} has {self.config.rounds} rounds; rounds = {rounds} should be the number of all rounds, "
                f"such as {self.config.rounds + rounds}"
            )
        given = replace(self._given, callbacks=callbacks)
        with following(progress) as follower:
            resume(self.path, given=given, rounds=rounds, progress=follower)
        report.write(self.path)
        return Result(self.path, given)

    def plot(self) -> Figure:
        """Scores over rounds, with what runs beside it: the first curve of the report as a figure of Matplotlib.

        Raises:
            RunError: nothing was measured.
        """
        from interfuse.report.plots import score_over_rounds, style
        from interfuse.report.run import curve
        from interfuse.report.text import over_clients

        run = report.load(self.path)
        points, beside = curve(run.rows), {name: curve(rows) for name, rows in run.beside.items()}
        if not len(points.rounds):
            raise RunError(f"{self.path} has no curve: nothing was measured")
        with style():
            return score_over_rounds(points, beside, run.summary.score, over_clients(run.summary))

    @property
    def summary(self) -> Summary:
        """``summary.json``.

        Raises:
            RunError: the run is not finished.
        """
        if self._summary is None:
            raise RunError(f"{self.path} is not finished: {RunFolder(self.path).going_on} goes on with it")
        return self._summary

    def curve(self, name: str) -> tuple[Int64[np.ndarray, "points"], Float[np.ndarray, "points ..."]]:
        """Rounds and values of ``own``, ``others``, ``validation``, ``global`` (by client) or ``composition`` (base,
        modular).

        NaN is unknown, as of clients that are not evaluated; ``summary.evaluated`` names those that are.
        """
        if name not in ("own", "others", "validation", "common", "global", "composition"):
            raise ConfigError(f"no curve {name!r}: own, others, validation, global or composition")
        points = {row.round: row.accuracy for row in self.metrics if row.accuracy}
        rounds = np.array(list(points), dtype=np.int64)
        if name == "composition":
            return rounds, np.array([point.composition for point in points.values()], dtype=float)
        values = [
            self._by_client(getattr(point, "common" if name == "global" else name), point.evaluated)
            for point in points.values()
        ]
        return rounds, np.array(values, dtype=float)

    def _by_client(
        self, values: Sequence[float] | Rows, evaluated: Sequence[ClientId]
    ) -> Float[np.ndarray, "clients ..."]:
        """Values of the evaluated clients at the places of these among all; NaN for the others."""
        found = np.array(values, dtype=float)
        if not len(found):
            return np.full(self.config.clients, np.nan)
        if not evaluated:
            return found
        everybody = np.full((self.config.clients, *found.shape[1:]), np.nan)
        everybody[list(evaluated)] = found
        return everybody

    def metric(self, name: str, on: Side = "own", *, best: bool = False) -> Float[np.ndarray, "clients ..."]:
        """A metric of the recipe by client, recall by client and class; NaN is unknown.

        Args:
            on: ``own`` test shares, or ``global``, the common test set.
            best: Of the round with the best mean validation accuracy instead of the last.

        Raises:
            ConfigError: the metric was not measured; says which were.
        """
        scores = self._final(on, best)
        if name not in scores.metrics:
            raise ConfigError(f"metric {name!r} was not measured: {nearest(name, scores.metrics)}")
        values = scores.metrics[name][on]
        return self._by_client(values.per_client if isinstance(values, Spread) else values, scores.evaluated)

    def confusion(self, on: Side = "own", *, best: bool = False) -> Int64[np.ndarray, "classes answers"]:
        """Samples of evaluated clients by class and answer; the last column is of those without an answer (NaN scores).

        For the arguments and errors see :meth:`metric`; any metric brings the confusion matrix.
        """
        return np.array(self._final(on, best).confusion[on], dtype=np.int64)

    def _final(self, on: Side, best: bool) -> Scores:
        """The scores of the last or the best state, of a run with metrics."""
        if on not in ("own", "global"):
            raise ConfigError(f"nothing is measured on {on!r}: own or global")
        if not self.config.metrics:
            raise ConfigError(f"{self.path} measured no metrics beyond accuracy: run it with metrics=[...]")
        scores = self.summary.best if best else self.summary
        if scores is None:
            raise RunError(f"{self.path} has no best round")
        return scores

    @property
    def uplink(self) -> Int64[np.ndarray, "rounds"]:
        """Raw bytes sent by all clients up to each line of the metrics."""
        return np.array([row.uplink.raw for row in self.metrics])

    @cached_property
    def _engine(self) -> InProcess:
        return InProcess(self._setup)

    @cached_property
    def _setup(self) -> Setup:
        if RunFolder(self.path).between_parties:
            raise RunError(
                f"{self.path} is a run between parties: models and data are with its nodes, the folder has neither"
            )
        if changed := changed_sources(self.config):
            self._notice(
                f"{', '.join(changed)} changed since {self.path} began: its models are built by what is there now, and "
                "may answer otherwise"
            )
        return assemble(self.config, self._given)

    @cached_property
    def _commit(self) -> Commit:
        folder = RunFolder(self.path)
        found = folder.find_commit(lines=False)
        if found.commit is None:
            raise RunError(f"{self.path} has no commit yet")
        folder.check_config(self.config, found.commit)
        for text in found.notices:
            self._notice(f"{self.path}: {text}")
        if (rounds := self.config.rounds) > found.commit.round and folder.summary() is None:
            text = f"{self.path} is not finished: its models are those after round {found.commit.round} of {rounds}"
            self.notices = (*self.notices, text)
        return found.commit

    def _notice(self, text: str) -> None:
        self.notices = (*self.notices, text)
        warnings.warn(text, stacklevel=4)

    @cached_property
    def _federation(self) -> Federation:
        folder, commit = RunFolder(self.path), self._commit
        # who has which rows is of no account to models as they are
        known = {part: digest for part, digest in self._setup.digests.items() if part != "division"}
        commit.check_data(known, str(self.path), ", ".join(self.config.data_names))
        federation = Federation(self._setup, self._engine)
        federation.load(folder.commits, commit.round, commit.saved)
        return federation

    def model(self, client: ClientId) -> SplitModel:
        """A copy of a client's model at the last commit, as the method evaluates it."""
        self._known(client)
        with self._federation.evaluating():
            return self._engine.model(client)

    def export(
        self,
        out: str | Path,
        client: ClientId,
        part: Part = "model",
        *,
        best: bool = False,
        owner: Owner = Owner(),  # noqa: B008 (frozen)
        expires: date | None = None,
        onnx: bool = False,
    ) -> Artefact:
        """Write a client's model, or one block of it, to a folder of its own: an artefact, that needs neither this run
        nor its data nor the model's code.

        Args:
            out: A folder that is not there yet.
            part: ``base``, from samples to fusion-layer outputs; ``modular``, from these to scores; ``model``, both.
            best: Of the round with the best mean validation accuracy instead of the last.
            owner: Name, licence and free text, for whoever gets it.
            expires: From this day on it is refused.
            onnx: Also as ONNX.

        Raises:
            ConfigError: ``out`` is there already.
            ModelError: no such client, or its model cannot be exported; names the operation.
            RunError: the run has no commit, or no best round.
        """
        self._known(client)
        commit = self._commit
        if best and commit.best is None:
            raise RunError(f"{self.path} has no best round: it has no validation rows")
        engine, done = self._engine, commit.round
        if best and commit.best is not None:
            engine, done = InProcess(self._setup), commit.best.round
            federation = Federation(self._setup, engine)
            federation.load(RunFolder(self.path).commits, done, commit.best.saved)
        else:
            federation = self._federation
        with federation.evaluating():
            model = engine.model(client)
        setup = self._setup
        trained = Trained(
            model=model,
            method=setup.method_of(client),
            method_name=self.config.method,
            data=setup.datasets[client],
            numerics=setup.numerics,
            client=client,
            architecture=setup.architectures[client],
            run=run_key(self.config),
            round=done,
            state="best" if best else "last",
        )
        write(Path(out), *make(trained, part, owner, expires), onnx=onnx)
        return artefacts.load(out)

    def compose(self, base: ClientId, modular: ClientId) -> Callable[[Samples], Float[Tensor, "batch *outputs"]]:
        """Client ``base``'s base block followed by client ``modular``'s modular block, at the last commit.

        The function takes samples as the data set of ``base`` stores them, ``[batch, *shape]`` (several inputs by
        name), and gives outputs.

        Raises:
            DataError: samples have another shape.
            ModelError: no such client, or the two blocks meet at different widths.
        """
        self._known(base)
        self._known(modular)
        setup = self._setup
        if base != modular and "d" not in setup.dims:
            raise ModelError(
                f"clients {base} and {modular}: their fusion layers differ in width, so they do not compose"
            )

        def predict(x: Samples) -> Tensor:
            samples = setup.datasets[base].stored(x)
            return compose(self._federation, base, modular, setup.inputs_of(base)(samples))

        return predict

    def adaptation(
        self,
        data: str | Dataset,
        *,
        clients: Sequence[ClientId] | None = None,
        steps: Sequence[int] = STEPS,
        task: int | str | None = None,
        rows: int | None = None,
        seed: int = 0,
        starts: Mapping[str, tuple[ClientId, SplitModel]] | None = None,
        **options: Any,
    ) -> Adaptation:
        """How fast a new client learns a task that nobody had: the score on its test rows after so many gradient steps,
        from the models that clients have at the last commit, and beside them from new models of their architectures,
        and from what a method has for a newcomer (:meth:`.Method.welcome`).

        The new client trains alone, as the method's clients do; see :func:`.evaluation.adapted_scores`.

        Args:
            data: Of the unseen task, with the run's classes and shape of samples.
            clients: Whose models it starts from; None: those of all, at most of the first hundred.
            task: A group of the data set by number or name; None: all its rows.
            rows: So many training rows, drawn with the seed; None: all.
            starts: Further models to start from by name, each with a client of its architecture.
            options: Of ``fit`` instead of the method's, such as ``lr=0.1`` or ``batch_size=8``.

        Raises:
            ConfigError, DataError: the task is of another kind, or has no rows.
        """
        setup, found = self._setup, load(data) if isinstance(data, str) else data
        unseen = found.normalised(self.config.normalise).to(setup.device)
        share = unseen_share(unseen, task, rows, seed)
        chosen = range(min(self.config.clients, MOST_STARTS)) if clients is None else clients
        for client in chosen:
            self._known(client)
        names = setup.kinds
        models = {f"client {client} ({names[client]})": (client, partial(self.model, client)) for client in chosen}
        for client in {names[client]: client for client in reversed(chosen)}.values():
            models[f"new ({names[client]})"] = client, partial(setup.build, names[client], "adaptation", seed)
        models |= {name: (client, partial(copy.deepcopy, model)) for name, (client, model) in (starts or {}).items()}
        begins: dict[str, Callable[[Client[Any]], None]] = {}
        if type(setup.method).welcome is not Method.welcome:
            server, profiles = self._federation.server, setup.profiles
            for kind, client in {names[client]: client for client in reversed(chosen)}.items():
                name, peer, method = f"welcomed ({kind})", self.model(client), setup.method_of(client)
                models[name] = client, partial(setup.build, kind, "adaptation", seed)
                begins[name] = partial(method.welcome, server, peer=peer, profiles=profiles)
        curves = {
            name: adapted_scores(
                setup, client, made(), unseen, share, steps=steps, seed=seed, begin=begins.get(name), **options
            )
            for name, (client, made) in models.items()
        }
        return Adaptation(setup.task.score_name, tuple(steps), curves)

    def draw(
        self, client: ClientId, classes: Sequence[int], each: int
    ) -> tuple[Shaped[Tensor, "n *sample"], Int64[Tensor, "n"]]:
        """Samples of these classes, ``each`` of every one, by what a client has to draw with at the last commit, as its
        data set stores samples; and their classes. A class that cannot be drawn is left out, so there may be none.

        Raises:
            ModelError: no such client, or no such class.
            ClientError: the method draws what are no samples.
        """
        names = self.class_names(client)
        if unknown := [label for label in classes if label not in range(len(names))]:
            raise ModelError(f"no class {unknown[0]}: classes are 0 to {len(names) - 1}")
        found = drawn_by(self._federation, client, classes, each)
        if found is None:
            return self._setup.datasets[client].drawable[:0], torch.zeros(0, dtype=torch.int64)
        return found.drawn, found.drawn_y.long()

    def deployed(self, client: ClientId) -> Message | None:
        """What the server gives a client to answer with, at the last commit (:meth:`.Method.deployed`): of a method
        whose clients keep everything, nothing."""
        self._known(client)
        with self._federation.evaluating() as clients:
            found = self._federation.method.deployed(self._federation.server, clients)
        return found.get(client) if isinstance(found, Mapping) else found

    def class_names(self, client: ClientId) -> tuple[str, ...]:
        """What a client's scores are of.

        Raises:
            ConfigError: the task has no classes.
        """
        self._known(client)
        if "classes" not in self._setup.dims:
            raise ConfigError(
                f"the task is {self._setup.task}: there are no classes; `compose` in Python gives outputs"
            )
        return self._setup.datasets[client].class_names

    def _known(self, client: ClientId) -> None:
        if client not in range(self.config.clients):
            raise ModelError(f"no client {client}: clients are 0 to {self.config.clients - 1}")
