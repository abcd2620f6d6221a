#!/bin/sh
# Checks that a change left results as they were, bit for bit: the same short runs by COMMIT and by the working tree, on
# this machine, with the same environment. Ends with 1 where anything differs.
#
#   scripts/same_bits.sh COMMIT [METHOD ...] [--json FILE]
#
#   METHOD   only these methods of the table in same_bits.py
#   FILE     where to write what was found as JSON, relative to the root of the repository
#   PYTHON   the Python to use, instead of that of .venv

set -eu
unset CDPATH
cd -- "$(dirname -- "$0")/.."
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' scripts/same_bits.sh >&2; exit 2; }
commit=$1
shift

work=$(mktemp -d)
# whatever happens, no tree is left behind
trap 'git worktree remove --force "$work/tree" 2>/dev/null || true; rm -rf "$work"; git worktree prune' EXIT
trap 'exit 1' HUP INT TERM
git worktree add --quiet --detach "$work/tree" "$commit"
PYTHONPATH=src "${PYTHON:-.venv/bin/python}" scripts/same_bits.py "$work" "$@"
