"""`python -m` forked from a process that has imported TensorFlow: a third of the time of a new interpreter.

A test of what a start imports, or of the interpreter's own options, needs a real one.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

# A start that these do not cover takes its own time; one that is in them must set nothing up when it is imported.
PRELOAD = ["resnet", "tensorflow", "hydra", "hydra._internal.hydra", "mlflow", "matplotlib.pyplot", "rich.progress"]
PRELOAD += ["sklearn.datasets", "resnet.training.loop"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(PRELOAD)


def child(module, words, cwd, environment, before, files):
    """In the new process: the statements of `before`, then `python -m module words` if there is a module."""
    os.setsid()
    for number, path in zip((1, 2), files, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [module or "-c", *words]
    try:
        exec(before, {"__name__": "before"})
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()


class Process:
    """What is used of subprocess.Popen, its output in two files, or in one if they are the same."""

    def __init__(self, module, words, cwd, environment, before, files):
        self.files, self.args = [Path(path) for path in files], [module, *words]
        arguments = (
            module,
            [str(word) for word in words],
            str(cwd),
            environment,
            before,
            [str(path) for path in files],
        )
        for path in self.files:
            path.write_text("")
        self.process = FORKS.Process(target=child, args=arguments)
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self):
        return self.process.exitcode

    @property
    def stdout(self):
        return self.files[0].read_text()

    @property
    def stderr(self):
        return self.files[1].read_text()

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=240):
        """The exit status."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"{self.args} has not ended within {timeout} s:\n{self.stdout}\n{self.stderr}")
        return self.process.exitcode

    def finish(self, timeout=240):
        """The process, ended."""
        self.wait(timeout)
        return self

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.process.kill()
        self.process.join()
