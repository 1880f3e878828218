# shellcheck shell=bash
# Makes .venv in the project's root, or completes it; `source` this there and call setup_env.
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf) decide where packages come from.

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
        echo "$wanted" >"$stamp" # last: an interrupted set-up is gone through again
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
        fail "there is no $python. On Debian: apt-get install python3 python3-venv"
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        fail "$("$python" -V) is too old, Python 3.11 is needed. Name another one: PYTHON=python3.11 bash $0"
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        fail "this Python cannot make virtual environments. On Debian: apt-get install python3-venv"
    fi
    say "Making a virtual environment in .venv with $("$python" -V)"
    # What does not even start is the rest of another Python's: away with it.
    .venv/bin/python -c '' 2>/dev/null || fresh=(--clear)
    "$python" -m venv "${fresh[@]}" .venv
}

install_packages() {
    local pins=(-c launch/constraints.txt)
    say "Installing PyTorch ($TORCH)"
    .venv/bin/python -m pip install -q "$TORCH"
    say "Installing DeepSpeed, Transformers and the rest (launch/constraints.txt); a few minutes"
    .venv/bin/python -m pip install -q "${pins[@]}" setuptools wheel
    # DeepSpeed comes as source. Without build isolation it is built beside the torch above, not beside a second one
    # that pip fetches for it; as for CPUs, since on a GPU without CUDA's compiler its set-up fails. Nothing is
    # compiled now, so the result is the same. Torch is named again so that nothing exchanges it.
    DS_ACCELERATOR=cpu .venv/bin/python -m pip install -q "${pins[@]}" --no-build-isolation "$TORCH" -e '.[dev,mpi]'
    .venv/bin/python -m pip check
}

say() { printf '== %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
