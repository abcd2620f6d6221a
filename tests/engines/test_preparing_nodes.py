"""A setup travels to another process: pickled and read again it gives the same bits."""

from __future__ import annotations

import pickle

from worlds import everything_owned, same_bits, setup_of, tiny_dataset, wide

from interfuse.clock import Devices
from interfuse.engines import local
from interfuse.evaluation import evaluate
from interfuse.federation import Federation
from interfuse.setup import Setup


def _after_a_round(setup: Setup) -> Federation:
    made = Federation(setup, local(setup, 1))
    made.start()
    made.run_round()
    return made


def test_a_pickled_setup_runs_as_the_one_it_was_made_from() -> None:
    setup = setup_of(
        "ifl",
        models=["cut-2", wide, "resnet10-narrow-group", "cnn"],
        clients=4,
        width=128,
        dataset=tiny_dataset(shape=(1, 16, 16)),
        overrides={1: {"base_lr": 0.02}},
        codecs={"FusionOutputs.z": "int8+zstd"},
        devices=Devices(slow=0.5),
    )
    ours = _after_a_round(setup)  # what it has worked out meanwhile need not pickle
    read = pickle.loads(pickle.dumps(setup))
    assert read.domains[0] is read.datasets[-1]  # still one data set for all clients
    theirs = _after_a_round(read)
    assert same_bits(everything_owned(ours), everything_owned(theirs))
    assert evaluate(ours, full=True) == evaluate(theirs, full=True)
