"""What a node would send: a whole round against a coordinator in the same process, written down message by message."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import pairwise
from math import ceil
from pathlib import Path

from interfuse.coordination.driver import Public, make_contract
from interfuse.data import Dataset, describe
from interfuse.engines.parties.contract import MESSAGE
from interfuse.engines.parties.frames import Envelope, Payload, Reply
from interfuse.engines.parties.hub import Hub, Joined
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.loopback import Loopback
from interfuse.engines.parties.node import Node
from interfuse.engines.parties.participation import take_part
from interfuse.engines.parties.remote import Patience, Remote
from interfuse.engines.parties.setups import RemoteSetup
from interfuse.engines.parties.vendor import MODES, Vendor
from interfuse.errors import RunError
from interfuse.evaluation import evaluate, similarity
from interfuse.federation import Federation, messages_of
from interfuse.messages.encoding import read
from interfuse.models import resolve
from interfuse.models.splitting import added_behind
from interfuse.runs import RunConfig
from interfuse.wire import Codecs

VALUES = 8
"""Values of each tensor that are written down."""


def dry_run(vendor: Vendor, recipe: RunConfig, out: Path, show: Callable[[str], None]) -> list[Path]:
    """Play one round of a recipe with the vendor's node alone, and write everything it would send to ``out``.

    How the vendor's own data was read is shown first. The vendor's limits hold; its state, logs and byte counts are
    left alone. No network is used.

    Returns: the files, in the order of sending.
    Raises:
        InterfuseError: the vendor's file does not allow the recipe, or something cannot work.
    """
    out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    left = 0

    def tap(envelope: Envelope, payload: Payload) -> None:
        nonlocal left
        left += len(payload)
        files.append(out / f"{len(files):03d}-{envelope.kind}.json")
        files[-1].write_text(json.dumps(_readable(envelope, payload, recipe), indent=1), encoding="utf-8")

    with tempfile.TemporaryDirectory() as state:
        trial, receipts = vendor.model_copy(update={"state": Path(state)}), Path(state) / "receipts"
        dataset = vendor.data.load(vendor.folder)
        for subject, text in describe(dataset):
            show(f"{subject}: {text}")
        mode = MODES[min(MODES.index(vendor.allow.evaluation), MODES.index(recipe.evaluation))]
        config = recipe.model_copy(update={"rounds": 1, "clients": 1, "evaluation": mode, "client": {}})
        labels = dataset.with_test_rows(config.test_rows).y_test
        known = None if config.public is None else vendor.data.load_public(vendor.folder)
        names = list(config.classes or dataset.class_names)
        public = Public(len(names), names, labels, known)
        method = config.make_method()
        contract = make_contract(config, method, "dry-run", public)
        carrier, events = Loopback(), Events(None, show)
        hub = Hub(contract, method, 1, carrier, events)
        with closing(Node(trial, events, tap)) as node, ThreadPoolExecutor(1) as pool:
            part = pool.submit(take_part, node, carrier.dial, patience=5.0)
            try:
                while not isinstance(event := _event(hub, part), Joined):
                    pass
                event.member.client = 0
                if added := _added(vendor, dataset, config.fusion_width):
                    show(f"model: {added}")
                facts, builders = {0: event.member.facts}, {name: partial(resolve, name) for name in config.models}
                setup = RemoteSetup(contract, known, method, facts, public.labels, builders, public.class_names)
                engine = _Noting(hub, setup, {0: event.member}, 1, Patience(30.0), message_bytes=MESSAGE)
                engine.left, engine.marks = (lambda: left), []
                engine.begin()
                federation = Federation(setup, engine, rounds=1)
                federation.start()
                federation.run_round()
                receipts.mkdir()
                federation.save(receipts)
                marks = [left]
                for look in (partial(evaluate, full=False), similarity, partial(evaluate, full=True)):
                    look(federation)
                    marks.append(left)
                show(_bytes(recipe, vendor.limits.bytes, engine.marks[:3], [b - a for a, b in pairwise(marks)]))
            except RunError as error:
                raise (part.exception() if part.done() else None) or error from error
            finally:
                hub.close("the dry run is over", finished=True)
    return files


def _added(vendor: Vendor, dataset: Dataset, width: int) -> str:
    """What a module that was cut got, so that its code has the contract's width; empty where it got no layer."""
    if vendor.model.split_at is None or not isinstance(dataset.shape, tuple):
        return ""
    model = vendor.model.builder(vendor.folder)(dataset.shape, len(dataset.class_names), width)
    if not (own := added_behind(model)):
        return ""
    return (
        f"the code after {vendor.model.split_at!r} has {own:,} numbers, the contract's fusion width is {width:,}: a "
        "linear layer with ReLU (to_fusion) was added behind it, a linear layer (from_fusion) before the modular block"
    )


class _Noting(Remote):
    """Notes how many bytes have left whenever a part of the run ends: the start, what a round does, its finish."""

    left: Callable[[], int]
    marks: list[int]

    def end_round(self) -> None:
        super().end_round()
        self.marks.append(self.left())


def _bytes(recipe: RunConfig, limit: int | None, done: Sequence[int], looks: Sequence[int]) -> str:
    """What a whole run lets leave, where its rounds are like the one and every look at it asks this node.

    Args:
        done: Bytes that had left after the start, the round, and what the method does after its last one.
        looks: Those of a point of the curve, of the similarity of features, and of an evaluation on everything.
    """
    start, each, finish = done[0], done[1] - done[0], done[2] - done[1]
    points = 1 + ceil(recipe.rounds / recipe.eval_every)
    looked = points * looks[0] + 2 * (looks[1] + looks[2])  # on everything: the last and the best round
    whole = start + each * recipe.rounds + finish + looked
    told = (
        "" if limit is None or whole <= limit else f"; [limits] bytes is {limit:,}, so this node's part may end early"
    )
    return (
        f"bytes: {start:,} leave before the first round, {each:,} in a round, {finish:,} after the last; in "
        f"{recipe.rounds:,} rounds {looked:,} in evaluations and about {whole:,} in all, unless rounds are done "
        f"again{told}"
    )


def _event(hub: Hub, part: Future[str]) -> object:
    while hub.arrivals.empty():
        if part.done() and hub.arrivals.empty():
            raise RunError("the node took no part")
        time.sleep(0.01)
    return hub.arrivals.get()


def _readable(envelope: Envelope, payload: Payload, recipe: RunConfig) -> dict[str, object]:
    found: dict[str, object] = {"envelope": envelope.model_dump(mode="json", exclude_none=True), "bytes": len(payload)}
    if isinstance(envelope, Reply) and envelope.message:
        kind, tensors = read(payload, Codecs.parse(recipe.codecs), messages_of(recipe.make_method()))
        found |= {
            "message": kind,
            "tensors": {
                name: {
                    "type": str(tensor.dtype), "shape": list(tensor.shape),
                    "first values": tensor.flatten()[:VALUES].tolist(),
                }
                for name, tensor in tensors.items()
            },
        }  # fmt: skip
    return found
