"""A Slurm of one node in files, called as sbatch, squeue, scancel or scontrol: every call starts what can start.

In its folder, $FAKE_SLURM: log (every call), <number>/ of each job; and switches of the tests: `away` (no controller), `hold`
(nothing starts), `refuse` (sbatch's error), `most` (jobs that it takes).
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

home = Path(os.environ["FAKE_SLURM"])
name, words = Path(sys.argv[0]).name, sys.argv[1:]
options = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
rest = [word for word in words if not word.startswith("--")]


def jobs():
    return sorted((path for path in home.iterdir() if path.is_dir()), key=lambda path: int(path.name))


def state(job):
    return (job / "state").read_text()


def set_state(job, text):
    (job / "state.part").write_text(text)
    (job / "state.part").rename(job / "state")


def load(job):
    return json.loads((job / "job").read_text())


def singleton_waits(job):
    mine = load(job)["options"]
    return mine.get("dependency") == "singleton" and any(
        load(other)["options"]["job-name"] == mine["job-name"]
        and (state(other) == "RUNNING" or (state(other) == "PENDING" and int(other.name) < int(job.name)))
        for other in jobs()
        if other != job
    )


def schedule():
    for job in jobs():
        if state(job) == "PENDING" and not (home / "hold").exists() and not singleton_waits(job):
            set_state(job, "RUNNING")
            nowhere = subprocess.DEVNULL
            subprocess.Popen(
                [Path(__file__).resolve(), job.name],
                start_new_session=True,
                stdin=nowhere,
                stdout=nowhere,
                stderr=nowhere,
            )


def run_batch(job):
    """What slurmd does: the batch script, then the end of the job or its way back into the queue."""
    content = load(job)
    log = content["options"]["output"].replace("%%", "%")
    with Path(log).open("ab") as file:
        env = {**content["env"], "SLURM_JOB_ID": job.name}
        batch = subprocess.Popen(["bash", *content["argv"]], env=env, stdout=file, stderr=file, start_new_session=True)
    (job / "pid").write_text(str(batch.pid))
    (job / "code").write_text(str(batch.wait()))
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (job / "pid").unlink()
        again = (job / "requeue").exists()
        (job / "requeue").unlink(missing_ok=True)
        set_state(job, "PENDING" if again else "ENDED")
        schedule()


def cancel(job):
    """The exit status of scancel."""
    if "state" in options and state(job) != options["state"]:
        return 0
    if state(job) == "PENDING" and "signal" not in options:
        set_state(job, "ENDED")
    elif state(job) == "RUNNING" and (job / "pid").exists():
        pid = int((job / "pid").read_text())
        if "batch" in options:
            os.kill(pid, getattr(signal, f"SIG{options['signal']}"))
        else:
            os.killpg(pid, signal.SIGKILL)
    else:
        return "scancel: error: Kill job error: Job/step already completing or completed"
    return 0


def main():
    with (home / "log").open("a") as file:
        print(json.dumps([name, *words]), file=file)
    if (home / "away").exists():
        return f"{name}: error: Unable to contact slurm controller (connect failure)"
    schedule()
    match name:
        case "sbatch":
            if (home / "refuse").exists():
                return (home / "refuse").read_text()
            if (home / "most").exists() and sum(state(job) != "ENDED" for job in jobs()) >= int(
                (home / "most").read_text()
            ):
                return "sbatch: error: QOSMaxSubmitJobPerUserLimit"
            job = home / str(len(jobs()) + 17)
            job.mkdir()
            env = dict(os.environ)
            (job / "job").write_text(json.dumps({"options": options, "argv": rest, "env": env}))
            set_state(job, "PENDING")
            print(job.name)
        case "squeue":
            lines = [f"{job.name} {state(job)}" for job in jobs() if state(job) != "ENDED"]
            print("\n".join(lines))
        case "scancel":
            return cancel(home / rest[0])
        case "scontrol":
            (home / rest[1] / "requeue").touch()
    schedule()
    return 0


if __name__ == "__main__":
    if name == "slurmd":
        run_batch(home / words[0])
    else:
        with (home / "lock").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            sys.exit(main())
