"""HMT_DS_ALERT: a command and a webhook are told, and a receiver that fails or hangs does not end the run."""

import http.server
import json
import threading
import time

import pytest

from hmt_ds.reporting import alerts
from hmt_ds.reporting.history import History


@pytest.fixture
def webhook():
    """A server on this machine, and the list of what it was sent."""
    got: list[dict[str, object]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append(json.loads(body))
            self.send_response(500 if len(got) > 2 else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


def test_a_webhook_is_told(monkeypatch, tmp_path, caplog, webhook):
    address, got = webhook
    monkeypatch.setenv(alerts.VARIABLE, address)
    history = History(tmp_path)
    for kind in ("start", "checkpoint", "probe", "ranks", "evaluation"):
        history.write(kind, 1)
    history.write("warning", 12, text="loss spike: 9")
    history.write("stop", 13)
    assert sorted((one["kind"], one["step"]) for one in got) == [("stop", 13), ("warning", 12)]
    said = next(one for one in got if one["kind"] == "warning")
    assert said["text"].startswith(f"{tmp_path} on ") and said["text"].endswith(", step 12: warning: loss spike: 9")
    assert said["run"] == str(tmp_path) and not caplog.text
    history.write("end", 14)
    assert "the alert could not be sent (HTTPError)" in caplog.text and address not in caplog.text


def test_a_command_is_told(monkeypatch, tmp_path):
    file = tmp_path / "told"
    monkeypatch.setenv(alerts.VARIABLE, f'echo "$HMT_DS_TEXT" >> {file}; echo "$HMT_DS_EVENT" >> {file}')
    History(tmp_path).write("failed", 3, text='a "quoted" $HOME; reason')
    text, event = file.read_text().splitlines()
    assert text.endswith('step 3: failed: a "quoted" $HOME; reason') and json.loads(event)["kind"] == "failed"
    assert file.stat().st_size and not History(tmp_path, shown=False).write("end", 4)
    assert len(file.read_text().splitlines()) == 2  # of rank 0 alone


@pytest.mark.parametrize(("target", "error"), [("exit 3", "CalledProcessError"), ("http://127.0.0.1:1", "URLError")])
def test_a_receiver_that_fails(monkeypatch, tmp_path, caplog, target, error):
    monkeypatch.setenv(alerts.VARIABLE, target)
    History(tmp_path).write("end", 3)
    assert caplog.text.count(f"the alert could not be sent ({error})") == 1


def test_a_receiver_that_hangs_does_not_hold_up_training(monkeypatch, tmp_path):
    monkeypatch.setenv(alerts.VARIABLE, "sleep 30")
    monkeypatch.setattr(alerts, "SECONDS", 1.0)
    started = time.monotonic()
    history = History(tmp_path)
    history.write("warning", 3, text="a")
    assert time.monotonic() - started < 0.5
    history.write("end", 4)
    assert time.monotonic() - started < 5


def test_nobody_is_told_without_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv(alerts.VARIABLE, raising=False)
    history = History(tmp_path)
    history.write("end", 3)
    assert not history.alerts.threads
