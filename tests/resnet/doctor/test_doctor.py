"""The page of a machine: every fact or the reason why there is none, what works, no path of a person, and never a wait."""

import os
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from resnet import cli, files
from resnet.doctor import __main__ as doctor
from resnet.doctor import bounded, facts, page, probes
from resnet.doctor.bounded import Failure
from resnet.doctor.facts import Facts

TENSORFLOW = {"version": "2.15.1", "keras": "2.15.0", "cuda": "", "gpus": [], "computes": True}
ANSWERS = {
    "tensorflow": TENSORFLOW,
    "horovod": {"version": "0.28.1", "Gloo": True, "MPI": False, "NCCL": False},
    "habana": {"cards": [], "plugin": False},
    "semaphores": {"free": 8e9},
    "disk": {"total": 1e12, "free": 5e11},
    "store": {"answer": "a SQLite file of 3 experiments"},
}
PACKAGES = dict.fromkeys(("tensorflow-cpu", "hydra-core", "mlflow", "numpy", "pillow"), "1.0")
H200 = "NVIDIA H200, 570.1, 143771 MiB"


def a_machine(**changes):
    """The facts of a machine of CPUs, but for these answers; None: there is none, because it broke."""
    answers = {**ANSWERS, **changes}
    present = {name: answer for name, answer in answers.items() if answer is not None}
    reasons = dict.fromkeys(set(answers) - set(present), "it broke")
    tools = dict.fromkeys(facts.PROGRAMS, True)
    return Facts(present, reasons, dict(PACKAGES), tools, [], {"avx512_bf16"}, True)


def works(known):
    return {what.partition(" (")[0]: missing for what, missing in page.works(known)}


def test_the_page_has_a_line_for_every_fact_and_for_all_that_works():
    text = page.text(a_machine(), paths=False)
    rows = dict(line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith(("yes", "no ")))
    assert rows["TensorFlow"] == "2.15.1 with Keras 2.15.0, built without CUDA"
    assert rows["Horovod"] == "0.28.1: Gloo yes, MPI no, NCCL no"
    assert rows["/dev/shm"] == "8.0 GB free"
    assert rows["Python"].startswith(f"{sys.version.split()[0]} (the suite needs >=3.10,<")
    assert "disk at out   500.0 GB free of 1,000.0 GB\n" in text
    assert "yes  training on the CPU (cluster=local)\nyes  several ranks (cluster=cpu2)\nno   GPUs" in text


def test_what_cannot_be_known_is_a_line_with_its_reason(monkeypatch):
    for function in ("suite", "python", "processor", "memory"):
        monkeypatch.setattr(facts, function, lambda: 1 / 0)
    text = page.text(Facts(reasons={"store": "no route to it", "tensorflow": "no answer within 60 s"}), paths=False)
    assert "memory        cannot be known (ZeroDivisionError: division by zero)\n" in text
    assert "MLflow store  no route to it\n" in text
    assert "TensorFlow    not known: no answer within 60 s\n" in text
    assert "no   training on the CPU (cluster=local): it needs bash launch/setup.sh" in text


GPU = {**TENSORFLOW, "cuda": "12.2"}
NEEDS = {
    "nothing": (a_machine(), {"training on the CPU": None, "several ranks": None, "data=fashion": None}),
    "TensorFlow that works": (a_machine(tensorflow=None), {"training on the CPU": "the TensorFlow that is installed"}),
    "Horovod": (a_machine(horovod=None), {"training on the CPU": None, "several ranks": "Horovod with Gloo: bash"}),
    "Gloo": (a_machine(horovod={**ANSWERS["horovod"], "Gloo": False}), {"several ranks": "Horovod with Gloo: bash"}),
    "a card": (a_machine(tensorflow=GPU), {"GPUs": "an NVIDIA GPU and its driver"}),
    "a card that is seen": (a_machine(tensorflow={**GPU, "gpus": [H200]}), {"GPUs": None}),
    "a plug-in": (a_machine(habana={"cards": ["GAUDI2"], "plugin": False}), {"Gaudi": "Python 3.10 and pip install"}),
    "both": (a_machine(habana={"cards": ["GAUDI2"], "plugin": True}), {"Gaudi": None}),
    "a store": (a_machine(store=None), {"MLflow store": "a store that answers: it broke"}),
    "a semaphore": (a_machine(semaphores=None), {"several processes of resnet.prepare": "a /dev/shm"}),
    "room": (a_machine(disk={"total": 9e9, "free": 1e8}), {"room for a run at out": "2.0 GB free; use out="}),
}


@pytest.mark.parametrize("case", NEEDS)
def test_what_does_not_work_says_what_it_needs(case):
    known, expected = NEEDS[case]
    found = works(known)
    for what, missing in expected.items():
        assert (found[what] or "").startswith(missing or "") and bool(found[what]) == bool(missing), found[what]


def test_what_did_not_answer_in_time_is_no_fault_of_the_machine():
    known = a_machine(tensorflow=None, horovod=None, semaphores=None)
    known.reasons = dict.fromkeys(known.reasons, "no answer within 0.5 s")
    for what in ("training on the CPU", "several ranks", "several processes of resnet.prepare"):
        assert works(known)[what] == "an answer (no answer within 0.5 s); give a larger limit_s"


def test_a_driver_without_a_tensorflow_for_it_is_told_apart():
    known, cuda = a_machine(), a_machine(tensorflow=GPU)
    known.cards = cuda.cards = [H200]
    assert "pip install -e '.[gpu]' in an environment without" in works(known)["GPUs"]
    assert "CUDA's libraries" in works(cuda)["GPUs"]
    known.programs.update({"g++": False})
    known.answers.pop("horovod")
    assert "needs g++ (apt-get install" in works(known)["several ranks"]


def test_no_personal_path_or_host_is_on_the_page_unless_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/zoe lee")
    monkeypatch.chdir(tmp_path)
    reason = (
        f"cannot open /home/zoe lee/x.so, {sys.prefix}/lib/y.so, {tmp_path}/z.db, {files.HERE}/a.py, '/data/zoe/secret/b.so'"
        " or /usr/lib/libcuda.so.1; see http://zoe:pw1234@box.corp:5000/api (host='box.corp', port=5000)"
    )
    text = page.text(a_machine(store=None), paths=False).replace("it broke", "")
    hidden = page.anonymous(text + reason)
    for part in ("zoe", "box", str(tmp_path), str(Path.cwd()), str(files.HERE.parent)):
        assert part not in hidden
    assert "~/x.so" in hidden and "<environment>/lib/y.so" in hidden and "<working folder>/z.db" in hidden
    assert "<path>/b.so" in hidden and "/usr/lib/libcuda.so.1" in hidden and "http://<host>" in hidden
    known = a_machine(store=None)
    known.reasons["store"] = reason
    shown = page.text(known, paths=True)
    assert "/data/zoe/secret/b.so" in shown and "box.corp:5000" in shown and "pw1234" not in shown


# --------------------------------------------------------------------------------------------------------------- children
def test_a_program_that_hangs_is_ended_with_all_that_it_has_started(tmp_path):
    start = time.monotonic()
    with pytest.raises(Failure, match=r"no answer within 0.3 s"):
        bounded.output(["sh", "-c", f"trap '' TERM; sleep 60 & echo $! > {tmp_path}/pid; wait"], 0.3)
    assert time.monotonic() - start < 30
    deadline = time.monotonic() + 20
    while alive(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(number):
    stat = Path(f"/proc/{number}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_how_a_program_ended_is_the_reason(tmp_path):
    for script, reason in (
        ("kill -ABRT $$", "the process ended with signal SIGABRT"),
        ("echo one >&2; echo two >&2; exit 3", "^two$"),
        ("exit 3", "exit status 3"),
    ):
        with pytest.raises(Failure, match=reason):
            bounded.output(["sh", "-c", script], 60)
    with pytest.raises(Failure, match="No such file"):
        bounded.output([str(tmp_path / "none")], 60)


def test_every_probe_answers_and_what_breaks_is_a_reason(monkeypatch):
    def ask(name, *_words, limit_s):
        if name == "horovod":
            raise Failure(f"no answer within {limit_s:g} s")
        if name == "disk":
            raise OSError(28, "No space left")
        return ANSWERS[name]

    monkeypatch.setattr(bounded, "ask", ask)
    monkeypatch.setattr(facts.shutil, "which", lambda *_, **__: "/usr/bin/it")
    monkeypatch.setattr(bounded, "output", lambda *_: f"{H200}\n")
    known = facts.collect("runs", "sqlite:////x/mlflow.db", 7)
    assert known.cards == [H200] and known.answers["tensorflow"] == TENSORFLOW
    assert known.reasons == {"horovod": "no answer within 7 s", "disk": "OSError: [Errno 28] No space left"}


def test_an_answer_that_is_none_is_a_reason(monkeypatch):
    monkeypatch.setattr(bounded, "output", lambda *_: "a library's word\n")
    with pytest.raises(Failure, match="cannot be read"):
        bounded.ask("disk", ".", limit_s=1)


# ----------------------------------------------------------------------------------------------------------------- probes
def test_looking_at_a_store_creates_nothing(tmp_path):
    path = tmp_path / "a b?c.db"
    uri = f"sqlite:///{tmp_path}/a b%3Fc.db"
    assert "not there yet" in probes.store(uri)["answer"]
    assert list(tmp_path.iterdir()) == []
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE experiments (name TEXT)")
        connection.execute("INSERT INTO experiments VALUES ('one')")
    assert probes.store(uri) == {"answer": "a SQLite file of 1 experiments"}
    assert [one.name for one in tmp_path.iterdir()] == ["a b?c.db"]
    path.write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        probes.store(uri)
    assert probes.store(f"file://{tmp_path}") == {"answer": "a folder of 0 experiments"}
    with pytest.raises(OSError, match="refused"):
        probes.store("postgresql://localhost:1/x")


def test_the_disk_is_that_of_the_nearest_folder(tmp_path):
    known = probes.disk(str(tmp_path / "not" / "there"))
    stat = os.statvfs(tmp_path)
    assert known["total"] == stat.f_blocks * stat.f_frsize and 0 < known["free"] <= known["total"]


def test_limits_of_a_container_are_shown(tmp_path, monkeypatch):
    for name, text in (
        ("proc/meminfo", "MemTotal:  16000000 kB\nMemAvailable:  8000000 kB\n"),
        ("sys/fs/cgroup/memory.max", "4000000000\n"),
        ("sys/fs/cgroup/cpu.max", "150000 100000\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(facts, "ROOT", tmp_path)
    assert facts.memory() == "16.4 GB, 8.2 GB free, a container's limit of 4.0 GB"
    assert "a container's limit of 1.5" in facts.processor()


# ---------------------------------------------------------------------------------------------------------------- command
def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["doctor", *words])
    doctor.main()


def test_the_command_asks_the_store_that_is_named_and_shows_no_secret(monkeypatch, capsys):
    taken = []
    monkeypatch.setattr(facts, "collect", lambda *values: taken.append(values) or a_machine())
    for name in ("RESNET_TRACK_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
    run(monkeypatch, "uri=http://ann:pw12345@host:5000", "out=/data/x", "limit_s=5")
    assert taken == [("/data/x", "http://host:5000", 5.0)]
    assert "What works here" in capsys.readouterr().out
    run(monkeypatch)
    assert taken[-1] == ("runs", f"sqlite:///{Path.cwd()}/mlflow.db", 60.0)
    run(monkeypatch, "--help")
    assert "paths=false" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "limit_s=0")
    assert ended.value.code == cli.FAILED and "limit_s=0.0: must be above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_page_of_this_machine_comes_without_waiting_and_names_nobody(tmp_path):
    words = [sys.executable, "-m", "resnet.doctor", f"out={tmp_path}"]
    text = bounded.output(words, 120)
    assert "yes  training on the CPU (cluster=local)" in text
    assert str(Path.home()) not in text and str(files.HERE.parent) not in text
