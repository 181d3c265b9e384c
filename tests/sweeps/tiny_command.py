"""A command as cells run it: notes when it began and how it ended, in a file that all runs of a cell share.

python -m tiny_command --seconds=0.2 --code=0 --output_dir=FOLDER
"""

import json
import os
import pathlib
import signal
import sys
import time

values = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(values["output_dir"])
folder.mkdir(parents=True, exist_ok=True)


def note(what: str) -> None:
    """Adds a line, as a whole."""
    with (folder / "notes").open("a") as file:
        file.write(f"{what} {os.getpid()} {time.time()}\n")


if "deaf" in values:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
note("began")
time.sleep(float(values.get("seconds", 0)))
print(f"seed {values.get('seed')}", flush=True)
if code := int(values.get("code", 0)):
    sys.exit(code)
(folder / "results.json").write_text(json.dumps(values))
note("ended")
