# shellcheck shell=bash
# Functions and environment shared by all launch scripts. `cd` to the project and source this file.
# VENV=/path/to/.venv selects a virtual environment other than the project's.

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 2; }

case ${1:-} in # arguments of the script that sources this file
    -h | --help) sed -n '/^[^#]/q; /^$/q; /^# /!{/^#$/!d}; s/^# \{0,1\}//p' "$0" && exit ;; # the comment at its top
    '') fail "no recipe given; see --help" ;;
esac

again=("$PWD/launch/$(basename "$0")" "$@") given_port=${MASTER_PORT:-} # for `start_again`

if [ -n "${HMT_DS_CONTAINER:-}" ]; then # which has its own Python; the extensions are built for it
    TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$PWD/.container_cache/extensions}
    # torch.compile's kernels, which torch would keep in the container's /tmp
    export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$PWD/.container_cache/inductor}
else
    VENV=$(realpath -s "${VENV:-.venv}")
    [ -x "$VENV/bin/python" ] || fail "$(hostname): no Python in $VENV: run bash launch/quickstart.sh once, or set VENV"
    export PATH="$VENV/bin:$PATH" # with its own ninja: another one would rebuild DeepSpeed's extensions
fi

# Folder of DeepSpeed's compiled extensions. A killed build leaves a lock file that every later build waits for, forever.
# A launch holds a shared lock on the folder through descriptor 8; whoever gets the exclusive lock is alone in it, so any
# lock file there is stale.
if [ -z "${TORCH_EXTENSIONS_DIR:-}" ]; then
    TORCH_EXTENSIONS_DIR=$VENV/torch_extensions
    [ -w "$VENV" ] || TORCH_EXTENSIONS_DIR=~/.cache/hmt_ds_extensions
fi
export TORCH_EXTENSIONS_DIR
mkdir -p "$TORCH_EXTENSIONS_DIR"
exec 8>>"$TORCH_EXTENSIONS_DIR/.users"
if flock -n 8; then rm -f "$TORCH_EXTENSIONS_DIR"/*/lock; fi
flock -s 8 || true # not every file system supports locks

export NCCL_DEBUG=${NCCL_DEBUG:-WARN} # print the reason when NCCL fails

# srun ignores the job's value unless this is set.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

# Print the names of variables that ranks on other machines need: ssh and mpirun forward none by themselves.
passed_on() { compgen -e | grep -E '^(PATH|LD_LIBRARY_PATH|PYTHONPATH|CUDA_HOME|TORCH(INDUCTOR)?_.*|TRITON_.*|NCCL_.*|GLOO_.*|UCX_.*'\
'|OMP_.*|DS_.*|HF_.*|WANDB_.*|HMT_DS_.*|MALLOC_.*|TOKENIZERS_.*|PYTORCH_.*|MASTER_(ADDR|PORT))$'; }

# Write them to a file for the deepspeed launcher, which reads plain NAME=value lines and does not quote values. It puts
# them into the arguments of pdsh and mpirun, which everyone on the machines can see: the ranks read secrets from a file.
write_deepspeed_env() {
    local name
    unset "${!MLFLOW_@}" # the launcher would forward them by itself, passwords too
    export HMT_DS_PRIVATE_FILE=${1%/*}/secrets
    (umask 077 && : >"$1" && : >"$HMT_DS_PRIVATE_FILE")
    chmod 600 "$1" "$HMT_DS_PRIVATE_FILE" # those of an earlier start of the same job
    for name in $(passed_on); do
        if [ -z "${!name}" ]; then continue
        elif [[ $name =~ _(TOKEN|KEY|SECRET|PASSWORD|ALERT) ]]; then printf '%s=%s\0' "$name" "${!name}" >>"$HMT_DS_PRIVATE_FILE"
        elif [[ ${!name} =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then printf '%s=%s\n' "$name" "${!name}"
        else say "warning: ranks will not see $name: the deepspeed launcher cannot forward spaces or quotes"; fi
    done >"$1"
    export DS_ENV_FILE=$1
}

# run_launcher COMMAND ...: run a launcher and exit with rank 0's exit code. The first USR1, TERM, HUP or Ctrl-C stops the run
# through the script's function `tell_ranks USR1 LAUNCHER`; the second calls `tell_ranks KILL LAUNCHER`. If the ranks fail
# without such a signal, restart up to RESTARTS times.
run_launcher() {
    local code=0 launcher number=USR1
    set -m # run the launcher in its own process group: Ctrl-C must not reach it
    "$@" </dev/null 8>&- &
    launcher=$!
    trap 'say "stopping ($number)"; tell_ranks $number "$launcher"; number=KILL' USR1 TERM INT
    trap 'tell_ranks USR1 "$launcher"' HUP # may come twice; nothing can be printed
    while kill -0 $launcher 2>/dev/null; do wait $launcher && code=0 || code=$?; done
    rank_0_code $code || code=$?
    case $code in 0 | 2 | 75) ;; *) if [ $number = USR1 ]; then start_again $code; fi ;; esac
    exit $code
}

# start_again CODE: run the whole script again, including the machine checks.
start_again() {
    if [ "${RESTARTS:-0}" -lt 1 ]; then return; fi
    say "the ranks ended with exit code $1; restarting from the newest checkpoint"
    export RESTARTS=$((RESTARTS - 1))
    if [ -z "$given_port" ]; then unset MASTER_PORT; fi
    exec bash "${again[@]}" --checkpoint.resume auto
}

# rank_0_code CODE: return rank 0's exit code. Rank 0 writes it to a file because launchers lose it: deepspeed exits with
# 0 when a signal killed the ranks. If rank 0 wrote none, return the launcher's code CODE, or 1 if CODE is 0.
rank_0_code() {
    local code=$1
    if [ -s "$HMT_DS_EXIT_CODE_FILE" ]; then
        code=$(cat "$HMT_DS_EXIT_CODE_FILE")
    elif [ "$code" = 0 ]; then
        say "error: the launcher exited with 0, but rank 0 did not finish: see its last lines above" && code=1
    fi
    rm -rf "$work"
    return "$code"
}

# make_work FOLDER: create a folder in it for the files of this launch; it must be visible from all machines.
make_work() {
    work=$(realpath "$1")/.launch.${SLURM_JOB_ID:-$(hostname).$$}
    mkdir -p "$work"
    export HMT_DS_EXIT_CODE_FILE=$work/exit_code
    rm -f "$HMT_DS_EXIT_CODE_FILE" # from an earlier start of the same job
}

# requeue_unless_ended CODE: requeue a Slurm job after its ranks ended, except on 0 (finished) and 2 (an error that
# another start would hit again). 75 means that the ranks were told to stop and saved. scancel and the time limit end the
# script before this line.
requeue_unless_ended() {
    case $1 in 0 | 2) exit "$1" ;; esac
    requeue "the ranks ended with exit code $1"
}

# end_unless_started: handle a failed machine check in a Slurm job. At the first start the launch itself is wrong, so
# exit. At a later start a machine has changed, as after a node failure, so requeue and keep the run.
end_unless_started() {
    if [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then exit 2; fi
    requeue "a machine failed its checks"
}

requeue() {
    say "$1; requeueing the job"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # Slurm ends the script during this
    exit 1
}

# enter_container PATH ...: set `inside`, the words that put a command of srun into the image $HMT_DS_CONTAINER. It has the
# working folder, Hugging Face's cache and these paths, each at its own place.
enter_container() {
    local path mounts=
    export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface}
    for path in "$PWD" "$HF_HOME" "$@"; do
        [ -e "$path" ] || mkdir -p "$path"
        path=$(realpath -s "$path")
        mounts+=,$path:$path
    done
    case $HMT_DS_CONTAINER in
        *.sif) inside=(apptainer exec --nv --bind "${mounts#,}" --pwd "$PWD" "$HMT_DS_CONTAINER") ;;
        *) inside=(--container-image="$HMT_DS_CONTAINER" --container-mounts="${mounts#,}" --container-workdir="$PWD") ;;
    esac
}

# check_in_container GPUS: what `hmt_ds.launch.check slurm` does, where Slurm's commands are missing from the container. The
# first machine tries to reach the last one, all others the first.
check_in_container() {
    local gpus=$1 hosts reports look
    if [ "${DS_ACCELERATOR:-}" = cpu ]; then gpus=0; fi
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # shellcheck disable=SC2016 # expanded on each node
    look='to=$1 port=0; [ "$SLURM_NODEID" != 0 ] || { to=$2 port=$4; }; python -m hmt_ds.launch.machine "$to" "$3" $port'
    reports=$(srun --nodes="${#hosts[@]}" --ntasks="${#hosts[@]}" --ntasks-per-node=1 --label --wait=0 "${inside[@]}" \
        bash -c "$look" - "${hosts[0]}" "${hosts[-1]}" "$gpus" "${MASTER_PORT:-0}")
    srun --nodes=1 --ntasks=1 "${inside[@]}" python -m hmt_ds.launch.check reports "$1" "${hosts[@]}" <<<"$reports"
}
