#!/usr/bin/env python3
"""Read what Lighterman hands over, be it one message or a pack, and print the id and the SHA-256 of each message.

Replace process(). Nothing else is needed than Python's standard library.
"""

import base64
import hashlib
import json
import os
import sys


def tasks():
    """Yield id and payload, in bytes, of each message."""
    path = os.environ.get("KEDA_TASK_DATA_FILE")
    if path is None:
        payload = os.environb[b"KEDA_TASK_DATA"]
        if os.environ.get("KEDA_TASK_DATA_ENCODING") == "base64":
            payload = base64.b64decode(payload, validate=True)
        yield os.environ["LIGHTERMAN_MESSAGE_ID"], payload
    elif is_pack():
        with open(path, "rb") as lines:
            for line in lines:
                task = json.loads(line)
                if "data_base64" in task:
                    yield task["id"], base64.b64decode(task["data_base64"], validate=True)
                else:
                    yield task["id"], task["data"].encode()
    else:
        with open(path, "rb") as file:
            yield os.environ["LIGHTERMAN_MESSAGE_ID"], file.read()


def is_pack():
    return os.path.basename(os.environ.get("KEDA_TASK_DATA_FILE", "")) == "tasks.jsonl"


def process(task_id, payload):
    """Do the work of one message. What it raises is a failed attempt."""
    if payload == b"fail":  # so that you can see what comes of it
        raise ValueError("it asks for it")
    print(task_id, hashlib.sha256(payload).hexdigest(), flush=True)


def main():
    failed = []
    for task_id, payload in tasks():
        try:
            process(task_id, payload)
        except Exception as err:  # whatever it is, the other messages do not fail with this one
            print(f"message {task_id} failed: {err}", file=sys.stderr)
            failed.append(task_id)
    if not failed:
        return 0
    report = json.dumps({"failed": failed})
    if not is_pack() or len(report) > 4096:
        return 1  # all that there was counts as failed
    # As the last thing: with exit status 0, what is not named here is completed.
    with open(os.environ.get("TERMINATION_LOG", "/dev/termination-log"), "w", encoding="utf-8") as log:
        log.write(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
