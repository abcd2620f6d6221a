"""All benchmarks, one after the other, with the same arguments; then all targets in one table.

One that fails does not keep the others from running. ``--resume`` leaves out those whose results are there already.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence

import common
import exchange
import fedavg
import fedproto
import fixed
import small
import start
from common import Target

SECTIONS: dict[str, Callable[[Sequence[str]], int]] = {
    "fedavg": fedavg.main, "fedproto": fedproto.main, "small": small.main, "fixed": fixed.main,
    "exchange": exchange.main, "start": start.main,
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run them. Returns 1 where one failed, or its contenders did not train the same."""
    resume = {"action": "store_true", "help": "leave out benchmarks whose results are in the folder"}
    given = common.arguments(__doc__ or "", argv, resume=resume)
    rest = [argument for argument in argv if argument != "--resume"]
    failed, targets = [], []
    for name, run in SECTIONS.items():
        results = given.out / f"{name}.json"
        if not (given.resume and results.exists()):
            results.unlink(missing_ok=True)
            try:
                if run(rest):
                    failed.append(name)
            except (Exception, SystemExit):
                traceback.print_exc()
                failed.append(name)
        if results.exists():
            for target in json.loads(results.read_text(encoding="utf-8"))["targets"]:
                del target["verdict"]
                targets.append(Target(**target))
    title = "Targets, smoke: the figures mean nothing" if given.smoke else "Targets"
    text = f"# {title}\n\n{common.verdicts(targets, given.smoke)}\n"
    print(text)
    (given.out / "targets.md").write_text(text, encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
