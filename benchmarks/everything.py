"""All benchmarks, one after the other, with the same arguments."""

from __future__ import annotations

import sys

import exchange
import fedavg
import fedproto
import small
import start

if __name__ == "__main__":
    sys.exit(max([script.main() for script in (fedavg, fedproto, small, exchange, start)]))
