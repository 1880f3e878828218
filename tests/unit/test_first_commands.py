"""The commands before a run: errors without torch, `check`, `train --dry-run`, `init`, `doctor`, and what is next."""

import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hmt_ds import cli
from hmt_ds.config.load import load_recipe
from hmt_ds.launch import doctor, new_recipe, start

PROJECT = Path(__file__).resolve().parents[2]
QUICKSTART = PROJECT / "launch" / "recipes" / "quickstart.yaml"


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """Run a command in this process; return exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["hmt-ds", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, *capsys.readouterr()


def test_python_m():
    ran = subprocess.run([sys.executable, "-m", "hmt_ds", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("hmt-ds ")


@pytest.mark.parametrize(
    "words",
    [
        ["train", str(QUICKSTART), "--memory.segment_lenght", "3"],
        ["check", str(QUICKSTART), "--trainig.steps", "3"],
        ["plan", str(QUICKSTART), "--trainig.steps", "3"],
        ["train", "nowhere.yaml"],
        ["launch", "slurm", str(QUICKSTART), "--trainig.steps", "3"],
    ],
    ids=lambda words: " ".join(words[::2]),
)
def test_a_users_mistake_is_named_without_torch_and_within_a_second(words):
    code = f"""
import sys
sys.argv = ["hmt-ds", *{words!r}]
from hmt_ds.cli import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.returncode == 2 and ran.stdout.split() == ["False"] and ran.stderr.startswith("error: ")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_a_dry_run_starts_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(start, "run_ranks", lambda *_: pytest.fail("ranks were started"))
    monkeypatch.chdir(PROJECT)
    output = tmp_path / "run"
    words = (str(QUICKSTART), "--training.output", str(output))
    for command in (("check", *words), ("train", *words, "--dry-run")):
        code, out, err = run(monkeypatch, capsys, *command)
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == f"recipe       {QUICKSTART}: no problem found; nothing was started"
        assert "data         generated documents (data.retrieval)" in lines and "deepspeed    " in out
        assert lines[-1] == f"next         hmt-ds train {QUICKSTART} --training.output {output}" and not output.exists()
    code, out, _ = run(monkeypatch, capsys, "train", *words, "--dry-run", "--ranks", "2")
    assert code == 0 and out.splitlines()[-1].endswith(f"--training.output {output} --ranks 2")
    code, _, err = run(monkeypatch, capsys, "train", *words, "--dry-run", "--model.tokenizer", "nowhere")
    assert code == 2 and err.startswith("error: model.tokenizer: ")


def test_check_accepts_the_recipe_of_a_run(monkeypatch, capsys, tmp_path):
    """Its folder holds a run already, which train --dry-run refuses."""
    monkeypatch.chdir(PROJECT)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    words = (str(QUICKSTART), "--training.output", str(tmp_path))
    assert run(monkeypatch, capsys, "check", *words)[0] == 0
    code, _, err = run(monkeypatch, capsys, "train", *words, "--dry-run")
    assert code == 2 and "training.output" in err


@pytest.fixture
def texts(tmp_path):
    """A folder of text files."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text("A short text. " * 500)
    return folder


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {"model.source": "HuggingFaceTB/SmolLM2-135M", "training.batch_size": 4, "model.precision": "fp32"}),
        ("--train lora --steps 8", {"model.train": "lora", "training.steps": 8, "checkpoint.every": 2}),
        ("--gpus 8xH100 --model meta-llama/Llama-2-7b-hf", {"model.precision": "bf16", "optimizer.lr": 2e-5}),
        ("--gpus 2xA100-40GB --model Qwen/Qwen2.5-0.5B", {"optimizer.lr": 3e-4, "deepspeed": "ds_configs/zero2.json"}),
        ("--gpus 1xA10 --model unknown/model", {"model.source": "unknown/model", "deepspeed": "ds_configs/zero2.json"}),
    ],
)
def test_init_writes_a_valid_recipe(monkeypatch, capsys, tmp_path, texts, words, expected):
    file = tmp_path / "new" / "mine.yaml"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = run(monkeypatch, capsys, "init", str(file), "--data", str(texts), *words.split())
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"recipe       {file}" and out.splitlines()[-1] == f"next         hmt-ds check {file}"
    values = load_recipe(file).model_dump()
    for key, wanted in expected.items():
        found = values
        for part in key.split("."):
            found = found[part]
        assert found == wanted, key
    assert values["training"]["output"] == "runs/mine" and values["data"]["train"]["source"] == str(texts)
    assert values["data"]["validation"] is None and file.read_text().count(" # ") > 10


@pytest.mark.parametrize("source", ["s3://bucket/data/*.jsonl", "PATTERN"])
def test_init_takes_addresses_and_patterns(monkeypatch, capsys, tmp_path, texts, source):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = source.replace("PATTERN", f"{texts.parent}/*")
    code, _, err = run(monkeypatch, capsys, "init", str(tmp_path / "mine.yaml"), "--data", source)
    assert (code, err) == (0, "")
    assert load_recipe(tmp_path / "mine.yaml").model_dump()["data"]["train"]["source"] == source


def test_init_lays_out_what_one_gpu_cannot_hold(monkeypatch, capsys, tmp_path, texts):
    words = ("--data", str(texts), "--model", "Llama-2-70b-hf")
    code, _, _ = run(monkeypatch, capsys, "init", str(tmp_path / "a.yaml"), *words, "--gpus", "64xH100")
    recipe = load_recipe(tmp_path / "a.yaml")
    assert code == 0 and (recipe.pipeline.stages > 1 or "zero3" in recipe.deepspeed)
    code, _, err = run(monkeypatch, capsys, "init", str(tmp_path / "b.yaml"), *words, "--gpus", "1xA10")
    assert code == 2 and "no layout of Llama-2-70b-hf fits 1 x A10 24 GB on 1 node: take more GPUs" in err
    assert not (tmp_path / "b.yaml").exists()


def test_init_errors(monkeypatch, capsys, tmp_path):
    there = tmp_path / "there.yaml"
    there.write_text("")
    code, _, err = run(monkeypatch, capsys, "init", str(there), "--data", str(tmp_path))
    assert (code, err) == (2, f"error: {there} exists and is not overwritten: name a new file\n")
    code, _, err = run(monkeypatch, capsys, "init", str(tmp_path / "a.yaml"))
    assert (code, err) == (2, "error: --data: missing, give --data PATH with a file or folder of training documents\n")
    code, _, err = run(monkeypatch, capsys, "init", "a.yaml", "--data", "no", "--train", "all", "--steps", "0")
    assert code == 2 and sorted(err.splitlines()) == [
        "error: --data: no: no such file or folder: name documents that exist",
        "error: --steps: must be at least 1, got '0'",
        "error: --train: must be 'whole', 'lora' or 'frozen', got 'all'",
    ]


def test_init_asks_in_a_terminal(monkeypatch, capsys, tmp_path, texts):
    """A wrong answer is asked for again, an empty one is the default, and what was given is not asked."""
    answers = {"backbone": ["gpt2"], "training": ["nowhere", "", str(texts)], "held-out": [""], "train the": ["lora"]}
    asked = []

    def answer(question: str, default: str) -> str:
        asked.append(question.split(",")[0])
        return next(answers[key] for key in answers if question.startswith(key)).pop(0) or default

    monkeypatch.setattr(new_recipe.Prompt, "ask", answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    code, out, _ = run(monkeypatch, capsys, "init", str(tmp_path / "a.yaml"), "--steps", "7")
    recipe = load_recipe(tmp_path / "a.yaml")
    assert code == 0 and "--data: nowhere: no such file or folder" in out and len(asked) == 6
    found = (recipe.model.source, recipe.model.train, recipe.training.steps, recipe.data.train.source)
    assert found == ("gpt2", "lora", 7, str(texts))


def test_doctor(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "DISK_BYTES", 2**22)
    code, out, err = run(monkeypatch, capsys, "doctor", str(tmp_path))
    names = [line.split()[0] for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert names == [
        "machine",
        "python",
        "packages",
        "torch",
        "GPUs",
        "deepspeed",
        "launchers",
        "network",
        "disk",
        "next",
    ]
    assert "GB free, writes " in out and not list(tmp_path.iterdir())
    code, _, err = run(monkeypatch, capsys, "doctor", str(tmp_path / "nowhere"))
    assert (
        code == 2
        and err == f"error: {tmp_path / 'nowhere'}: no such folder: name the folder that runs will be written to\n"
    )


def test_doctor_finds_what_is_wrong(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "missing_packages", lambda: ["deepspeed"])
    code, out, _ = run(monkeypatch, capsys, "doctor", str(tmp_path))
    assert code == 2 and "packages     error: deepspeed not installed in " in out and "torch " not in out
    assert out.splitlines()[-1] == "next         mend the errors above"

    def broken():
        raise OSError("libcuda\nis gone")
        yield

    assert list(doctor.guarded(broken)) == [doctor.Finding("broken", "OSError: libcuda is gone", "error")]
    monkeypatch.setattr(doctor, "DISK_BYTES", 2**22)
    monkeypatch.setattr(doctor, "SLOW_DISK", 1e15)
    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    found = list(doctor.disk(tmp_path))
    assert [one.level for one in found] == ["note", "note"] and "checkpoint.background true" in found[0].advice
    assert "s between the file system and this machine" in found[1].text


def test_without_a_network_the_hub_is_not_asked_again_and_again(monkeypatch):
    def fails(*_):
        raise socket.gaierror

    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(start.socket, "getaddrinfo", fails)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    start.go_offline_without_hub()
    assert "HF_HUB_OFFLINE" not in start.os.environ
    monkeypatch.delenv("HTTPS_PROXY")
    start.go_offline_without_hub()
    assert start.os.environ.pop("HF_HUB_OFFLINE") == "1"


def test_what_is_next_after_a_run():
    assert start.what_next("train", 0, "a.yaml", "runs/a") == "hmt-ds report runs/a, or hmt-ds convert runs/a FOLDER"
    assert start.what_next("evaluate", 0, "runs/a", "x") == "hmt-ds compare BASELINE runs/a, or hmt-ds report runs/a"
    assert start.what_next("train", 75, "a.yaml", "x") is None


def test_every_command_is_in_the_readme():
    """The table of commands in the README names each, with the one that follows."""
    parser = cli.command_line()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    text = (PROJECT / "README.md").read_text()
    assert [name for name in commands if f"hmt-ds {name}" not in text] == []


def test_the_template_has_valid_yaml_for_odd_names(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "a: b, {c} #"
    folder.mkdir()
    (folder / "1.txt").write_text("text")
    code, _, _ = run(monkeypatch, capsys, "init", str(tmp_path / "a.yaml"), "--data", str(folder))
    assert code == 0
    assert yaml.safe_load((tmp_path / "a.yaml").read_text())["data"]["train"]["source"] == str(folder)
