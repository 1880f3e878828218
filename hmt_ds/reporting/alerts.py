"""Tell somebody what happens to a run: by a command or a webhook named in the environment variable HMT_DS_ALERT.

It is not a key of the recipe: a recipe may be another person's, and a webhook's address is a secret.
"""

import json
import logging
import os
import socket
import subprocess
import threading
import urllib.request
from pathlib import Path

logger = logging.getLogger(__name__)

VARIABLE = "HMT_DS_ALERT"
KINDS = ("warning", "rollback", "stop", "end", "failed")  # of the history's events
LAST = ("stop", "end", "failed")  # after which the process ends, so that it has to wait
SECONDS = 10.0  # for a webhook or a command


class Alerts:
    """Sends important events of a run (warnings, failures, its end) to the command or webhook in HMT_DS_ALERT.

    Each is sent in a thread, because a slow or missing receiver must not hold up training. Without the variable nothing
    is sent.

    Args:
        folder: folder of the run, named in each message.
    """

    def __init__(self, folder: Path):
        self.target, self.folder = os.environ.get(VARIABLE, "").strip(), folder
        self.threads: list[threading.Thread] = []

    def send(self, event: dict[str, object]) -> None:
        """Send an event of a run if its kind is ``warning``, ``rollback``, ``stop``, ``end`` or ``failed``.

        After the last three the process ends, so it waits up to 10 seconds for each message that is still being sent.

        Args:
            event: ``kind``, ``step``, ``time`` (seconds since 1970) and, of some kinds, ``text``.
        """
        if not self.target or event["kind"] not in KINDS:
            return
        said = f": {event['text']}" if event.get("text") else ""
        text = f"{self.folder} on {socket.gethostname()}, step {event['step']}: {event['kind']}{said}"
        message = {**event, "run": str(self.folder), "text": text}
        thread = threading.Thread(target=self.deliver, args=(message,), daemon=True)
        self.threads = [one for one in self.threads if one.is_alive()] + [thread]
        thread.start()
        if event["kind"] in LAST:
            for one in self.threads:
                one.join(SECONDS)

    def deliver(self, message: dict[str, object]) -> None:
        """Post an event as JSON to the webhook, or run the alert command with it; log a failure as a warning.

        The command finds the event's line for people in the variable HMT_DS_TEXT, and the whole event as JSON in
        HMT_DS_EVENT.

        Args:
            message: the event, with the run's folder (``run``) and a line for people (``text``).
        """
        try:
            body = json.dumps(message)
            if self.target.startswith(("http://", "https://")):
                headers = {"Content-Type": "application/json"}
                request = urllib.request.Request(self.target, body.encode(), headers)
                urllib.request.urlopen(request, timeout=SECONDS).close()
            else:
                variables = os.environ | {"HMT_DS_TEXT": str(message["text"]), "HMT_DS_EVENT": body}
                command = ["sh", "-c", self.target]
                subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, timeout=SECONDS, check=True)
        except Exception as error:  # a wrong address, a missing command, a server that says no: the run goes on
            logger.warning(
                "the alert could not be sent (%s): check the command or address in %s", type(error).__name__, VARIABLE
            )
