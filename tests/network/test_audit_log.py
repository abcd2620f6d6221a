"""An audit log that was touched is noticed, whatever was done; checking it changes nothing; a budget stays spent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from interfuse.artefacts.signing import Signer, is_signed
from interfuse.cli import app
from interfuse.engines.grpc.keys import make_keys
from interfuse.engines.parties.audit import NOTHING, Audit, verify
from interfuse.engines.parties.digests import Digested
from interfuse.engines.parties.frames import CHUNK, Ready, Reply
from interfuse.errors import RunError
from interfuse.wire import Pieces
from interfuse.wire.sealed import sealed

RUN = "run"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, ["ant", "bee"], ["localhost"])
    return folder


def signer(keys: Path, name: str) -> Signer:
    return Signer((keys / name / f"{name}.key").read_bytes(), (keys / name / f"{name}.crt").read_bytes())


def written(folder: Path, keys: Path, name: str, count: int = 6) -> Path:
    """The log of a node that sent a few messages of 10 bytes."""
    log = folder / name / "audit.jsonl"
    audit = Audit(log, name, signer(keys, name))
    for number in range(count):
        audit.add(RUN, Ready(attempt=number), b"x" * 10, {"tensors": {"z": ["float32", 2]}}, repeated=False)
    audit.close()
    return log


@pytest.fixture
def log(tmp_path: Path, keys: Path) -> Path:
    return written(tmp_path, keys, "ant")


def chained(lines: list[str], sign: Callable[[bytes], str] | None) -> str:
    """The same lines with digests that fit again, and signatures of somebody's, or those that were there."""
    before, made = "0" * 64, []
    for text in lines:
        line = json.loads(text) | {"before": before}
        signature = line.pop("signature")
        plain = json.dumps(line)
        if sign is not None:
            signature = sign(b"interfuse audit log, line:\n" + plain.encode())
        made.append(f'{plain[:-1]}, "signature": "{signature}"}}')
        before = hashlib.sha256(made[-1].encode()).hexdigest()
    return "".join(line + "\n" for line in made)


def forgeries(log: Path, keys: Path, other: bytes) -> Iterator[tuple[str, bytes]]:
    """What somebody who has the file, but not the node's key, can make of it."""
    data = log.read_bytes()
    lines = data.decode().splitlines()
    for place in range(0, len(data), 5):
        yield f"byte {place}", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    for number, text in enumerate(lines):
        less = [*lines[:number], *lines[number + 1 :]]
        yield f"line {number} taken out", "".join(f"{one}\n" for one in less).encode()
        yield f"line {number} taken out, chained anew", chained(less, None).encode()
        yield f"line {number} twice", "".join(f"{one}\n" for one in [*lines[:number], text, *lines[number:]]).encode()
        yield f"cut before line {number}", "".join(f"{one}\n" for one in lines[:number]).encode()
        yield f"cut in line {number}", "".join(f"{one}\n" for one in lines[:number]).encode() + text[:40].encode()
        for key in json.loads(text).keys() - {"before", "signature"}:
            changed = json.loads(text)
            changed[key] = {"certificate": "x"} if key == "facts" else True if key == "repeated" else 0
            if changed == json.loads(text):
                continue
            forged = [*lines[:number], json.dumps(changed), *lines[number + 1 :]]
            yield f"{key} of line {number}", "".join(f"{one}\n" for one in forged).encode()
            yield f"{key} of line {number}, chained anew", chained(forged, None).encode()
    mine = signer(keys, "bee")
    as_bee = json.loads(lines[0])
    as_bee["facts"]["certificate"] = mine.certificate.decode()
    yield "by another's key", chained([json.dumps(as_bee), *lines[1:]], mine.sign).encode()
    yield "by another's key under this name", chained(lines, mine.sign).encode()
    yield "one line more", data + lines[-1].encode() + b"\n"
    yield "two lines more", chained([*lines, lines[-1], lines[-1]], None).encode()
    yield "of another node", other
    for text in (b"", b"\n", b"[]\n", b"null\n", b"{}\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"before": 1}\n'):
        yield f"{text[:8]!r}", text
        yield f"then {text[:8]!r}", data + text if text else b"\n" + data


def test_every_forgery_is_noticed_and_checking_changes_nothing(log: Path, keys: Path, tmp_path: Path) -> None:
    assert verify(log, is_signed).lines == 7
    other = written(tmp_path, keys, "bee").read_bytes()
    tried = 0
    for what, data in list(forgeries(log, keys, other)):
        log.write_bytes(data)
        with pytest.raises(RunError, match=str(log.parent)):
            print(what, verify(log, is_signed))
        assert log.read_bytes() == data
        tried += 1
    assert tried > 800


def test_a_log_that_is_gone(log: Path) -> None:
    log.unlink()
    with pytest.raises(RunError, match="cannot read"):
        verify(log, is_signed)
    log.with_name("audit.json").unlink()
    with pytest.raises(RunError, match="cannot read"):
        verify(log, is_signed)


@pytest.mark.parametrize("what", ["gone", "empty", "cut", "another's", "anchor gone", "anchor of another"])
def test_what_was_sent_stays_sent(what: str, log: Path, keys: Path, tmp_path: Path) -> None:
    """A node that finds its log cut goes on; it says so in the log for ever, and its limit counts what had left."""
    other = written(tmp_path, keys, "bee", count=1)
    data = log.read_bytes()
    match what:
        case "gone":
            log.unlink()
        case "empty":
            log.write_bytes(b"")
        case "cut":
            log.write_bytes(data[: data[:-1].rindex(b"\n") + 1])
        case "another's":
            log.write_bytes(other.read_bytes())
        case "anchor gone":
            log.with_name("audit.json").unlink()
        case _:
            other.with_name("audit.json").replace(log.with_name("audit.json"))
            with pytest.raises(RunError, match=r"audit\.json is of node 'bee'"):
                Audit(log, "ant", signer(keys, "ant"))
            return
    audit = Audit(log, "ant", signer(keys, "ant"), ["run"])
    assert audit.gap
    assert audit.sent(RUN) == 60
    audit.add(RUN, Ready(attempt=9), b"y", {}, repeated=False)
    assert audit.sent(RUN) == 61
    audit.close()
    with pytest.raises(RunError, match="lines before it are missing"):
        verify(log, is_signed)


def test_where_nothing_says_what_left_nothing_leaves(log: Path, keys: Path) -> None:
    log.unlink()
    log.with_name("audit.json").unlink()
    with pytest.raises(RunError, match="not known any more"):
        Audit(log, "ant", signer(keys, "ant"), ["run"])


def test_a_whole_log_is_gone_on_with(log: Path, keys: Path) -> None:
    """Also one whose last line was cut off by a kill, or came before its anchor."""
    before = log.with_name("audit.json").read_bytes()
    Audit(log, "ant", signer(keys, "ant")).close()
    assert verify(log, is_signed).lines == 7
    audit = Audit(log, "ant", signer(keys, "ant"))
    assert not audit.gap
    audit.add(RUN, Ready(attempt=7), b"", {}, repeated=False)
    audit.close()
    log.with_name("audit.json").write_bytes(before)  # killed between the two
    assert verify(log, is_signed).lines == 8
    with open(log, "ab") as file:
        file.write(b'{"time": "20')
    assert "a line that was cut off" in verify(log, is_signed).unknown[-1]
    Audit(log, "ant", signer(keys, "ant")).close()
    assert verify(log, is_signed).lines == 8


def test_a_renewed_key_and_a_log_without_keys(tmp_path: Path, keys: Path) -> None:
    """Lines are signed by the key of their time; what no key signed is said to be so."""
    log = tmp_path / "audit.jsonl"
    for by in (None, signer(keys, "ant"), signer(keys, "bee")):
        audit = Audit(log, "ant", by)
        audit.add(RUN, Ready(attempt=1), b"", {}, repeated=False)
        audit.close()
    found = verify(log, is_signed)
    assert (found.lines, len(found.certificates)) == (5, 2)
    assert "lines 1 to 1 have no signature" in "".join(found.unknown)


def test_made_anew_with_its_anchor_it_is_not_what_the_coordinator_has_a_mark_of(
    log: Path, keys: Path, tmp_path: Path
) -> None:
    """A vendor that forges its own log, key and anchor in hand, cannot take back what it told with a commit."""
    mark = verify(log, is_signed).mark
    assert verify(log, is_signed, mark=mark).lines == 7
    again = written(tmp_path / "again", keys, "ant")
    assert verify(again, is_signed).lines == 7
    with pytest.raises(RunError, match="not what the coordinator has a mark of"):
        verify(again, is_signed, mark=mark)


def test_the_command_says_whose_signatures_it_took_and_what_it_did_not_check(log: Path, keys: Path) -> None:
    run = CliRunner().invoke
    found = run(app, ["audit", str(log)])
    assert found.exit_code == 0
    assert "7 lines, signed, the chain holds; mark 7:" in found.output
    assert "not checked: no certificate or authority was given" in found.output
    mark = verify(log, is_signed).mark
    whole = ["audit", str(log), "--authority", str(keys / "ca.crt"), "--mark", mark]
    assert "not checked" not in run(app, whole).output
    assert run(app, ["audit", str(log), "--certificate", str(keys / "ant/ant.crt")]).exit_code == 0
    refused = run(app, ["audit", str(log), "--certificate", str(keys / "bee/bee.crt")])
    assert refused.exit_code == 2
    assert "not among the certificates" in refused.output


def opened(log: Path, keys: Path) -> Audit:
    return Audit(log, "ant", signer(keys, "ant"), [RUN] if log.exists() else ())


def sent(log: Path, keys: Path) -> int:
    """What a node counts at its start."""
    with closing(opened(log, keys)) as audit:
        return audit.sent(RUN)


def killed(audit: Audit, log: Path) -> None:
    """What a killed process leaves: the log, and the anchor as it was written last."""
    path = log.with_name("audit.json")
    anchor = path.read_bytes()
    audit.close()
    path.write_bytes(anchor)


def test_a_power_cut_takes_lines_but_no_trust(log: Path, keys: Path) -> None:
    """The anchor is never ahead of what the disk has; lines behind it are counted, and are no false alarm."""
    audit = opened(log, keys)
    audit.sync()
    whole, anchor = log.read_bytes(), log.with_name("audit.json").read_bytes()
    for number in range(3):
        audit.add(RUN, Ready(attempt=number), b"x" * 10, {}, repeated=False)
    assert log.with_name("audit.json").read_bytes() == anchor
    running = verify(log, is_signed)  # of a node that goes on meanwhile
    assert running.lines == 10
    assert "lines 8 to 10 are behind audit.json" in "".join(running.unknown)
    killed(audit, log)
    assert sent(log, keys) == audit.sent(RUN) == 90
    assert verify(log, is_signed).lines == 10
    log.write_bytes(whole)  # the power was cut before the disk had the lines
    log.with_name("audit.json").write_bytes(anchor)
    assert verify(log, is_signed).lines == 7
    assert sent(log, keys) == 60
    assert verify(log, is_signed).lines == 7


def test_a_node_that_is_killed_before_it_saved_anything(tmp_path: Path, keys: Path) -> None:
    log = tmp_path / "audit.jsonl"
    audit = opened(log, keys)
    audit.add(RUN, Ready(attempt=1), b"x" * 10, {}, repeated=False)
    killed(audit, log)
    assert sent(log, keys) == 10
    assert verify(log, is_signed).lines == 2


def test_behind_a_gap_lines_count_on_top_of_what_the_anchor_has(log: Path, keys: Path) -> None:
    log.unlink()
    audit = opened(log, keys)
    audit.add(RUN, Ready(attempt=1), b"y" * 5, {}, repeated=False)
    killed(audit, log)
    assert sent(log, keys) == audit.sent(RUN) == 65


@pytest.mark.parametrize("anchor", [b"", b"{", b"[]", b"{}"])
def test_an_anchor_that_cannot_be_read_is_as_one_that_is_gone(anchor: bytes, log: Path, keys: Path) -> None:
    log.with_name("audit.json").write_bytes(anchor)
    assert sent(log, keys) == 60
    assert json.loads(log.read_text().splitlines()[-1])["facts"]["reason"] == "audit.json cannot be read"
    with pytest.raises(RunError, match="lines before it are missing"):
        verify(log, is_signed)
    log.unlink()
    log.with_name("audit.json").write_bytes(anchor)
    with pytest.raises(RunError, match=r"audit\.json cannot be read"):
        opened(log, keys)


def unsigned(log: Path, count: int, *, certificate: str | None = None) -> None:
    """Add lines without a signature whose chain holds, and make the anchor anew."""
    made = log.read_bytes().splitlines() if log.exists() else []
    for number in range(count):
        before = hashlib.sha256(made[-1]).hexdigest() if made else "0" * 64
        what, facts = (
            ("key", {"certificate": certificate}) if number == 0 and certificate is not None else ("ready", {})
        )
        line = {"time": "", "run": RUN, "what": what, "facts": facts, "bytes": 0, "repeated": False, "before": before}
        line["digest"] = NOTHING
        made.append(json.dumps(line).encode())
    log.write_bytes(b"".join(one + b"\n" for one in made))
    anchor = {"node": "ant", "lines": len(made), "head": hashlib.sha256(made[-1]).hexdigest(), "sent": {}}
    log.with_name("audit.json").write_text(sealed(anchor))


def test_no_line_switches_signatures_off(log: Path, keys: Path) -> None:
    unsigned(log, 3, certificate="")
    with pytest.raises(RunError, match="line 8 is not signed, though lines before it are"):
        verify(log, is_signed)
    with pytest.raises(RunError, match="line 8 is not signed"):
        verify(log)
    with pytest.raises(RunError, match="is signed"):
        Audit(log, "ant")


def test_who_named_an_authority_takes_no_log_without_signatures(tmp_path: Path, keys: Path) -> None:
    log = tmp_path / "audit.jsonl"
    unsigned(log, 3, certificate="")
    assert verify(log, is_signed).lines == 3
    asked = ["audit", str(log), "--authority", str(keys / "ca.crt")]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2
    assert "is not signed" in refused.output
    Audit(log, "ant", signer(keys, "ant")).close()  # an earlier version's log, which this one goes on with
    found = CliRunner().invoke(app, asked)
    assert (found.exit_code, "lines 1 to 3 have no signature" in found.output) == (0, True), found.output


def test_a_log_that_another_node_of_the_authority_made_is_not_this_ones(tmp_path: Path, keys: Path) -> None:
    for name in ("ant", "bee"):  # bee's key signs a log in ant's name
        audit = Audit(tmp_path / name / "audit.jsonl", "ant", signer(keys, name))
        audit.add(RUN, Ready(attempt=1), b"", {}, repeated=False)
        audit.close()
    asked = ["--authority", str(keys / "ca.crt")]
    good = CliRunner().invoke(app, ["audit", str(tmp_path / "ant/audit.jsonl"), *asked])
    assert "log of node 'ant': 2 lines, signed" in good.output
    forged = CliRunner().invoke(app, ["audit", str(tmp_path / "bee/audit.jsonl"), *asked])
    assert forged.exit_code == 2
    assert "of several nodes: ant, bee" in forged.output
    (tmp_path / "bee/audit.json").unlink()
    assert "log of node 'bee': " in CliRunner().invoke(app, ["audit", str(tmp_path / "bee/audit.jsonl"), *asked]).output


@pytest.mark.parametrize("number", range(1, 5))
def test_a_line_without_a_digest_is_named(number: int, tmp_path: Path, keys: Path) -> None:
    """Whoever has the key too may not leave it out: of a certificate, a message, a large one's own line, a message."""
    log, mine = tmp_path / "audit.jsonl", signer(keys, "ant")
    audit = Audit(log, "ant", mine)
    audit.add(RUN, Ready(attempt=1), b"x" * CHUNK, {}, repeated=False)
    large = audit.add(RUN, Reply(attempt=1, number=1), Digested(Pieces([b"x" * (CHUNK + 1)])), {}, repeated=False)
    audit.add_digest(RUN, large, "0" * 64)
    audit.close()
    whole = log.read_text().splitlines()
    lines = [
        json.dumps(json.loads(text) | {"digest": None}) if n == number else text for n, text in enumerate(whole, 1)
    ]
    log.write_text(chained(lines, mine.sign))
    log.with_name("audit.json").unlink()
    if number == large:  # as it was written
        assert not any("digests of what" in text for text in verify(log, is_signed).unknown)
        return
    with pytest.raises(RunError, match=f"line {number} has no digest"):
        verify(log, is_signed)
