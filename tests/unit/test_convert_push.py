"""`hmt-ds convert --push` against a local server that speaks the hub's HTTP: create, preupload, LFS, commit."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tiny_folder import write_tiny

from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.convert import convert
from hmt_ds.conversion.convert_options import ConvertOptions


class Hub(ThreadingHTTPServer):
    """What was created and committed; `refuse` is a status that creating a repository gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.refuse = 0

    @property
    def address(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of an upload."""

    server: Hub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def answer(self, content: object, status: int = 200) -> None:
        """Send JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        """Take a large file."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[hashlib.sha256(body).hexdigest()] = body
        self.answer({})

    def do_POST(self) -> None:
        """Create a repository, or a step of an upload to it."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub, path = self.server, self.path.partition("?")[0]
        hub.tokens.add(self.headers.get("Authorization", ""))
        if path == "/api/repos/create":
            hub.created.append(json.loads(body))
            name = "somebody/model"
            self.answer({"url": f"{hub.address}/{name}", "error": "not yours"}, hub.refuse or 200)
        elif path == "/api/validate-yaml":  # the card's metadata
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            kinds = {True: "lfs", False: "regular"}
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": f, "uploadMode": kinds[f.endswith("safetensors")], "shouldIgnore": False} for f in files]
            self.answer({"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            put = lambda oid: {"upload": {"href": f"{hub.address}/put/{oid}"}}  # noqa: E731
            self.answer({"transfer": "basic", "objects": [one | {"actions": put(one["oid"])} for one in objects]})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.objects[value["oid"]]
            url = f"{hub.address}/somebody/model/commit/0"
            self.answer({"commitUrl": url, "commitOid": "0" * 40, "success": True})
        else:
            self.answer({"error": f"unexpected {path}"}, 404)

    def do_GET(self) -> None:
        """There is nothing there yet."""
        self.answer({"error": "Entry not found"}, 404)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    """Run the server; huggingface_hub talks to it with a token."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield server
    server.shutdown()
    server.server_close()


def test_all_files_arrive(hub, tmp_path):
    """In one private repository, with the user's token, byte for byte."""
    source, target = write_tiny(tmp_path / "source"), tmp_path / "hf"
    lines = convert(source, target, ConvertOptions(push="somebody/model"))
    assert lines[-1] == f"pushed to {hub.address}/somebody/model"
    (created,) = hub.created
    assert created["name"] == "model" and created["organization"] == "somebody" and created["visibility"] == "private"
    assert hub.tokens == {"Bearer hf_of_a_test"}
    assert hub.files == {file.name: file.read_bytes() for file in target.iterdir()}
    assert {"model.safetensors", "config.json", "modeling_hmt.py", "README.md"} <= hub.files.keys()


def test_what_the_hub_refuses(hub, tmp_path):
    """One line, and the folder is there."""
    source, target = write_tiny(tmp_path / "source"), tmp_path / "hf"
    hub.refuse = 403
    with pytest.raises(ConversionError, match=r"--push somebody/model: .*403.*; the folder is written") as error:
        convert(source, target, ConvertOptions(push="somebody/model"))
    assert "\n" not in str(error.value) and (target / "config.json").is_file() and not hub.files


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        ("somebody/model", None, "no token for the hub: run hf auth login or set HF_TOKEN"),
        ("model", "hf_of_a_test", "must be OWNER/NAME"),
        ("some body/model", "hf_of_a_test", "Repo id must use alphanumeric chars"),
    ],
)
def test_refused_before_anything_is_written(hub, tmp_path, monkeypatch, name, token, said):
    monkeypatch.setattr("hmt_ds.conversion.push.get_token", lambda: token)
    source: Path = write_tiny(tmp_path / "source")
    with pytest.raises(ConversionError, match=said):
        convert(source, tmp_path / "hf", ConvertOptions(push=name))
    assert not (tmp_path / "hf").exists() and not hub.created
