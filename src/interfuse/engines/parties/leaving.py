"""What a node has of its model when a run is over, for artefacts: no coordinator is asked, and nothing leaves."""

from __future__ import annotations

import math
from pathlib import Path

from interfuse.artefacts import Trained
from interfuse.client import part_of
from interfuse.engines.host import Host
from interfuse.engines.parties.contract import method_of
from interfuse.engines.parties.keeping import RUN_FILE, read_run, runs_in, states_of
from interfuse.engines.parties.setups import Own, dims_of, own_share
from interfuse.engines.parties.stopwatch import Stopwatch
from interfuse.engines.parties.vendor import Vendor
from interfuse.errors import RunError, nearest
from interfuse.method import Method
from interfuse.wire import FileRecord, open_pack


def trained(vendor: Vendor, run: str | None = None, round: int | None = None) -> Trained:
    """A vendor's model as its node saved it last.

    Args:
        run: The name of a run that the node took part in; None: the only one.
        round: After which the state was saved; None: the last one.

    Raises:
        RunError: there is no such run or state, it is damaged, or its method leaves no model with clients.
        JoinError: the run had another method than this version has.
    """
    folder = _folder(vendor.state_folder, run)
    try:
        known = read_run(folder / RUN_FILE)
    except (OSError, ValueError, RunError) as error:
        raise RunError(f"{folder / RUN_FILE} cannot be read: {error}") from error
    contract, method = known.contract, method_of(known.contract)
    if type(method).deployed is not Method.deployed:
        raise RunError(
            f"with {contract.method} clients answer with what the coordinator hands out, and a node keeps none of "
            "that: there is nothing to export here"
        )
    states = states_of(folder)
    if not states:
        raise RunError(f"{folder} has no saved state: the run saved none, or it was an older version's")
    wanted = max(states.values()) if round is None else round
    digests = [digest for digest, at in states.items() if at == wanted]
    if not digests:
        rounds = ", ".join(map(str, sorted({*states.values()})))
        raise RunError(f"{folder} has no state after round {wanted}, but after {rounds}")
    dataset = vendor.data.load(vendor.folder).to(vendor.device).normalised(contract.normalise)
    if dataset.digest != known.data:
        raise RunError(f"the data of {vendor.folder} are others than those that the run {folder.name} had")
    builder = vendor.model.builder(vendor.folder)
    own = Own(contract, None, method, dataset, own_share(contract, dataset), builder, vendor.device)
    facts = own.facts(vendor.architecture)
    setup = own.hosted(facts.profile(known.client), dims_of(contract, known.clients, known.d), 0, Stopwatch(math.inf))
    path = folder / f"{digests[0]}.safetensors"
    FileRecord(path.name, path.stat().st_size, digests[0]).check(folder)
    host = Host(setup, owns=True)
    host.restore({known.client: open_pack(path)[part_of(known.client)]})
    with host.working():
        model = host.model(known.client)
    return Trained(
        model=model,
        method=setup.method_of(known.client),
        method_name=contract.method,
        data=dataset,
        numerics=contract.numerics,
        client=known.client,
        architecture=facts.architecture,
        run=contract.run,
        round=wanted,
    )


def _folder(states: Path, run: str | None) -> Path:
    """The folder of a run among a node's."""
    names = runs_in(states)
    if run is None and len(names) == 1:
        return states / names[0]
    if run in names:
        return states / run
    if not names:
        raise RunError(f"{states} has no run: this node took part in none")
    if run is None:
        raise RunError(f"{states} has several runs: {', '.join(names)}; name one")
    raise RunError(f"{states} has no run {run!r}: {nearest(run, names)}")
