#!/usr/bin/env python3
"""Process one task: a JSON object such as {"id": "t-1", "operation": "sum", "input": [1, 2, 3]}.

The task comes from the environment variable KEDA_TASK_DATA, or from the argument of --process-event. The result is one line of
JSON on standard output. With RESULTS_DIR set, it is also written to a file there, named after the task.

The exit status is what Lighterman goes by: 0 completes the message; anything else counts as a failed attempt.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import sys
import tempfile

ENVIRONMENT_VARIABLE = "KEDA_TASK_DATA"

# A task's id becomes the name of a file, so it must not lead anywhere else.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class BadTask(Exception):
    """The task cannot be processed, however often it is tried."""


def numbers(value):
    if not isinstance(value, list) or any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in value):
        raise BadTask("input must be a list of numbers")
    return value


def text(value):
    if not isinstance(value, str):
        raise BadTask("input must be a string")
    return value


OPERATIONS = {
    "echo": lambda value: value,
    "reverse": lambda value: text(value)[::-1],
    "sha256": lambda value: hashlib.sha256(text(value).encode()).hexdigest(),
    "sum": lambda value: sum(numbers(value)),
    "word-count": lambda value: len(text(value).split()),
}


def process(payload):
    """Return the result of the task that payload describes."""
    try:
        task = json.loads(payload)
    except json.JSONDecodeError as err:
        raise BadTask(f"the task is not JSON: {err}") from err
    if not isinstance(task, dict):
        raise BadTask("the task must be a JSON object")
    missing = [key for key in ("id", "operation", "input") if key not in task]
    if missing:
        raise BadTask(f"the task lacks {', '.join(missing)}")
    if not isinstance(task["id"], str) or not ID.fullmatch(task["id"]):
        raise BadTask("id must be a string of letters, digits, dots, underscores and hyphens")
    if task["operation"] not in list(OPERATIONS):
        raise BadTask(f"operation must be one of {', '.join(OPERATIONS)}")
    output = OPERATIONS[task["operation"]](task["input"])
    return {"id": task["id"], "operation": task["operation"], "input": task["input"], "output": output}


def save(result, folder):
    """Write the result to a file of its own, as a whole or not at all."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(result, file)
        os.replace(name, folder / f"{result['id']}.json")
    except BaseException:
        os.unlink(name)
        raise


def main(arguments=None):
    parser = argparse.ArgumentParser(description=f"Process one task, from {ENVIRONMENT_VARIABLE} unless it is given here.")
    parser.add_argument("--process-event", metavar="TASK", help="the task, as JSON")
    payload = parser.parse_args(arguments).process_event
    if payload is None:
        payload = os.environ.get(ENVIRONMENT_VARIABLE)
    try:
        if payload is None:
            raise BadTask(f"there is no task: set {ENVIRONMENT_VARIABLE}, or use --process-event")
        result = process(payload)
    except BadTask as err:
        print(f"task_processor: {err}", file=sys.stderr)
        return 2
    if folder := os.environ.get("RESULTS_DIR"):
        save(result, folder)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
