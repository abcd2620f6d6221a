"""What a vendor's file says of quantities holds, whatever a contract or a coordinator says; the node counts itself."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import VENDOR, Coordinator, changed, contract_of, refusal
from parties import rows
from torch import Tensor

from interfuse.engines.parties import stopwatch
from interfuse.engines.parties.forecast import Forecast
from interfuse.engines.parties.frames import Offer, Reply
from interfuse.engines.parties.keeping import RUN_FILE, read_run
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.node import Node, RefusedError
from interfuse.engines.parties.vendor import read_vendor
from interfuse.errors import ConfigError
from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.messages import Weights
from interfuse.messages.encoding import decode
from interfuse.methods import find

NOISE = "\n[limits.noise]\nparameters = 5.0\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows(tmp_path, "rows", 0)
    return tmp_path


@pytest.mark.parametrize(
    ("limits", "recipe", "expected"),
    [
        ("settings = {batch_size = {max = 64}}", {"settings": {"batch_size": 65}}, "batch_size: expected a number"),
        ("settings = {batch_size = {max = 64}}", {"client": {0: {"batch_size": 10**9}}}, "a number to 64, found 10000"),
        ("settings = {local_steps = {min = 1}}", {"settings": {"local_steps": 0}}, "a number from 1, found 0"),
        ("settings = {base_lr = {max = 1}}", {"settings": {"base_lr": 1.5}}, "a number to 1, found 1.5"),
        ("settings = {optimizer = {values = ['sgd']}}", {"settings": {"optimizer": "adam"}}, "one of sgd, found adam"),
        ("settings = {keep_optimizer = {values = [1]}}", {}, "one of 1, found True"),
        ("rounds = 2", {}, "rounds: expected at most 2, found 3"),
        ("fusion_width = 7", {}, "fusion width: expected at most 7, found 8"),
        ("noise = {labels = 1.0}", {}, "noise on labels: expected what noise can be added to, found whole numbers"),
        ("label_epsilon = 1.0", {}, "expected reports of labels with at most 1, found labels as they are"),
        ("label_epsilon = 1.0", {"method": "ifl-private-labels"}, "with at most 1, found 4.0"),
    ],
)  # fmt: skip
def test_a_contract_beyond_a_bound_is_refused_by_name(
    folder: Path, limits: str, recipe: dict[str, Any], expected: str
) -> None:
    contract = contract_of(folder, **({"method": "ifl"} | recipe))
    assert expected in refusal(folder, contract, f"\n[limits]\n{limits}\n")


def test_bounds_that_hold_are_no_hindrance(folder: Path) -> None:
    limits = "\n[limits]\nlabel_epsilon = 1.0\nsettings = {batch_size = {max = 64}, local_epochs = {max = 2}}\n"
    settings = {"batch_size": 64, "label_epsilon": 0.5}
    one = Coordinator(folder, limits, method="ifl-private-labels", settings=settings)
    assert one.failure("train_base", None) is None
    one.node.close()


def test_a_bound_on_what_no_allowed_method_has_is_an_error(folder: Path) -> None:
    (folder / "vendor.toml").write_text(VENDOR + "\n[limits.settings]\nbatchsize = {max = 3}\n")
    with pytest.raises(ConfigError, match="no method under .allow. has it: did you mean 'batch_size'"):
        Node(read_vendor(folder / "vendor.toml"), Events(None, lambda text: None))
    (folder / "vendor.toml").write_text(VENDOR + "\n[limits.settings]\nbatch_size = {}\n")
    with pytest.raises(ConfigError, match="give min, max or both, or values"):
        read_vendor(folder / "vendor.toml")


def test_sizes_are_looked_at_before_anything_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = changed(contract_of(folder, "ifl"), fusion_width=2**31)
    monkeypatch.setattr("interfuse.engines.parties.setups.make_model", lambda *_: pytest.fail("a model was made"))
    assert "fusion width: expected at most 65536, found 2147483648" in refusal(folder, contract)


def test_no_upload_has_more_rows_than_the_vendor_lets_go(folder: Path) -> None:
    one = Coordinator(folder, "\n[limits]\nrows = 16\n", method="ifl", settings={"batch_size": 17, "local_steps": 1})
    assert one.failure("train_base", None) == "limit-rows"
    assert any("17 rows in one message, of 16" in text for text in one.said)
    one.node.close()
    two = Coordinator(folder, "\n[limits]\nrows = 16\n", method="ifl", settings={"batch_size": 16, "local_steps": 1})
    assert two.failure("train_base", None) is None
    two.node.close()


def values(one: Coordinator, answer: tuple[Reply, Any]) -> Tensor:
    """All numbers of an answer in a row."""
    assert answer[0].failure is None
    sent = decode(answer[1], Weights, one.sizes, one.keys).tensors
    return torch.cat([tensor.flatten() for tensor in sent.values()])


def test_asking_again_averages_no_noise_out(folder: Path) -> None:
    one = Coordinator(folder, NOISE)
    zeros, found = Weights(one.zeros), []
    for _ in range(30):
        found.append(values(one, one.ask("train", zeros, recoverable=True)))
        one.undo()
    for _ in range(3):
        one.begin()  # from the beginning
        found.append(values(one, one.ask("train", zeros)))
    one.node.close()
    one.start()  # another process
    found.append(values(one, one.ask("train", zeros)))
    one.node.close()
    assert all(torch.equal(again, found[0]) for again in found)
    (folder / "clean" / "state" / "run").mkdir(parents=True)
    for name in ("rows.npz", "state/run/secret"):
        (folder / "clean" / name).write_bytes((folder / name).read_bytes())
    clean = Coordinator(folder / "clean")
    mean = torch.stack(found).mean(0)
    error = float((mean - values(clean, clean.ask("train", zeros))).square().mean().sqrt())
    assert 3 < error < 7  # what one answer has; the mean of 34 independent ones would have 0.9
    clean.node.close()


def test_another_question_has_other_noise_and_only_so_many_of_them_are_answered(folder: Path) -> None:
    one = Coordinator(folder, NOISE.replace("[", "[limits]\nanswers = 3\n[", 1))
    found = []
    for step in range(8):
        message = Weights({key: tensor + 1e-6 * step for key, tensor in one.zeros.items()})
        answer = one.ask("train", message, recoverable=True)
        one.undo()
        if answer[0].failure is None:
            found.append(values(one, answer))
        else:
            assert answer[0].failure == "limit-calls"
    assert len(found) == 3
    differences = [float((a - b).square().mean().sqrt()) for a, b in itertools.combinations(found, 2)]
    assert all(4 < one < 11 for one in differences)  # sqrt(2) times the noise: no two of them have it in common
    one.node.close()


def test_a_node_counts_the_calls_of_a_round_over_attempts_and_restarts(folder: Path) -> None:
    one = Coordinator(folder, "\n[limits]\ncalls = 2\nrounds = 3\n", method="fedavg")
    answered = refused = 0
    for _, (round, index) in itertools.product(range(3), itertools.product(range(1, 6), range(20))):
        failure = one.failure("train", Weights(one.zeros), round=round, index=index, recoverable=True)
        one.undo()
        answered += failure is None
        refused += failure in ("limit-calls", "limit-rounds")
        if (round, index) == (5, 19):
            one.node.close()
            one.start()
    assert (answered, refused) == (3 * 3 * 2, 3 * (5 * 20 - 3 * 2))  # the same six answers, three times
    one.node.close()


def test_a_node_takes_no_other_run_than_the_one_it_began(folder: Path) -> None:
    """A run has a secret and counts of its own, and its name is the coordinator's word."""
    one = Coordinator(folder, "\n[limits]\nruns = 2\n")
    for name in ("again", "run2"):
        with pytest.raises(RefusedError, match=f"name of the run: expected {name}, found run"):
            tuple(one.node.answer(Offer(contract=changed(one.contract, run=name)), b""))
    tuple(one.node.answer(Offer(contract=one.contract), b""))
    one.node.close()
    for run, refused in (("second", False), ("third", True), ("run", False), ("second", False)):
        one.contract = changed(one.contract, run=run)
        if refused:
            with pytest.raises(RefusedError, match="number of runs: expected at most 2, found 3"):
                one.start()
        else:
            one.start()
        one.node.close()


def test_a_node_answers_as_often_as_its_method_needs(folder: Path) -> None:
    settings = {"local_steps": 13, "batch_size": 4, "average_clients": True}
    contract = contract_of(folder, "splitfed-v1", settings=settings)
    text = VENDOR.replace('"scaffold"', '"scaffold", "splitfed-v1"') + "\n[limits]\ncalls = 12\n"
    (folder / "vendor.toml").write_text(text)
    node = Node(read_vendor(folder / "vendor.toml"), Events(None, lambda text: None))
    with pytest.raises(RefusedError, match="calls of forward in a round: expected at most 12, found 13"):
        tuple(node.answer(Offer(contract=contract), b""))
    node.close()
    assert find("splitfed-v1").configure(settings).calls_of_a_round(40) == {"forward": 13}
    assert find("splitfed-v1").configure({"local_epochs": 2, "batch_size": 16}).calls_of_a_round(40) == {"forward": 6}
    assert find("fedbuff")().calls_of_a_round(40) == {"train": 100}


def test_a_refused_answer_leaves_the_client_where_it_was(folder: Path) -> None:
    """A coordinator takes a recoverable call that failed for undone."""
    settings = {"local_steps": 2, "batch_size": 4}
    one = Coordinator(folder, "\n[limits]\ncalls = 1\n", method="ifl", settings=settings)
    assert one.failure("train_base", None, index=0, recoverable=True) is None
    before = one.order("save").digest
    assert before is not None
    for _ in range(2):
        assert one.failure("train_base", None, index=1, recoverable=True) == "limit-calls"
        assert one.order("save").digest in (None, before)
    one.node.close()


def first_rows(folder: Path, name: str, **recipe: Any) -> Tensor:
    """Features of the first batch that a node with a secret of its own sends, with a base block as it began."""
    settings = {"local_steps": 0, "batch_size": 8}
    place = folder / name
    place.mkdir()
    (place / "rows.npz").write_bytes((folder / "rows.npz").read_bytes())
    allow = VENDOR.replace('evaluation = "own"', 'evaluation = "own"\ndraws_from = "seed"')
    (place / "vendor.toml").write_text(allow)
    one = Coordinator(place, allow.removeprefix(VENDOR), method="ifl", settings=settings, **recipe)
    _, payload = one.ask("train_base", None)
    one.node.close()
    return decode(payload, FusionOutputs, one.sizes, one.keys).z


def test_who_knows_the_contract_does_not_know_which_rows_are_sent(folder: Path) -> None:
    same: dict[str, Any] = {"seed": 3}
    by_secret = [first_rows(folder, f"secret-{i}", **same) for i in range(2)]
    assert not torch.equal(*by_secret)
    settings = {"local_steps": 0, "batch_size": 8}
    one = contract_of(folder, "ifl", settings=settings, sampling={"draws_from": "seed"})
    assert 'expected secret, or `draws_from = "seed"` under [allow], found seed' in refusal(folder, one)


def test_a_call_without_an_end_is_given_up_and_the_node_stands_where_it_was_saved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"local_steps": 10**9, "batch_size": 4}
    one = Coordinator(folder, "\n[limits]\nseconds = 20\n", method="ifl", settings=settings)
    x, y = torch.zeros(4, 8), torch.zeros(4, dtype=torch.uint8)
    assert one.failure("train_modular", FusionPairs((FusionOutputs(x, y),))) is None
    saved = one.order("save").digest
    assert saved is not None
    ticks = itertools.count()
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: float(next(ticks)))  # a second a look
    assert one.failure("train_base", None) == "limit-seconds"
    assert any("goes back" in text for text in one.said)
    assert one.order("save").digest is None  # nothing is otherwise than it was saved
    one.node.close()


def test_rows_are_given_in_the_order_of_a_secret_that_lasts(folder: Path) -> None:
    one = Coordinator(folder, method="ifl", settings={"local_steps": 0, "batch_size": 8})
    _, before = one.ask("train_base", None)
    one.node.close()
    one.start()
    _, after = one.ask("train_base", None)
    one.node.close()
    assert bytes(before) == bytes(after)
    assert len(np.frombuffer(bytes(before), np.uint8)) > 8 * 8 * 4


def test_memory_is_bounded_where_that_means_something(folder: Path) -> None:
    (folder / "vendor.toml").write_text(VENDOR.replace('name = "ant"', 'name = "ant"\ndevice = "cuda"') + NOISE)
    assert read_vendor(folder / "vendor.toml").device == "cuda"
    (folder / "vendor.toml").write_text(
        VENDOR.replace('name = "ant"', 'name = "ant"\ndevice = "cuda"') + "\n[limits]\nmemory = 1000000000\n"
    )
    with pytest.raises(ConfigError, match=r"limits.memory bounds .* bound the node from outside"):
        read_vendor(folder / "vendor.toml")


def test_a_run_that_a_node_began_with_an_earlier_version_drew_from_the_seed(folder: Path) -> None:
    one = Coordinator(folder)
    one.node.close()
    (path,) = (folder / "state").glob(f"*/{RUN_FILE}")
    values = json.loads(path.read_text())
    assert values.pop("digest")
    assert values["contract"]["sampling"].pop("draws_from") == "secret"
    assert read_run(path).contract.sampling.draws_from == "secret"
    path.write_text(json.dumps(values))
    assert read_run(path).contract.sampling.draws_from == "seed"


def test_bytes_that_will_not_do_are_told_after_the_third_round_and_once(folder: Path) -> None:
    def said(limit: str) -> list[str]:
        place = folder / limit.replace(" ", "")
        place.mkdir()
        one = Coordinator(place, f"\n[limits]\n{limit}\n", rounds=100)
        for _ in range(2):
            for round in range(1, 5):
                sizes.append(one.node.audit.sent("run"))
                assert one.failure("train", Weights(one.zeros), round=round) is None
            one.begin()
        one.node.close()
        return [text for text in one.said if "bytes will not do" in text]

    sizes: list[int] = []
    assert said("rounds = 100") == []
    each, after = sizes[3] - sizes[2], sizes[3]
    needed = after + 97 * each
    (text,) = said("bytes = 20_000")
    assert f"after 3 of 100 rounds {after:,} bytes have left, {each:,} a round" in text
    assert f"the run needs {needed:,}, and [limits] bytes is 20,000: it ends for this node in about round" in text
    assert int(text.split()[-1]) == 4 + (20_000 - after) // each
    assert said(f"bytes = {2 * needed}") == []


def told(limit: int, rounds: int, sizes: Sequence[int], forecast: Forecast | None = None, sent: int = 0) -> list[int]:
    """In which rounds something is told where so many bytes leave in each; a round has two calls."""
    made, found = forecast or Forecast(limit, rounds), list[int]()
    for round, size in enumerate(sizes, 1):
        for part in (0, size):
            if made.begins(round, sent + part // 2):
                found.append(round)
        sent += size
    return found


def test_what_leaves_now_and_then_alarms_nobody_and_what_grows_is_told() -> None:
    assert told(200_000, 100, [2_000] + [10] * 99) == []  # a codebook in the first round
    evaluated = [10 + 1_000 * (round % 10 == 1) for round in range(100)]
    assert told(sum(evaluated) * 11 // 10, 100, evaluated) == []
    assert told(sum(evaluated) // 2, 100, evaluated) == [12]  # ten whole rounds behind the first
    assert told(6_000, 100, [10] + [2_000] * 5) == [4]
    assert told(60_000, 100, [10] * 5 + [2_000] * 20) == [12]  # a coordinator that begins with little
    assert told(10, 100, [0] * 20) == told(10, 100, [0, 20, 0, 0]) == []
    again = Forecast(1_000, 10)
    assert told(0, 0, [90, 90], again) == []
    again.begin_again()
    assert told(0, 0, [90, 90, 90], again, 180) == []  # 180 more than its rounds take, and still within
    assert told(1, 100, [5, 5, 5, 5]) == [4]  # more has left than may: nothing is divided by nothing
