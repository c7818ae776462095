"""Jobs of a sweep on Slurm: what is asked of it, what is refused, and how jobs go, on a cluster of stand-ins.

launch/slurm/try.sh sweeps on a real Slurm.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import LINE, PYTHON, WARNED, job, starts
from sweep_runs import rows

from resnet import UserError
from resnet.config.cluster import Device, Starter
from resnet.config.sweep import Slurm
from resnet.launch import launchers
from resnet.sweep import slurm


# --------------------------------------------------------------------------------------------------------- what is submitted
def options(settings, one=None):
    words = slurm.submission(one or job(), settings)
    assert words[:3] == ["sbatch", "--parsable", "--requeue"]
    assert words[-2:] == [f"{(one or job()).out.parent}/job.sh", str((one or job()).out)]
    return dict(word[2:].partition("=")[::2] for word in words[3:-2])


def test_a_job_of_one_rank_asks_for_no_more_than_it_needs():
    assert options(Slurm()) == {
        "job-name": "a sweep-3",
        "output": "/runs/a sweep/3/output.log",
        "open-mode": "append",  # or a requeue would empty it
        "export": "ALL",
        "signal": "B:USR1@120",  # to the batch shell alone
        "nodes": "1",
        "ntasks": "1",
    }


@pytest.mark.parametrize(
    ("settings", "cluster", "expected"),
    [
        ({"partition": "big"}, {}, {"partition": "big"}),
        ({"time_min": 1}, {}, {"time": "1", "signal": "B:USR1@15"}),
        ({"time_min": 600}, {}, {"time": "600", "signal": "B:USR1@120"}),
        ({"gpus": 2, "cpus": 8, "mem_gb": 1.5}, {}, {"gpus-per-node": "2", "cpus-per-task": "8", "mem": "1536M"}),
        ({}, {"device": Device.gpu, "ranks": 4}, {"gpus-per-node": "4", "ntasks": "4"}),
        (
            {"nodes": 2},
            {"device": Device.gpu, "ranks": 16, "starter": Starter.srun},
            {"nodes": "2", "ntasks": "16", "ntasks-per-node": "8", "gpus-per-node": "8"},
        ),
        ({"extra": "--account=x --signal=B:USR1@600"}, {}, {"account": "x", "signal": "B:USR1@600"}),
    ],
)
def test_what_is_asked_of_slurm(settings, cluster, expected):
    assert expected.items() <= options(Slurm(**settings), job(**cluster)).items()


@pytest.mark.parametrize(("nodes", "lr"), [(1, 0.128), (2, 0.1)])
def test_a_job_has_the_settings_that_it_would_have_on_its_nodes(run_of, monkeypatch, nodes, lr):
    words = ["batch=256", "cluster=slurm", "cluster.ranks=2", "sweep.on=slurm", f"sweep.slurm.nodes={nodes}"]
    assert run_of(*words).optim.lr == pytest.approx(lr)  # conf/optim/sgd.yaml: other rates on one server and on several
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_NNODES", str(3 - nodes))  # of the sweep's own allocation
    assert run_of(*words).optim.lr == pytest.approx(lr)


def test_a_limit_of_jobs_at_a_time_is_names_that_they_share():
    names = [options(Slurm(array_limit=2), job(n))["job-name"] for n in range(5)]
    assert len(set(names)) == 2 and names[0] == names[2] == names[4] and names[1] == names[3]
    assert options(Slurm(array_limit=2))["dependency"] == "singleton"
    assert options(Slurm(array_limit=2), job(0, "/elsewhere/a sweep"))["job-name"] not in names


def test_a_percent_sign_in_a_folder_is_none_of_sbatchs():
    assert options(Slurm(), job(out="/runs/50%j"))["output"] == "/runs/50%%j/3/output.log"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"extra": "-A x"}, "sweep.slurm.extra=-A x: must be options such as --account=x"),
        ({"extra": "--account='x"}, "sweep.slurm.extra=--account='x: No closing quotation"),
        ({"extra": "--qos=low --array=1-3"}, "sweep.slurm.extra=--qos=low --array=1-3: --array cannot be here"),
        ({"extra": "--dep=afterok:1"}, "--dep cannot be here"),
        ({"array_limit": 0}, "sweep.slurm.array_limit=0: must be above 0"),
        ({"nodes": 0}, "sweep.slurm.nodes=0: must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, error):
    with pytest.raises(UserError, match=re.escape(error)):
        Slurm(**settings)


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("sweep.jobs=2", "sweep.jobs=2: is of this machine; use sweep.slurm.array_limit="),
        ("sweep.cores_each=2", "sweep.cores_each=2: is of this machine; use sweep.slurm.cpus="),
        ("sweep.only=1", "sweep.only=1: trains in this process; leave it out, or use sweep.on=here"),
        ("sweep.on=here sweep.slurm.cpus=2", "sweep.slurm.cpus=2: needs sweep.on=slurm"),
        ("cluster=local cluster.hosts=[a:1]", "cluster.hosts=['a:1']: job 0 (seed=1) gets its hosts from Slurm; use"),
        (
            "cluster=slurm sweep.slurm.nodes=2",
            "sweep.slurm.nodes=2: job 0 (seed=1) has fewer ranks; use cluster.ranks=2",
        ),
        (
            "cluster=cpu2 sweep.slurm.nodes=2 cluster.starter=horovodrun",
            "cluster.starter=horovodrun: starts no ranks on other nodes of Slurm's",
        ),
    ],
)
def test_what_has_no_meaning_on_slurm_is_refused(sweep, cluster, home, word, error):
    code, out, err = sweep(f"{LINE} seed=1,2 {word}")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {error}")
    assert cluster.calls("sbatch") == [] and not (home / "mine").exists()


def test_without_slurms_commands_nothing_is_written(sweep, cluster, home, monkeypatch):
    (cluster.bin / "scontrol").unlink()
    monkeypatch.setenv("PATH", str(cluster.bin))
    code, _, err = sweep(f"{LINE} seed=1,2")
    assert (code, err) == (
        1,
        "error: sweep.on=slurm: scontrol not found; run it on a login node of Slurm, or use sweep.on=here\n",
    )
    assert not (home / "mine").exists()


def test_a_dry_run_shows_sbatchs_command_lines(sweep, cluster, home):
    code, out, _ = sweep(f"{LINE} seed=1,2 cluster=slurm cluster.ranks=4 sweep.slurm.nodes=2 cluster.dry_run=true")
    assert code == 0 and cluster.calls("sbatch") == [] and not (home / "mine").exists()
    assert [line.split()[0] for line in out.splitlines()] == ["sbatch"] * 2
    assert "--nodes=2 --ntasks=4 --ntasks-per-node=2" in out


# ------------------------------------------------------------------------------------------------------------- how jobs go
def test_every_job_is_one_of_slurms_and_how_each_ended_is_in_the_table(sweep, cluster, home, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "another")  # would hide every job
    cluster.deed(1, "exit 3")
    cluster.deed(2, "kill -9 $PPID; exit 0")  # its node
    code, out, err = sweep(f"{LINE} seed=1,2,3 cluster=slurm")
    assert code == 1 and cluster.submitted() == [0, 1, 2]
    assert [row[4] for row in sorted(rows(out))] == ["finished", "failed", "failed"]
    assert "job 1 (seed=2): exit status 3" in err and "job 2 (seed=3): exit status 1" in err
    content = json.loads((cluster.home / "17" / "job").read_text())
    assert content["argv"] == [f"{home}/mine/job.sh", f"{home}/mine/0"]
    assert not list((home / "mine").glob("*/slurm.json"))


@pytest.mark.usefixtures("cluster")
def test_a_job_starts_the_ranks_as_a_run_does(sweep, home):
    sweep(f"{LINE} seed=1")
    words = [word for word in (home / "mine" / "job.sh").read_text().splitlines() if word.startswith("env ")]
    assert words[0].endswith(f'{sys.executable} {" ".join(launchers.PROGRAM)} "$out" &')
    assert subprocess.run(["bash", "-n", home / "mine" / "job.sh"], check=True).returncode == 0
    done = subprocess.run(
        [Path(PYTHON).parent / "shellcheck", home / "mine" / "job.sh"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_a_password_reaches_the_jobs_by_the_environment_alone(sweep, cluster, home, monkeypatch):
    monkeypatch.setattr("resnet.sweep.execution.ignoring_mlflow_errors", lambda *_words, **_more: None)
    monkeypatch.setenv("RESNET_TRACK_URI", "")  # so that what the command puts there goes with the test
    line = "-m model=tiny steps=2 eval=false seed=1,2 track.uri=https://me:secret@host:5 out=mine sweep.on=slurm"
    assert sweep(line)[0] == 0
    environment = json.loads((cluster.home / "17" / "job").read_text())["env"]
    assert environment["RESNET_TRACK_URI"] == "https://me:secret@host:5"
    assert "secret" not in (cluster.home / "log").read_text()
    kept = [
        path for path in (home / "mine").rglob("*") if path.is_file() and "secret" in path.read_text(errors="replace")
    ]
    assert kept == []


def test_a_sweep_in_an_allocation_hands_none_of_it_to_its_jobs(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_CONF", "SQUEUE_STATES"):
        monkeypatch.setenv(name, "5")
    names = slurm.run(["bash", "-c", "compgen -e"]).split()
    assert "SLURM_CONF" in names and "PATH" in names
    assert not {"SLURM_JOB_ID", "SLURM_NTASKS", "SQUEUE_STATES"} & set(names)


def test_a_warning_of_the_time_limit_has_a_job_saved_and_queued_again(sweep, cluster, home):
    cluster.deed(0, WARNED)
    code, out, _ = sweep(f"{LINE} seed=1,2")
    assert code == 0 and [row[4] for row in rows(out)] == ["finished"] * 2
    assert cluster.submitted() == [0, 1] and cluster.calls("scontrol") == [["scontrol", "requeue", "17"]]
    assert starts(home / "mine" / "0") == 2 and (home / "mine" / "0" / "checkpoints" / "step-00000001").exists()


def test_a_job_that_gets_no_further_is_not_queued_again(sweep, cluster, home):
    cluster.deed(0, "trap 'exit 143' TERM; kill -USR1 $PPID; work")
    code, _, err = sweep(f"{LINE} seed=1")
    assert code == 1 and "exit status 143" in err
    assert cluster.calls("scontrol") == [] and starts(home / "mine" / "0") == 1


def test_a_warning_before_the_training_runs_reaches_it(tmp_path, cluster):
    (tmp_path / "0").mkdir()
    text = slurm.write_script(tmp_path).read_text()
    (tmp_path / "job.sh").write_text(text.replace("trap stop TERM\n", "trap stop TERM\nkill -USR1 $$\n"))
    cluster.deed(0, "work")
    environment = {**os.environ, "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", tmp_path / "job.sh", tmp_path / "0"], env=environment, timeout=20)
    assert done.returncode in (0, 143)  # it had saved, or could not yet


def test_a_job_that_is_preempted_saves_and_slurm_queues_it_again(sweep, cluster, home):
    cluster.deed(0, 'if first; then scontrol requeue "$SLURM_JOB_ID"; kill -TERM $PPID; work; fi')
    code, _, _ = sweep(f"{LINE} seed=1,2")
    assert code == 0 and starts(home / "mine" / "0") == 2 and cluster.submitted() == [0, 1]


def test_no_more_jobs_at_a_time_than_the_limit_even_if_one_is_queued_again(sweep, cluster, home):
    busy = f'mkdir "{home}/busy" || exit 5; sleep 0.1; rmdir "{home}/busy"'
    for number in range(3):
        cluster.deed(number, f"{busy}; {WARNED if number == 0 else ''}")
    code, out, _ = sweep(f"{LINE} seed=1,2,3 sweep.slurm.array_limit=1")
    assert code == 0 and [row[4] for row in rows(out)] == ["finished"] * 3
    assert starts(home / "mine" / "0") == 2


@pytest.mark.usefixtures("cluster")
def test_a_job_that_was_submitted_twice_trains_once(tmp_path):
    (tmp_path / "0").mkdir()
    slurm.write_script(tmp_path)

    def start(number):
        environment = {**os.environ, "SLURM_JOB_ID": str(number)}
        return subprocess.run(["bash", tmp_path / "job.sh", tmp_path / "0"], env=environment, timeout=20).returncode

    assert start(17) == start(18) == start(17) == 0
    assert starts(tmp_path / "0") == 2 and slurm.number_of(tmp_path / "0") == "17"
