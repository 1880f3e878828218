"""Make the node that HMT_DS_ODD names differ: its clock is 30 s ahead, and its transformers seems to be older.

Python imports this file at start-up from PYTHONPATH.
"""

import importlib.metadata
import os
import socket
import time

if os.environ.get("HMT_DS_ODD") == socket.gethostname():
    right_time, right_version = time.time, importlib.metadata.version
    time.time = lambda: right_time() + 30
    importlib.metadata.version = lambda name: "4.0.0" if name == "transformers" else right_version(name)
