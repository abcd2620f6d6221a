#!/bin/sh
# Makes .venv, or heals it, from pyproject.toml and constraints.txt. A second run changes nothing and needs no network.
#
#   PYTHON       the Python to use, instead of the first fitting one on PATH
#   TORCH        what to install as PyTorch, instead of the pinned version: a requirement, or the path of a wheel
#   TORCH_INDEX  the package index that has PyTorch, e.g. the address of PyTorch's own index of CPU builds

set -eu
unset CDPATH
cd -- "$(dirname -- "$0")/.."

oldest=11 newest=13  # minor versions of Python 3, as in pyproject.toml
python=.venv/bin/python
# The stamp is written last and holds all that the environment was made from, its folder first (a moved environment
# does not work). While it says 'installing' the environment is worth nothing: pip takes a half-written package for a
# whole one.
stamp=.venv/interfuse-stamp
# A user's own pip settings may ask for an install beside the environment.
PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0
export PIP_DISABLE_PIP_VERSION_CHECK PIP_USER

fail() {  # $1: what is wrong; $2: what to do
    printf 'error: %s\n%s\n' "$1" "$2" >&2
    exit 1
}

# Prints 'VERSION fits', or 'VERSION lacks MODULES', or 'VERSION unfit'; nothing where $1 does not run.
# Written for any Python, as any may come first on PATH.
probe() {
    "$1" -c "
import sys
lacking = []
for module in 'venv ensurepip ssl zlib bz2 lzma ctypes'.split():
    try:
        __import__(module)
    except ImportError:
        lacking.append(module)
fits = (3, $oldest) <= sys.version_info[:2] <= (3, $newest)
verdict = 'unfit' if not fits else 'lacks ' + ' '.join(lacking) if lacking else 'fits'
print('%d.%d.%d %s' % (sys.version_info[:3] + (verdict,)))
" 2>/dev/null || true
}

advice() {  # $1: a Python version, as 3.11.2; $2: the standard modules it lacks
    minor=$(printf '%s' "$1" | cut -d. -f1,2)
    case $2 in
        *venv* | *ensurepip*) printf 'on Debian and Ubuntu: apt install python%s-venv' "$minor" ;;
        *) printf 'it was built without them: install the libraries they need, then that Python again' ;;
    esac
}

# Sets $found to a Python that can make the environment, before anything is downloaded.
find_python() {
    found='' seen=''
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.11 python3.12 python3.13 python3 python
    fi
    for candidate in "$@"; do
        answer=$(probe "$candidate")
        version=${answer%% *} verdict=${answer#* }
        case $verdict in
            fits) found=$candidate && return ;;
            lacks*)
                modules=${verdict#lacks }
                line="  $candidate is Python $version without $modules ($(advice "$version" "$modules"))" ;;
            unfit) line="  $candidate is Python $version" ;;
            *) line="  $candidate: $(command -v "$candidate" >/dev/null && echo 'does not run' || echo 'not found')" ;;
        esac
        seen="$seen
$line"
    done
    fail "interfuse needs Python 3.$oldest to 3.$newest with the modules venv and ensurepip. Tried:$seen" \
        "Install one (on Debian and Ubuntu, for example: apt install python3.$oldest python3.$oldest-venv),
or say which to use: make PYTHON=/path/to/python"
}

version_of() {
    "$1" -I -c 'import platform; print(platform.python_version())' 2>/dev/null || true
}

wanted() {  # what the stamp says once the environment is complete
    pwd
    version_of "$python"
    cat pyproject.toml constraints.txt scripts/setup.sh
}

# Whether there is an environment that can be kept: complete or made by hand, it runs, and its Python is the right one.
keeps() {
    [ -x "$python" ] || return 1
    [ -e "$stamp" ] && [ "$(head -n 1 "$stamp")" != "$(pwd)" ] && return 1
    [ "$(probe "$python" | cut -d' ' -f2)" = fits ] || return 1
    "$python" -I -m pip --version >/dev/null 2>&1 || return 1
    [ -z "${PYTHON:-}" ] || [ "$(version_of "$python")" = "$(version_of "$PYTHON")" ]
}

install() {
    "$python" -I -m pip install "$@" || fail "pip could not install (its own message is above)" \
        "Run the same command again once that is mended; downloads so far are kept by pip."
}

if keeps && [ -e "$stamp" ] && [ "$(wanted)" = "$(cat "$stamp")" ]; then
    exit 0
fi
if [ -L .venv ]; then  # what it leads to may be another checkout's: neither to be changed nor to be replaced unasked
    fail ".venv is a link to $(readlink .venv), which was not made for this folder; nothing was changed" \
        "Remove the link (rm .venv) and run the same command again to make an environment here,
or go on with what it leads to, without make: PYTHONPATH=src .venv/bin/python -m interfuse.cli"
fi
if ! keeps; then
    find_python
    echo "making .venv with Python $(version_of "$found")"
    rm -rf .venv
    mkdir .venv
    echo installing >"$stamp"
    "$found" -I -m venv .venv || fail "$found could not make a virtual environment (its own message is above)" \
        "Say which Python to use instead: make PYTHON=/path/to/python"
fi
echo installing >"$stamp"

# PyTorch comes first: it may come from an index of its own, and its download is long enough to be watched.
# What was taken is a pin for the rest, which would otherwise replace it.
pins=.venv/interfuse-constraints.txt
grep -v '^torch==' constraints.txt >"$pins"
echo "installing PyTorch (the large one)"
set -- "${TORCH:-$(grep '^torch==' constraints.txt)}"
[ -z "${TORCH_INDEX:-}" ] || set -- "$@" --no-deps --index-url "$TORCH_INDEX"
install --constraint "$pins" "$@"
"$python" -I -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >>"$pins"
echo "installing interfuse and its tools (some minutes at most, without a word)"
install --quiet --constraint "$pins" hatchling
install --quiet --constraint "$pins" --no-build-isolation --editable '.[dev]'

wanted >"$stamp.new"
mv "$stamp.new" "$stamp"
echo "ready: .venv/bin/interfuse"
