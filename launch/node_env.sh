# shellcheck shell=bash
# What all launch scripts share. `cd` to the project and source this; it says what it does not find.
# VENV=/path/to/.venv names another virtual environment than the project's.

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 2; }

case ${1:-} in # the words of the script that sources this
    -h | --help) sed -n '/^[^#]/q; /^$/q; /^# /!{/^#$/!d}; s/^# \{0,1\}//p' "$0" && exit ;; # the comment at its top
    '') fail "name a recipe; --help says more" ;;
esac

again=("$PWD/launch/$(basename "$0")" "$@") given_port=${MASTER_PORT:-} # for `start_again`

VENV=$(realpath -s "${VENV:-.venv}")
[ -x "$VENV/bin/python" ] || fail "$(hostname): no Python in $VENV: run bash launch/quickstart.sh once, or set VENV"
export PATH="$VENV/bin:$PATH" # with its own ninja: another one would build DeepSpeed's parts anew

# What DeepSpeed compiles. A killed build leaves a lock that all later ones wait for without end: whoever has this
# folder alone knows that its locks are stale. A launch has it as long as descriptor 8 is open.
if [ -z "${TORCH_EXTENSIONS_DIR:-}" ]; then
    TORCH_EXTENSIONS_DIR=$VENV/torch_extensions
    [ -w "$VENV" ] || TORCH_EXTENSIONS_DIR=~/.cache/hmt_ds_extensions
fi
export TORCH_EXTENSIONS_DIR
mkdir -p "$TORCH_EXTENSIONS_DIR"
exec 8>>"$TORCH_EXTENSIONS_DIR/.users"
if flock -n 8; then rm -f "$TORCH_EXTENSIONS_DIR"/*/lock; fi
flock -s 8 || true # (not every file system has locks)

export NCCL_DEBUG=${NCCL_DEBUG:-WARN} # says why, where NCCL fails

# srun takes no notice of the job's own.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

# Names of the variables that ranks on other machines need. ssh and mpirun take none along by themselves.
passed_on() { compgen -e | grep -E '^(PATH|LD_LIBRARY_PATH|PYTHONPATH|CUDA_HOME|TORCH_.*|NCCL_.*|GLOO_.*|UCX_.*|OMP_.*'\
'|DS_.*|HF_.*|WANDB_.*|HMT_DS_.*|MALLOC_.*|TOKENIZERS_.*|PYTORCH_.*|MASTER_(ADDR|PORT))$'; }

# The same as a file for the deepspeed launcher, which reads bare NAME=value lines and quotes badly.
write_deepspeed_env() {
    local name
    for name in $(passed_on); do
        if [ -z "${!name}" ]; then continue
        elif [[ ${!name} =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then printf '%s=%s\n' "$name" "${!name}"
        else say "warning: ranks will not see $name: blanks and quotes do not pass through deepspeed"; fi
    done >"$1"
    export DS_ENV_FILE=$1
}

# run_launcher COMMAND ...: start it, and exit as rank 0 did. The first USR1, TERM or Ctrl-C stops the run: the script's
# function `tell_ranks USR1 LAUNCHER` is called; at the second one `tell_ranks KILL LAUNCHER`. Where the ranks have failed
# and nobody has stopped them, the script starts anew as often as RESTARTS says.
run_launcher() {
    local code=0 launcher number=USR1
    set -m # a process group of its own: Ctrl-C does not reach it
    "$@" </dev/null 8>&- &
    launcher=$!
    trap 'say "stopping ($number)"; tell_ranks $number "$launcher"; number=KILL' USR1 TERM INT
    while kill -0 $launcher 2>/dev/null; do wait $launcher && code=0 || code=$?; done
    rank_0_code $code || code=$?
    case $code in 0 | 2 | 75) ;; *) if [ $number = USR1 ]; then start_again $code; fi ;; esac
    exit $code
}

# start_again CODE: once more from the top, where the machines are asked again whether they are fit.
start_again() {
    if [ "${RESTARTS:-0}" -lt 1 ]; then return; fi
    say "the ranks ended with $1: they start anew, from the newest checkpoint"
    export RESTARTS=$((RESTARTS - 1))
    if [ -z "$given_port" ]; then unset MASTER_PORT; fi
    exec bash "${again[@]}" --checkpoint.resume auto
}

# rank_0_code CODE: returns how rank 0 has ended. It leaves its exit code in a file, for launchers lose them: deepspeed
# ends with 0 if a signal kills what it started. Where rank 0 did not come to that, the launcher's code counts, unless 0.
rank_0_code() {
    local code=$1
    if [ -s "$HMT_DS_EXIT_CODE_FILE" ]; then
        code=$(cat "$HMT_DS_EXIT_CODE_FILE")
    elif [ "$code" = 0 ]; then
        say "error: the launcher ended with 0, but rank 0 did not come to its end" && code=1
    fi
    rm -rf "$work"
    return "$code"
}

# make_work FOLDER: a place in it for the few files of a launch, where all machines see them.
make_work() {
    work=$(realpath "$1")/.launch.${SLURM_JOB_ID:-$(hostname).$$}
    mkdir -p "$work"
    export HMT_DS_EXIT_CODE_FILE=$work/exit_code
    rm -f "$HMT_DS_EXIT_CODE_FILE" # of an earlier start of the same job
}

# requeue_unless_ended CODE: what a Slurm job does when its ranks have ended. 0: the run is at its end. 2: the recipe is
# wrong, and would be again. All else deserves another start; 75 says that the ranks were told to stop, and have saved.
# scancel and the time limit end the script before it comes here.
requeue_unless_ended() {
    case $1 in 0 | 2) exit "$1" ;; esac
    requeue "the ranks ended with $1"
}

# end_unless_started: what a Slurm job does when a machine is not fit to start. At the first start something is wrong with
# the launch. Later it is a machine that has changed, as one does that comes back from a failure, and the run is not lost.
end_unless_started() {
    if [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then exit 2; fi
    requeue "a machine is not fit"
}

requeue() {
    say "$1: the job goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # in which Slurm ends the script
    exit 1
}
