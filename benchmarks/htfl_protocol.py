"""HtFLlib's own code beside interfuse with ``--protocol htfllib``, on a folder in its format: accuracy by round.

``HTFLLIB=path`` names a checkout of it, of which nothing changes. A data set is divided and written as PFLlib's scripts
write it, converted by ``interfuse convert``, and both run on it, each by its own code: the folder's division, order of
samples and test rows. All models begin with the same values, HtFLlib's by way of its folder of pre-trained models. What
is compared is HtFLlib's own figure, accuracy over all clients' own test rows, each row counting the same.

    HTFLLIB=path python benchmarks/htfl_protocol.py --data fashion-mnist --rounds 10 --methods local,fedproto,lg-fedavg
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import checkouts
import common
import workload

OWN: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "local": ("serverlocal", "Local", {}),
    "fedproto": ("serverproto", "FedProto", {"lamda": 10.0}),
    "lg-fedavg": ("serverlg", "LG_FedAvg", {}),
    "feddistill": ("serverfd", "FD", {"lamda": 1.0}),
    "fedgh": ("servergh", "FedGH", {"server_learning_rate": 0.01, "server_epochs": 1}),
    "fedtgp": ("servertgp", "FedTGP", {"lamda": 10.0, "server_epochs": 100, "margin_threthold": 100.0}),
    "fml": ("serverfml", "FML", {"alpha": 0.5, "beta": 0.5}),
    "fedkd": ("serverkd", "FedKD", {"mentee_learning_rate": 0.01, "T_start": 0.95, "T_end": 0.98}),
    "fedmrl": ("servermrl", "FedMRL", {"sub_feature_dim": 128}),
    "fedgen-heads": (
        "servergen", "FedGen",
        {"noise_dim": 32, "generator_learning_rate": 0.1, "hidden_dim": 512, "server_epochs": 100},
    ),
}  # fmt: skip
"""Our name of a method, HtFLlib's module and class, and its flags in ``total.sh``. FedL2G needs a package that is not
here, and FedKTL a generator trained elsewhere."""
WIDTH = 512
SMALL_CNN = "htfl-cnn"


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the methods. Returns 1 where one that has no chance in it differs by more than the tolerance."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--data", default="fashion-mnist")
    asked.add_argument("--methods", default=",".join(OWN))
    asked.add_argument("--clients", type=int, default=10)
    asked.add_argument("--rows", type=int, default=4000, help="of the data set, training and test rows together")
    asked.add_argument("--rounds", type=int, default=10)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    given = asked.parse_args(argv)
    checkout = common.checkout("HTFLLIB")
    if not isinstance(checkout, Path):
        raise SystemExit(f"HtFLlib's own code is not here: {checkout}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder / "source", given.data, given.clients, given.rows, given.seed)
        figures = {m: compare(m, folder, checkout, given) for m in given.methods.split(",")}
    print(table(figures))
    if given.out is not None:
        given.out.write_text(json.dumps({"given": vars(given) | {"out": str(given.out)}, "figures": figures}, indent=1))
    return 0


def write_folder(path: Path, data: str, clients: int, rows: int, seed: int) -> None:
    """A data set as PFLlib's scripts leave it: all rows together, divided, a quarter of each part to test on."""
    from interfuse.data import Dirichlet, load, make_shares
    from interfuse.data.inputs import ONLY, named

    whole = load(data).with_all_rows().with_train_rows(rows).normalised("plain")
    x, y = named(whole.normalise(whole.x_train))[ONLY], whole.y_train
    shares = make_shares(whole, Dirichlet(0.1, minimum=40, balanced=True), clients, seed, 0.0, 0.25)
    noise = np.random.default_rng(seed)
    for part in ("train", "test"):
        (path / part).mkdir(parents=True)
        for client, share in enumerate(shares):
            chosen = noise.permutation(getattr(share, part))
            content: Any = {"x": x[chosen].numpy(), "y": y[chosen].numpy()}
            np.savez_compressed(path / part / f"{client}.npz", data=content)
    (path / "config.json").write_text(json.dumps({"num_clients": clients, "num_classes": whole.classes}))


def compare(method: str, folder: Path, checkout: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Accuracy by round of both, and the bytes that interfuse counts."""
    scratch = folder / method
    scratch.mkdir()
    ours = our_run(method, folder, scratch, given)
    order = {
        "checkout": str(checkout), "scratch": str(scratch), "source": str(folder / "source"), "method": method,
        "rounds": given.rounds, "clients": given.clients, "initial": str(scratch / "initial.npz"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, "--as-htfllib", json.dumps(order)], check=True, capture_output=True, text=True
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    figures = {"ours": ours["accuracy"], "theirs": theirs, "bytes": ours["bytes"]}
    print(f"{method}: largest difference {largest(figures):.4f}", file=sys.stderr, flush=True)
    return figures


def our_run(method: str, folder: Path, scratch: Path, given: argparse.Namespace) -> dict[str, Any]:
    """interfuse by its protocol on the converted folder; writes the initial values of its clients' model."""
    from interfuse.data.readers.htfllib import convert
    from interfuse.runs import execute, parse_config
    from interfuse.runs.folder import RunFolder
    from interfuse.runs.loop import assemble

    converted = folder / "source.npz"
    if not converted.exists():
        convert(folder / "source", converted)
    config = parse_config({
        "method": method, "protocol": "htfllib", "data": str(converted), "partition": {"name": "natural"},
        "clients": given.clients, "models": [SMALL_CNN], "rounds": given.rounds, "seed": given.seed, "beside": [],
        "numerics": {"layout": "contiguous", "denormals": "keep"},
    })  # fmt: skip
    workload.write_weights(scratch / "initial.npz", assemble(config).build(SMALL_CNN, 0).state_dict())
    summary = execute(config, scratch / "run")
    points = [row.accuracy for row in RunFolder(scratch / "run").metrics() if row.accuracy]
    sent = {"up": summary.uplink_bytes.raw, "down": summary.downlink_bytes.raw}
    return {
        "accuracy": [point.own_by_samples for point in points],
        "bytes": {way: size / given.rounds / given.clients for way, size in sent.items()},
    }


def as_htfllib(given: Mapping[str, Any]) -> None:
    """HtFLlib's own loop in this process; its accuracies by round are the last line."""
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    torch.set_num_threads(1)
    torch.manual_seed(0)  # as its main.py does
    module, name, flags = OWN[given["method"]]
    scratch, source = Path(given["scratch"]) / "theirs", Path(given["source"])
    scratch.mkdir()
    checkouts.enter(Path(given["checkout"]), scratch)
    (scratch / "dataset").mkdir()
    (scratch / "dataset" / checkouts.DATASET).symlink_to(source)
    import flcore.clients.clientbase as base
    import flcore.trainmodel.models as models

    with np.load(source / "train" / "0.npz", allow_pickle=True) as file:
        channels, size = file["data"].item()["x"].shape[1:3]
    classes = json.loads((source / "config.json").read_text())["num_classes"]
    cnn = f"FedAvgCNN(in_features={channels}, num_classes={classes}, dim={64 * ((size - 4) // 2 // 2 - 2) ** 2})"
    args = checkouts.arguments(
        {"batch_size": 10, "lr": 0.01, "evaluate": True}, given["clients"],
        algorithm=name, feature_dim=WIDTH, models=[cnn], models_folder_name="initial", **flags,
    )  # fmt: skip
    args.num_classes, args.global_rounds = classes, given["rounds"]
    initial = workload.read_weights(Path(given["initial"]))
    for client in range(given["clients"]):
        model = models.BaseHeadSplit(args, client)
        model.load_state_dict(dict(zip(model.state_dict(), initial.values(), strict=True)))
        base.save_item(model, f"Client_{client}", "model", args.models_folder_name)
    args.global_model = cnn
    server = getattr(__import__(f"flcore.servers.{module}", fromlist=[name]), name)(args, 0)
    for loaded in [sys.modules[at] for at in sys.modules if at.startswith("flcore.clients.")]:
        vars(loaded).update(label_binarize=lambda y, classes: y, metrics=SimpleNamespace(roc_auc_score=no_curve))
    server.save_results = lambda: None
    server.train()
    print(json.dumps([float(score) for score in server.rs_test_acc]))


def no_curve(*given: Any, **more: Any) -> float:
    """Nothing: the area under a curve, which scikit-learn would tell it, is not asked for."""
    return 0.0


def largest(figures: Mapping[str, Any]) -> float:
    """The largest difference after the start, where HtFLlib's prototypes answer nothing."""
    pairs = zip(figures["ours"][1:], figures["theirs"][1:], strict=True)
    return max(abs(float(ours) - float(theirs)) for ours, theirs in pairs)


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A table in Markdown."""
    heads = (
        "method",
        "interfuse, last",
        "HtFLlib, last",
        "interfuse, best",
        "HtFLlib, best",
        "largest difference",
        "up",
        "down",
    )
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for name, found in figures.items():
        ours, theirs = found["ours"][1:], found["theirs"][1:]
        cells = [f"{score:.4f}" for score in (ours[-1], theirs[-1], max(ours), max(theirs), largest(found))]
        lines.append(f"| {name} | {' | '.join(cells)} | {found['bytes']['up']:,.0f} | {found['bytes']['down']:,.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-htfllib"]:
        as_htfllib(json.loads(sys.argv[2]))
    else:
        sys.exit(main())
