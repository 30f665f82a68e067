import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM = pathlib.Path(__file__).with_name("task_processor.py")


def run(*arguments, task=None, results=None):
    """Run the program as a container would, with nothing else in its environment."""
    env = {"PATH": os.environ["PATH"]}
    if task is not None:
        env["KEDA_TASK_DATA"] = task
    if results is not None:
        env["RESULTS_DIR"] = str(results)
    return subprocess.run(
        [sys.executable, "-B", PROGRAM, *arguments], env=env, capture_output=True, encoding="utf-8", check=False, timeout=30
    )


def task(operation, value, **more):
    return json.dumps({"id": "t-1", "operation": operation, "input": value, **more})


class Operations(unittest.TestCase):
    def test_outputs(self):
        for operation, value, want in [
            ("sum", [1, 2, 3.5], 6.5),
            ("sum", [], 0),
            ("word-count", "to be or  not", 4),
            ("reverse", "Überfuhr", "rhufrebÜ"),
            ("sha256", "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            ("echo", {"nested": [None, True]}, {"nested": [None, True]}),
            ("echo", "a b 'c' \"d\" $(HOME) `id` $HOME \\ \n é", "a b 'c' \"d\" $(HOME) `id` $HOME \\ \n é"),
        ]:
            with self.subTest(operation=operation, value=value):
                done = run(task=task(operation, value))
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                want_line = {"id": "t-1", "operation": operation, "input": value, "output": want}
                self.assertEqual(json.loads(done.stdout), want_line)
                self.assertEqual(done.stdout.count("\n"), 1)


class Ways(unittest.TestCase):
    def test_argument(self):
        done = run("--process-event", task("sum", [1, 2]))
        self.assertEqual(json.loads(done.stdout)["output"], 3)

    def test_argument_goes_before_environment(self):
        done = run("--process-event", task("sum", [1, 2]), task=task("sum", [5]))
        self.assertEqual(json.loads(done.stdout)["output"], 3)

    def test_quoted_in_a_shell(self):
        # As in cronjob-argument.yaml: what is in double quotes is never taken for shell words.
        value = "spaces,  'single' and \"double\" quotes, $(touch pwned), `touch pwned`; * \\"
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                ["bash", "-c", f'"{sys.executable}" -B "{PROGRAM}" --process-event "$KEDA_TASK_DATA"'],
                env={"PATH": os.environ["PATH"], "KEDA_TASK_DATA": task("echo", value)},
                cwd=folder, capture_output=True, encoding="utf-8", check=True, timeout=30,
            )
            self.assertEqual(json.loads(done.stdout)["output"], value)
            self.assertEqual(os.listdir(folder), [])

    def test_results(self):
        with tempfile.TemporaryDirectory() as folder:
            results = pathlib.Path(folder, "not", "there", "yet")
            done = run(task=task("sum", [1, 2]), results=results)
            self.assertEqual([path.name for path in results.iterdir()], ["t-1.json"])
            self.assertEqual(json.loads((results / "t-1.json").read_text(encoding="utf-8")), json.loads(done.stdout))


class BadTasks(unittest.TestCase):
    def test_refused(self):
        for payload, complaint in [
            (None, "there is no task"),
            ("", "not JSON"),
            ("{", "not JSON"),
            ("[]", "must be a JSON object"),
            ("{}", "lacks id, operation, input"),
            ('{"id": "t-1", "input": []}', "lacks operation"),
            (task("sum", "1"), "list of numbers"),
            (task("sum", [True]), "list of numbers"),
            (task("word-count", 3), "must be a string"),
            (task("eval", "1"), "must be one of"),
            (task(["sum"], [1]), "must be one of"),
            (task("sum", [1], id="../../etc/passwd"), "id must be"),
            (task("sum", [1], id=7), "id must be"),
        ]:
            with self.subTest(payload=payload), tempfile.TemporaryDirectory() as folder:
                done = run(task=payload, results=folder)
                self.assertEqual(done.returncode, 2)
                self.assertEqual(done.stdout, "")
                self.assertIn(complaint, done.stderr)
                self.assertEqual(os.listdir(folder), [])


if __name__ == "__main__":
    unittest.main()
