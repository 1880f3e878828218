"""`hmt-ds generate` and `hmt-ds chat` of a converted folder: what they print, memory files, and wrong input."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from bad_folder import errors_in
from tiny import LLAMA
from tiny_folder import load_tiny, write_tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import hmt_ds
from hmt_ds import cli
from hmt_ds.generation.chat import Conversation
from hmt_ds.generation.model import load_model
from hmt_ds.generation.options import ChatOptions
from hmt_ds.generation.sampling import generation_settings
from hmt_ds.inference.segment_cache import SegmentCache

NOVEL = Path(hmt_ds.__file__).parent / "data/samples/persuasion.txt"
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}[assistant]{% endif %}"
NEW = 30


def write_tokenizer(folder: Path, template: str | None = None) -> None:
    """Write a byte-level tokenizer of the sample novel, with BOS in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train([str(NOVEL)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Converted folders with tokenizers, and texts; no test changes them."""
    root = tmp_path_factory.mktemp("generate")
    backbone = LLAMA | {"vocab_size": 400, "eos_token_id": 1, "bos_token_id": 0}
    adapted = {"interface": "adapted", "recalled_memories": 2}
    write_tokenizer(write_tiny(root / "hf", backbone, **adapted))
    write_tokenizer(write_tiny(root / "chat", backbone, **adapted), TEMPLATE)
    write_tokenizer(write_tiny(root / "longer", backbone, **adapted, segment_length=8))
    write_tokenizer(write_tiny(root / "other", backbone | {"initializer_range": 0.2}, **adapted))
    write_tiny(root / "no_tokenizer", backbone, **adapted)
    (root / "book.txt").write_text(NOVEL.read_text(encoding="utf-8")[2000:2400])
    (root / "empty.txt").write_text("\n")
    (root / "not_text.txt").write_bytes(b"\xff\xfe\xfa")
    (root / "questions.txt").write_text("Anne\n\nSir Walter Elliot, of Kellynch Hall\nBath\n")
    return root


@pytest.fixture
def run(folders, monkeypatch, capsys):
    """Run a command in the folder of the materials; returns its exit code, and what it printed."""
    monkeypatch.chdir(folders)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")

    def command(*words: str, typed: str = "") -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["hmt-ds", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    return command


def by_transformers(folder: Path, text: str, new: int = NEW) -> str:
    """The greedy continuation of one text by transformers' own call."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = load_tiny(folder, dtype=torch.float32)
    ids = tokenizer(text, return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=new, pad_token_id=1)[0, ids.shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True)


def test_document_and_prompt(folders, run):
    """Encoded in two parts, and otherwise as one text."""
    code, out, _ = run("generate", "hf", "--document", "book.txt", "--prompt", " Anne", "--max-new-tokens", str(NEW))
    expected = by_transformers(folders / "hf", (folders / "book.txt").read_text() + " Anne")
    assert code == 0 and out.strip() == expected.strip() and len(expected) > 20


def test_a_saved_memory_gives_the_same_text(folders, run, tmp_path):
    """From the file, from its folder again, behind several prompts of different lengths, and without a prompt."""
    length = ["--max-new-tokens", str(NEW)]
    book = str(tmp_path / "book.memory")
    code, out, _ = run("generate", "hf", "--document", "book.txt", "--save-memory", book)
    assert code == 0 and out.startswith(f"memory      {book} (")
    prompts = ["Anne", "Sir Walter Elliot, of Kellynch Hall", "Bath"]
    expected = [run("generate", "hf", "--document", "book.txt", "--prompt", p, *length)[1].strip() for p in prompts]
    assert [run("generate", "hf", "--memory", book, "--prompt", p, *length)[1].strip() for p in prompts] == expected
    assert len(set(expected)) == 3
    for batch in ("1", "2", "8"):
        _, out, _ = run("generate", "hf", "--memory", book, "--prompts", "questions.txt", "--batch", batch, *length)
        assert [part.partition("\n")[2].strip() for part in out.split("--- ")[1:]] == expected
    assert (
        run("generate", "hf", "--memory", book, *length)[1]
        == run("generate", "hf", "--document", "book.txt", *length)[1]
    )


def test_settings_of_transformers(run):
    """Sampling by a seed, beams, stop strings."""
    words = ["generate", "hf", "--prompt", "Anne was", "--max-new-tokens", str(NEW)]
    greedy = run(*words)[1]
    sampled = [run(*words, "--generation.temperature", "2.0", "--seed", seed)[1] for seed in ("1", "1", "2")]
    assert sampled[0] == sampled[1] != sampled[2] and greedy not in sampled
    assert run(*words, "--generation.num_beams", "3")[1].strip()
    stop = re.findall("[a-z]{2,}", greedy)[-1]
    stopped = run(*words, "--generation.stop_strings", json.dumps([stop]))[1].strip("\n")
    assert stopped.endswith(stop) and greedy.strip("\n").startswith(stopped)
    assert len(stopped) == greedy.strip("\n").index(stop) + len(stop)


BAD = [
    (["hf"], ["nothing to continue: give --prompt TEXT, --document FILE or --memory FILE"]),
    (["hf", "--prompt", "a", "--prompt", " "], ["--prompt: one of 2 prompts is blank"]),
    (["nowhere", "--prompt", "a"], ["nowhere: no such file or folder"]),
    (["nowhere", "--prompt", "a", "--generation.temprature", "1"], ["generation.temprature: unknown setting"]),
    (["no_tokenizer", "--prompt", "a"], ["no_tokenizer has no tokenizer", "--tokenizer FOLDER"]),
    (["hf", "--document", "none.txt", "--prompts", "none"], ["--document: none.txt is not", "--prompts: none is not"]),
    (["hf", "--document", "empty.txt"], ["--document: empty.txt is empty: name a file with text"]),
    (["hf", "--prompts", "empty.txt"], ["--prompts: empty.txt has no line with text"]),
    (["hf", "--document", "not_text.txt"], ["not_text.txt cannot be read as UTF-8 text"]),
    (["hf", "--memory", "book.txt"], ["book.txt is not a memory file"]),
    (
        ["hf", "--memory", "hf/model.safetensors"],
        ["hf/model.safetensors is not a memory file: name a file that --save-memory"],
    ),
    (["hf", "--prompt", "a", "--save-memory", "book.txt"], ["--save-memory: book.txt exists already"]),
    (["hf", "--prompt", "a", "--save-memory", "no/book"], ["--save-memory: the folder of no/book does not exist"]),
    (["hf", "--prompt", "a", "--save-memory", "new"], ["--save-memory: no document was read"]),
    (["hf", "--prompt", "a", "--max-new-tokens", "0"], ["--max-new-tokens: must be at least 1"]),
    (["hf", "--prompt", "a", "--generation.temprature", "1"], ["generation.temprature: unknown setting; did you mean"]),
    (["hf", "--prompt", "a", "--generation.top_k", "-1"], ["generation: `top_k` has to be a strictly positive"]),
    (
        ["hf", "--prompt", "a", "--memory.segment_length", "5"],
        ["--memory: unknown option; write a generation setting like"],
    ),
    (
        ["hf", "--document", "book.txt", "--save-memory", "new.memory", "--ranks", "2"],
        ["--ranks 2: memory files need one rank: leave --memory and --save-memory out"],
    ),
    (["hf", "--prompt", "a", "--tokenizer", "none"], ["cannot load a tokenizer from 'none'"]),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda words: "_".join(words).replace("/", ".")[:50])
def test_wrong_input(run, words, said, monkeypatch):
    """One line each, before anything is printed."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = run("generate", *words)
    assert code == 2 and out == "" and all(line in err for line in said), err
    assert len(errors_in(err)) <= len(said)


@pytest.mark.parametrize(
    ("folder", "words", "said"),
    [
        ("longer", [], "memory.segment_length: 6 there, 8 here"),
        ("other", [], "the model's weights: "),
        ("hf", ["--dtype", "bf16"], "the model's weights: "),
        ("hf", ["--tokenizer", "smaller"], "the tokenizer: 400 tokens, "),
    ],
)
def test_a_memory_of_another_model_is_refused(folders, run, tmp_path, folder, words, said):
    book = str(tmp_path / "book.memory")
    run("generate", "hf", "--document", "book.txt", "--save-memory", book)
    if not (folders / "smaller").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folders / "hf")
        tokenizer.train_new_from_iterator([NOVEL.read_text(encoding="utf-8")[:5000]], 300).save_pretrained(
            folders / "smaller"
        )
    code, out, err = run("generate", folder, "--memory", book, "--prompt", "a", *words)
    assert code == 2 and out == "" and said in err and "read the document with this one" in err
    assert len(errors_in(err)) == 1


def test_a_damaged_memory_is_refused(run, tmp_path):
    """Cut off, and with a tensor of another shape."""
    book = tmp_path / "book.memory"
    run("generate", "hf", "--document", "book.txt", "--save-memory", str(book))
    (tmp_path / "cut").write_bytes(book.read_bytes()[:-8])
    assert "is not a memory file, or is damaged" in run("generate", "hf", "--memory", str(tmp_path / "cut"))[2]


@pytest.mark.parametrize("folder", ["hf", "chat"])
def test_chat_is_one_conversation(folders, run, tmp_path, folder):
    """Each answer is the continuation of all text before it; what is saved goes on with it."""
    lines, short = ["Who is Anne?", "And where does she live, if not at Kellynch?"], 9
    code, out, err = run("chat", folder, "--max-new-tokens", str(short), typed="\n".join(lines))
    template = folder == "chat"
    assert code == 0 and ("no chat template" in err) is not template
    text, expected = "", []
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders / folder)
    model = load_tiny(folders / folder, dtype=torch.float32)
    ids: list[int] = []
    for line in lines:
        text = f"{'</s>' * bool(ids)}[user]{line}</s>[assistant]" if template else f"{line}\n"
        ids += tokenizer(text, add_special_tokens=not ids and not template).input_ids
        options = {"attention_mask": torch.ones(1, len(ids)), "max_new_tokens": short, "pad_token_id": 1}
        new = model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
        expected.append(tokenizer.decode(new, skip_special_tokens=True))
        ids += new
    assert out.split() == " ".join(expected).split() and len(set(expected)) == 2


def test_an_answer_that_ends_is_ended_once(folders, monkeypatch):
    """The end token that an answer wrote is not read again with the template's, whichever of the ends it is."""
    asked = load_model(folders / "chat", ChatOptions())
    settings = generation_settings(asked, ChatOptions(max_new_tokens=5), {})
    for ends in (1, [40, 1]):
        settings.eos_token_id = ends
        talk = Conversation(asked, settings, SegmentCache())
        read: list[list[int]] = []

        def answer(ids: torch.Tensor, read: list[list[int]] = read, **_: object) -> torch.Tensor:
            read.append(ids[0].tolist())
            return torch.cat([ids, torch.tensor([[50, 1]])], dim=1)

        monkeypatch.setattr(asked.model, "generate", answer)
        talk.say("Anne?")
        talk.say("Bath?")
        assert read[0].count(1) == 1 and read[1].count(1) == 2 and read[1][0] == 1
