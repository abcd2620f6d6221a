#!/bin/sh
# A coordinator and four nodes as processes of their own on this machine, with keys and TLS: `make federation`.
#
#   ROUNDS   how many rounds (default 20)
#   PORT     where the coordinator listens (default 8443)
#   FOLDER   where everything goes (default runs/federation); a second call goes on with it

set -eu
cd -- "$(dirname -- "$0")/.."
folder=${FOLDER:-runs/federation} port=${PORT:-8443}
interfuse() { .venv/bin/python -m interfuse.cli "$@"; }

.venv/bin/python examples/federation/prepare.py "$folder" "$port"
interfuse keys "$folder/keys" --nodes ant,bee,cat,dog
sed "s/^rounds = .*/rounds = ${ROUNDS:-20}/" examples/federation/recipe.toml >"$folder/recipe.toml"

nodes=
# whatever happens, nobody is left behind
trap 'for node in $nodes; do kill "$node" 2>/dev/null || true; done' EXIT INT TERM
for name in ant bee cat dog; do
    .venv/bin/python -m interfuse.cli node "$folder/$name/vendor.toml" --quiet --patience 60 &
    nodes="$nodes $!"
done
interfuse coordinate "$folder/recipe.toml" --nodes 4 --listen "127.0.0.1:$port" --keys "$folder/keys/coordinator" --out "$folder/run"
for node in $nodes; do wait "$node"; done
nodes=
