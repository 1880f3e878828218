"""Wrong data in recipes, with the lines that must be printed: sources, formats, tokenizers."""

from bad_folder import VOCABULARY
from bad_recipes import Case

OPT = {"model_type": "opt", "vocab_size": VOCABULARY, "hidden_size": 16, "ffn_dim": 16, "num_attention_heads": 2}

DATA_CASES = [
    Case(
        "documents that share segments",
        ["--data.pack", "true", "--compute.cuda_graphs", "always", "--data.retrieval", "{keys: 8, values: 4}"],
        [
            "data.pack: not with data.retrieval, whose documents fill whole segments: set it to false",
            "compute.cuda_graphs is always, but with data.pack each segment has an attention mask of its own",
        ],
    ),
    Case(
        "a model that cannot keep documents in a row apart",
        ["--data.pack", "true", "--model.source", str(OPT)],
        ["data.pack: opt does not keep documents in one row apart: set data.pack to false"],
    ),
    Case(
        "recall loss on text",
        ["--memory.interface", "adapted", "--memory.recall_loss", "0.1"],
        ["memory.recall_loss is 0.1, but documents do not say which memory answers: only data.retrieval does"],
    ),
    Case("empty data", ["--data.train.source", "empty.txt"], ["data.train: empty.txt holds no documents"]),
    Case("unreadable data", ["--data.train.source", "binary.txt"], ["data.train: cannot read binary.txt as text"]),
    Case("absent data", ["--data.train.source", "no.txt"], ["data.train: 'no.txt' is neither a file nor a folder"]),
    Case(
        "kind of data",
        ["--data.train.source", "data.doc"],
        ["data.train: data.doc: cannot read files with suffix '.doc'"],
    ),
    Case("text field", ["--data.train.text_field", "txt"], ["no column 'txt'; it has: text; did you mean 'text'?"]),
    Case("columns of a format", ["--data.train.format", "completion"], ["has no column 'prompt'; it has: text"]),
    Case(
        "keys of other formats",
        ["--data.train.prompt_weight", "0.5", "--data.validation", "{source: text.txt, chat_template: a}"],
        [
            "data.train: fields {} and prompt_weight 0.5 are not for format text",
            "data.validation: chat_template is for format messages, not text: leave it out",
        ],
    ),
    Case(
        "fields of a format",
        ["--data.train", "{source: text.txt, format: completion, fields: {answer: text}}"],
        ["data.train: fields has answer, but format completion only has prompt, completion"],
    ),
    Case(
        "one field for two columns",
        ["--data.train", "{source: text.txt, format: completion, fields: {prompt: a, completion: a}}"],
        ["names one column for several of prompt, completion"],
    ),
    Case(
        "chat template",
        ["--data.train", "{source: text.txt, format: messages, fields: {messages: text}, chat_template: no.jinja}"],
        ["data.train: chat_template: no.jinja cannot be read (No such file or directory)"],
    ),
    Case(
        "no chat template",
        ["--data.train", "{source: text.txt, format: messages, fields: {messages: text}}"],
        ["data.train: format messages: the tokenizer has no chat template; set chat_template to a file with one"],
    ),
    Case("no data", ["--data.train", "null"], ["data.train: missing (or data.retrieval, to generate documents)"]),
    Case("two sources", ["--data.retrieval.kind", "keys"], ["data.train, data.retrieval: a run trains on one of them"]),
    Case(
        "generated data",
        [
            *("--data.train", "null", "--data.retrieval.keys", "80", "--training.bptt_depth", "1"),
            *("--evaluation.retrieval_segments", "[8, 40]"),
        ],
        [
            "training.bptt_depth: documents of 1 segment are too short: with a question and its",
            "evaluation.retrieval_segments: evaluation documents of 40 segments name 40 different things, but only 20",
            "data.retrieval: a segment of 16 tokens is too short: with this tokenizer an answer, a fact and a question",
        ],
    ),
    Case(
        "range of generated data",
        ["--data.retrieval", "{kind: key, keys: 5000, values: 1, held_out: 1}"],
        ["'keys', 'passkey' or 'overwritten'", "keys: must be at most 4096", "must be at least 2", "must be less than"],
    ),
    Case(
        "held-out data",
        ["--data.validation.source", "no.txt"],
        ["data.validation: 'no.txt' is neither a file nor a folder"],
    ),
    Case(
        "vocabulary",
        ["--model.source.vocab_size", "299"],
        ["model.tokenizer: the tokenizer's ids go up to 299, but the model's vocabulary has 299 ids"],
    ),
    Case("no tokenizer", ["--model.tokenizer", "null"], ["model.tokenizer: missing"]),
    Case(
        "absent tokenizer",
        ["--model.tokenizer", "./no"],
        ["model.tokenizer: tokenizer './no' is neither a file, a folder nor a possible name on the hub"],
    ),
    Case("name of a file", ["--data.train.name", "x"], ["data.train: name 'x' is for data sets of the hub only"]),
    Case("no weight", ["--data.train", "[{source: text.txt, weight: 0}]"], ["data.train: all weights are 0"]),
    Case("no sources", ["--data.train", "[]"], ["data.train: must name a source"]),
    Case("weight that is no number", ["--data.train.weight", "true"], ["data.train.weight: must be a number"]),
    Case(
        "weights in a list that are no numbers",
        ["--data.train", "[{source: text.txt, weight: true}]"],
        ["data.train.weight: must be a number"],
    ),
    Case("weight of held-out documents", ["--data.validation", "{source: text.txt, weight: 2}"], ["leave weight out"]),
    Case(
        "slip in a list of sources",
        ["--data.train", "[{source: text.txt}, {sorce: text.txt}]"],
        ["data.train.1.source: missing", "data.train.1.sorce: unknown key; did you mean data.train.source?"],
    ),
    Case(
        "wrong sources in a list",
        ["--data.train", "[{source: no.txt}, {source: text.txt}, {source: empty.txt}]"],
        ["data.train.0: 'no.txt' is neither a file nor a folder", "data.train.2: empty.txt holds no documents"],
    ),
    Case("empty separator", ["--data.train.separator", "''"], ["data.train: separator '' matches every line"]),
    Case("cache is a file", ["--data.cache_dir", "data.doc"], ["data.doc"]),
]
