"""Job scripts with `--container`: run with stand-ins for Slurm's commands and for Apptainer, on two "nodes"."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_launch_slurm import ask, recipe, scripts_in, shellcheck  # noqa: F401

PROJECT = Path(__file__).parents[2]
HOSTS = ("localhost", "127.0.0.1")
STAND_INS = {
    "sleep": "",
    "scontrol": f'case $1 in show) printf "%s\\n" {" ".join(HOSTS)} ;; *) echo "scontrol $*" >>"$SAID" ;; esac',
    # options end at the first other word; a labelled step has a task on each node
    "srun": """
echo "srun $*" >>"$SAID"
label=
while case $1 in --*) true ;; *) false ;; esac; do [ "$1" != --label ] || label=yes; shift; done
if [ -z "$label" ]; then exec "$@"; fi
for node in 0 1; do SLURM_NODEID=$node "$@" | sed "s/^/$node: /"; done
""",
    "apptainer": """
[ "$1 $2 $3 $5" = "exec --nv --bind --pwd" ] && [ -f "$7" ] || { echo "apptainer: $*" >&2; exit 9; }
cd "$6" && shift 7 && exec "$@"
""",
    "python": f"""
case " $* " in
*" hmt_ds.train "*)
    echo "rank at $MASTER_ADDR:$MASTER_PORT in $PYTHONPATH, kernels in $TORCHINDUCTOR_CACHE_DIR" >>"$SAID"
    echo "$CODE" >"$HMT_DS_EXIT_CODE_FILE"
    exit "$CODE" ;;
esac
exec {sys.executable} "$@"
""",
}


@pytest.fixture
def node(tmp_path_factory, monkeypatch) -> Path:
    """A folder of stand-ins on the PATH, of a node without a `.venv`; returns the file of what they said."""
    folder = tmp_path_factory.mktemp("node")
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    for name, value in {"DS_ACCELERATOR": "cpu", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_PORT", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SAID", str(folder / "said"))
    return folder / "said"


def run_job(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a job script as Slurm's batch step does."""
    return subprocess.run(
        ["bash", "-c", script], env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("image", ["a.sif", "hub#hmt/image:1"])
@pytest.mark.parametrize(("code", "ends"), [(0, 0), (2, 2), (75, 1)])
def test_a_job_in_a_container(monkeypatch, capsys, recipe, tmp_path, node, image, code, ends):  # noqa: F811
    """Every step runs inside, ranks get what the checks found, and the exit code comes out."""
    (tmp_path / "a.sif").touch()
    (tmp_path / "books").mkdir()
    words = (recipe, "--nodes", "2", "--gpus-per-node", "1", "--dry-run", "--container-mount", "books")
    status, printed, errors = ask(monkeypatch, capsys, *words, "--container", image)
    assert status == 0, errors
    ran = run_job(*scripts_in(printed), CODE=str(code))
    said = node.read_text().splitlines()
    assert ran.returncode == ends, ran.stderr
    assert [line for line in said if line.startswith("scontrol")] == ["scontrol requeue 7"] * (code == 75)
    (rank,) = [line for line in said if line.startswith("rank")]
    assert re.fullmatch(rf"rank at 127\.[\d.]+:\d+ in {PROJECT}, kernels in {tmp_path}/.container_cache/\w+", rank), (
        rank
    )
    places = [tmp_path, node.parent / "hub", tmp_path / "runs/my run", PROJECT, tmp_path / "books"]
    mounts = ",".join(f"{place}:{place}" for place in places)
    if image.endswith(".sif"):
        inside = f"apptainer exec --nv --bind {mounts} --pwd {tmp_path} {tmp_path}/a.sif "
    else:
        inside = f"--container-image={image} --container-mounts={mounts} --container-workdir={tmp_path} "
    steps = [line for line in said if line.startswith("srun")]
    assert len(steps) == 4 and all(inside in step for step in steps), steps


def test_a_node_that_fails_its_check(monkeypatch, capsys, recipe, node):  # noqa: F811
    """At the first start the launch is wrong; later a machine has changed, and the job is requeued."""
    words = (recipe, "--nodes", "2", "--gpus-per-node", "1", "--dry-run", "--container", "image")
    (script,) = scripts_in(ask(monkeypatch, capsys, *words)[1])
    ran = run_job(script, DS_ACCELERATOR="", CUDA_VISIBLE_DEVICES="")
    assert ran.returncode == 2 and all(f"{host}: 0 GPUs visible" in ran.stderr for host in HOSTS), ran.stderr
    ran = run_job(script, DS_ACCELERATOR="", CUDA_VISIBLE_DEVICES="", SLURM_RESTART_COUNT="1")
    assert ran.returncode == 1 and "scontrol requeue 7" in node.read_text() and "rank at" not in node.read_text()


def test_scripts_pass_shellcheck(monkeypatch, capsys, recipe):  # noqa: F811
    words = ("--dry-run", "--then", "evaluate", "--then", "convert --merge", "--container", "it's")
    shellcheck(ask(monkeypatch, capsys, recipe, *words)[1])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--container", "no.sif"], "--container: no.sif does not exist: correct the path"),
        (["--container", "x", "--container-mount", "no"], "--container-mount: no does not exist: correct the path"),
        (["--container-mount", "."], "--container-mount: only with --container: add it, or remove the mounts"),
    ],
)
def test_bad_options(monkeypatch, capsys, recipe, words, line):  # noqa: F811
    code, printed, errors = ask(monkeypatch, capsys, recipe, "--dry-run", *words)
    assert code == 2 and printed == "" and errors == [f"error: {line}"]


def test_the_image_copies_what_there_is():
    """The paths of the Dockerfile are those of the project."""
    text = (PROJECT / "launch/Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert "launch/setup_env.sh" in copied and all((PROJECT / path).is_file() for path in copied)
