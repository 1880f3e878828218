"""Well-known data sets: a small file in the schema of each, its rows as documents, and what a wrong file gets."""

import json

import datasets
import pytest
from pydantic import ValidationError

from hmt_ds.config.data_section import Source
from hmt_ds.data import DataError
from hmt_ds.data.named import CONVERTERS
from hmt_ds.data.settings import NAMED
from hmt_ds.data.sources import load_documents
from hmt_ds.preflight.source_tokens import source_keys

WIKITEXT = [
    "",
    " = Robert Boulter = \n",
    "",
    " He is an actor . \n",
    " = = Career = = \n",
    " In 2000 . \n",
    " = Plain maskray = \n",
]
PUBMEDQA = {
    "pubid": 1,
    "question": "Do mitochondria matter?",
    "context": {"contexts": ["Leaves have cells.", "They die."], "labels": ["A", "B"], "meshes": ["Plants"]},
    "long_answer": "They seem to.",
    "final_decision": "yes",
}
MUSIQUE = {
    "id": "2hop__1",
    "paragraphs": [
        {"idx": 0, "title": "Green", "paragraph_text": "An album.", "is_supporting": True},
        {"idx": 1, "title": "Steve", "paragraph_text": "A singer.", "is_supporting": False},
    ],
    "question": "Who sings Green?",
    "answer": "Steve",
    "answer_aliases": [],
    "answerable": True,
}
QMSUM = {
    "topic_list": [{"topic": "Budget", "relevant_text_span": [["0", "1"]]}],
    "general_query_list": [{"query": "Summarize it.", "answer": "They met."}],
    "specific_query_list": [{"query": "What does it cost?", "answer": "Ten.", "relevant_text_span": [["0", "1"]]}],
    "meeting_transcripts": [{"speaker": "Manager", "content": "Hello."}, {"speaker": "Designer", "content": "Ten."}],
}
STORY = {"id": "a", "kind": "gutenberg", "text": "Once upon a time.", "summary": {"text": "A tale."}}
NARRATIVEQA = [
    {
        "document": STORY | {"id": story},
        "question": {"text": f"{word}?", "tokens": [word]},
        "answers": [{"text": answer, "tokens": [answer]}, {"text": "other", "tokens": ["other"]}],
    }
    for story, word, answer in (("a", "Who", "She"), ("a", "Where", "There"), ("b", "When", "Then"))
]


def qasper_answer(spans=(), free="", yes_no=None, unanswerable=False) -> dict:
    found = {"unanswerable": unanswerable, "extractive_spans": list(spans), "yes_no": yes_no, "free_form_answer": free}
    return {"answer": [found | {"evidence": ["x"], "highlighted_evidence": ["x"]}], "annotation_id": ["1"]}


QASPER = {
    "id": "1909.00694",
    "title": "On events",
    "abstract": "We study.",
    "full_text": {"section_name": ["Introduction", None], "paragraphs": [["One.", "Two."], ["Three."]]},
    "qas": {
        "question": ["a?", "b?", "c?", "d?"],
        "answers": [
            qasper_answer(free="words"),
            qasper_answer(spans=["x", "y"]),
            qasper_answer(yes_no=False),
            qasper_answer(unanswerable=True),
        ],
    },
}
LONGBENCH = {
    "input": "Who?",
    "context": "A text.",
    "answers": ["Me", "I"],
    "length": 2,
    "dataset": "qasper",
    "_id": "1",
}
CHATQA2 = {
    "document": "A long text.",
    "messages": [{"role": "user", "content": "Who?"}],
    "answers": ["Me"],
    "ground_truth_ctx": None,
}
BABILONG = {"input": "Mary went to the garden.", "question": "Where is Mary?", "target": "garden"}


def asked(context: str, *pairs: tuple[str, str]) -> dict:
    return {"context": context, "input": [one for one, _ in pairs], "answers": [answer for _, answer in pairs]}


CASES = {
    "wikitext-103": (
        [{"text": line} for line in WIKITEXT],
        [{"text": "".join(WIKITEXT[:6])}, {"text": WIKITEXT[6]}],
    ),
    "pg19": (
        [{"short_book_title": "A", "publication_date": 1850, "url": "u", "text": "A novel."}],
        [{"text": "A novel."}],
    ),
    "redpajama-v2": (
        [{"raw_content": "A page.", "doc_id": "1", "meta": "{}", "quality_signals": "{}"}],
        [{"text": "A page."}],
    ),
    "pubmedqa-long": (
        [PUBMEDQA],
        [asked("Leaves have cells.\nThey die.", ("Do mitochondria matter?", "They seem to."))],
    ),
    "pubmedqa-short": ([PUBMEDQA], [asked("Leaves have cells.\nThey die.", ("Do mitochondria matter?", "yes"))]),
    "musique": ([MUSIQUE], [asked("Green\nAn album.\n\nSteve\nA singer.", ("Who sings Green?", "Steve"))]),
    "qmsum": (
        [QMSUM],
        [asked("Manager: Hello.\nDesigner: Ten.", ("Summarize it.", "They met."), ("What does it cost?", "Ten."))],
    ),
    "narrativeqa": (
        NARRATIVEQA,
        [
            asked("Once upon a time.", ("Who?", "She"), ("Where?", "There")),
            asked("Once upon a time.", ("When?", "Then")),
        ],
    ),
    "qasper": (
        [QASPER],
        [
            asked(
                "On events\n\nWe study.\n\nIntroduction\nOne.\nTwo.\n\nThree.",
                *(("a?", "words"), ("b?", "x, y"), ("c?", "no"), ("d?", "unanswerable")),
            )
        ],
    ),
    "longbench": ([LONGBENCH], [asked("A text.", ("Who?", "Me"))]),
    "chatqa2-long-sft": (
        [CHATQA2],
        [
            {
                "messages": [
                    {"role": "system", "content": "A long text."},
                    {"role": "user", "content": "Who?"},
                    {"role": "assistant", "content": "Me"},
                ]
            }
        ],
    ),
    "babilong": ([BABILONG], [asked("Mary went to the garden.", ("Where is Mary?", "garden"))]),
}


def write(folder, rows: list[dict]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def read(source: str, name: str) -> list[dict]:
    return list(load_documents(**source_keys(Source(source=source, dataset=name))))


def test_every_data_set_is_tried():
    assert CASES.keys() == NAMED.keys() == CONVERTERS.keys()


@pytest.mark.parametrize("name", CASES)
def test_rows_become_documents(name, tmp_path):
    rows, documents = CASES[name]
    file = write(tmp_path, rows)
    first, second = (load_documents(**source_keys(Source(source=file, dataset=name))) for _ in range(2))
    assert list(first) == list(second) == documents
    assert first._fingerprint == second._fingerprint  # so that their tokens are found again


@pytest.mark.parametrize("name", CASES)
def test_a_missing_column_is_named(name, tmp_path):
    rows, _ = CASES[name]
    missing = NAMED[name].columns[-1]
    file = write(tmp_path, [{key: value for key, value in row.items() if key != missing} | {"x": 1} for row in rows])
    with pytest.raises(DataError, match=f"no column '{missing}'"):
        read(file, name)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        (
            "musique",
            [MUSIQUE, MUSIQUE | {"paragraphs": None}],
            r"^\S+\.jsonl, line 2: it does not have the columns of musique",
        ),
        (
            "longbench",
            [LONGBENCH | {"answers": []}],
            r"^\S+\.jsonl, line 1: it does not have the columns of longbench .*answers must be a list",
        ),
        ("longbench", [LONGBENCH | {"answers": "xyz"}], "answers must be a list of at least one text, not 'xyz'"),
        ("qasper", [QASPER | {"qas": {"question": [], "answers": []}}], "a document needs at least one question"),
    ],
)
def test_a_row_of_another_kind_is_named(name, rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, rows), name)


@pytest.mark.parametrize("key", ["format", "fields", "text_field", "separator"])
def test_keys_that_the_data_set_implies_are_refused(key):
    values = {"format": "questions", "fields": {"input": "x"}, "text_field": "body", "separator": "^x"}
    with pytest.raises(
        ValidationError, match="dataset qasper sets format, fields, text_field and separator: leave these"
    ):
        Source.model_validate({"source": "x", "dataset": "qasper", key: values[key]})


def test_answers_of_questions_are_weighted_and_texts_have_no_weights():
    assert Source(source="x", dataset="qasper", prompt_weight=0.5).row_format == "questions"
    with pytest.raises(ValidationError, match="prompt_weight"):
        Source(source="x", dataset="pg19", prompt_weight=0.5)
    assert Source(source="x", dataset="chatqa2-long-sft", chat_template="t.jinja").row_format == "messages"


def test_an_answer_that_many_rows_lack_first(tmp_path, monkeypatch):
    """The kinds of columns are those of the format, not those of the first 1,000 rows."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"input": "text", "question": "who?", "target": None}] * 1001
    last = read(write(tmp_path, [*rows, rows[0] | {"target": "he"}]), "babilong")[-1]
    assert last == {"context": "text", "input": ["who?"], "answers": ["he"]}
