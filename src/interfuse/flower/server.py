"""The ServerApp: a coordinator whose messages Flower carries."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt
from flwr.serverapp import ServerApp
from flwr.superlink.grid import InMemoryGrid
from pydantic import BaseModel, ConfigDict, ValidationError

from interfuse.coordination import Terms, coordinate
from interfuse.engines.flower.carrier import FlowerCarrier
from interfuse.engines.parties.contract import MESSAGE
from interfuse.engines.parties.remote import Patience
from interfuse.errors import ConfigError
from interfuse.report.progress import shown
from interfuse.runs import read_config


class AppSettings(BaseModel):
    """``[tool.flwr.app.config]`` of the app, and ``flwr run --run-config``.

    Attributes:
        out: The run's folder, on the machine of the ServerApp; the same again goes on with a run.
        nodes: How many begin.
        minimum: How many must remain; 0: all.
        classes: How many, where no public test set says it; 0: it does.
        back: Seconds for a lost node to come back, beside the minute after which Flower knows that it is lost.
        answer: Seconds for an answer.
        largest: Bytes of a message from a node.
        keys: The folder `coordinator` of `interfuse keys`: streams are then TLS from node to coordinator.
        insecure: Without it: SuperLink and SuperNodes read and change all, and whoever is one can be any vendor's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    nodes: Annotated[int, Ge(1)]
    minimum: Annotated[int, Ge(0)] = 0
    classes: Annotated[int, Ge(0)] = 0
    back: Annotated[float, Gt(0)] = 120.0
    answer: Annotated[float, Gt(0)] = 3600.0
    largest: Annotated[int, Ge(1)] = MESSAGE
    keys: Path | None = None
    insecure: bool = False

    @classmethod
    def read(cls, values: Any) -> AppSettings:
        """As Flower hands them over.

        Raises:
            ConfigError: naming the key.
        """
        try:
            found = cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"run config: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if not found.out.is_absolute():  # Flower's processes begin wherever they were started
            raise ConfigError(f"run config: out = {str(found.out)!r}: give an absolute path")
        if (found.keys is None) != found.insecure:
            raise ConfigError("run config: either keys = FOLDER (`interfuse keys` makes one), or insecure = true")
        return found


def server_app(recipe: Path) -> ServerApp:
    """A ServerApp that carries out a recipe with the nodes behind a federation's SuperNodes."""

    def main(grid: Any, context: Any) -> None:
        settings = AppSettings.read(context.run_config)
        simulated = isinstance(grid, InMemoryGrid)
        with shown(quiet=False) as progress:
            if simulated and (address := ray_that_was_there()):
                progress.note(
                    f"Flower's simulation joins the Ray at {address}, which was there before, and waits where nobody "
                    "answers or all is taken: end that (`ray stop`), or end Flower's SuperLink and set "
                    "RAY_ADDRESS=local before the next `flwr run`. Its actors must be on this machine"
                )
            carrier = FlowerCarrier(grid, progress.note, settings.keys, settings.largest)
            patience = Patience(settings.back, settings.answer)
            least, classes = settings.minimum or None, settings.classes or None
            terms = Terms(carrier, settings.nodes, least, classes, patience, settings.largest, simulated=simulated)
            result = coordinate(read_config(recipe), settings.out, terms, progress)
            progress.note(f"the run is finished; its report: {result.path / 'report.html'}")

    app = ServerApp()
    app.main()(main)
    return app


def ray_that_was_there() -> str:
    """The address of the Ray that a simulation joins in place of a new one, as Ray looks for it; empty: none."""
    if said := os.environ.get("RAY_ADDRESS"):
        return "" if said == "local" else said
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    try:
        return (folder / "ray_current_cluster").read_text(encoding="utf-8").strip()  # as `ray start` leaves it
    except (OSError, ValueError):
        return ""
