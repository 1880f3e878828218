# shellcheck shell=bash
# Create or complete .venv in the project's root: `source` this file there and call setup_env.
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf) select where packages come from.

TORCH=torch==2.13.0

setup_env() {
    local stamp=.venv/.hmt_ds_installed wanted
    # Versions, our own dependencies, how they are put in, and where: scripts in .venv hold its full path.
    wanted=$({ cat launch/constraints.txt setup.py launch/setup_env.sh; pwd; } | sha256sum)
    export PATH="$PWD/.venv/bin:$PATH" # ninja is found through it, when DeepSpeed compiles
    if is_set_up "$stamp" "$wanted"; then return; fi
    exec 9<launch/constraints.txt
    if command -v flock >/dev/null; then flock 9; fi # one set-up at a time
    if ! is_set_up "$stamp" "$wanted"; then
        make_venv
        install_packages
        echo "$wanted" >"$stamp" # last, so that an interrupted set-up is repeated
    fi
    exec 9<&-
}

is_set_up() {
    [ -x .venv/bin/python ] && [ "$(cat "$1" 2>/dev/null)" = "$2" ]
}

make_venv() {
    local python=${PYTHON:-python3} fresh=()
    if .venv/bin/python -m pip --version >/dev/null 2>&1; then return; fi
    if ! command -v "$python" >/dev/null; then
        fail "$python was not found. On Debian: apt-get install python3 python3-venv"
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        fail "$("$python" -V) is too old; Python 3.11 or newer is required. Select another one: PYTHON=python3.11 bash $0"
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        fail "this Python cannot create virtual environments. On Debian: apt-get install python3-venv"
    fi
    say "Creating a virtual environment in .venv with $("$python" -V)"
    # A .venv whose Python does not start belongs to a Python that is gone: clear it.
    .venv/bin/python -c '' 2>/dev/null || fresh=(--clear)
    "$python" -m venv "${fresh[@]}" .venv
}

install_packages() {
    local pins=(-c launch/constraints.txt)
    say "Installing PyTorch ($TORCH)"
    .venv/bin/python -m pip install -q "$TORCH"
    say "Installing DeepSpeed, Transformers and the other packages of launch/constraints.txt; this takes a few minutes"
    .venv/bin/python -m pip install -q "${pins[@]}" setuptools wheel
    # DeepSpeed is a source distribution. Without build isolation it is built against the torch installed above and not
    # against another one that pip would download. DS_ACCELERATOR=cpu: on a GPU machine without CUDA's compiler its
    # set-up fails; nothing is compiled at this point, so the result is the same. $TORCH is repeated to keep its version.
    DS_ACCELERATOR=cpu .venv/bin/python -m pip install -q "${pins[@]}" --no-build-isolation "$TORCH" -e '.[dev,mpi]'
    .venv/bin/python -m pip check
}

say() { printf '== %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
