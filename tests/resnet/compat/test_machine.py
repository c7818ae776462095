"""What the original's commands find: cards, shards, the end of the curve; and folders of any name."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from resnet import UserError, files
from resnet.compat import habana, places
from resnet.data import shards

DATA = "/data/shards"
HERE = "/usr"  # a folder that exists, as IMAGENET_DIR must
BF16 = ["-d", "bf16", "-a", DATA]


# --------------------------------------------------------------------------------------------------------------- the machine
@pytest.mark.parametrize(
    ("cards", "argv", "said"),
    [
        (8, [], ["cluster=gaudi1", "batch=256"]),
        (8, ["-o"], ["cluster=hls1", "batch=2048"]),
        (4, ["-o"], ["cluster=hls1", "cluster.ranks=4", "batch=1024"]),
        (1, ["-o"], ["cluster=gaudi1", "batch=256"]),
        (0, [], ["cluster=local", "batch=256"]),
        (0, ["-o"], ["cluster=cpu2", "batch=512"]),
        (0, ["--", "cluster=gpu8"], ["batch=2048"]),
        (8, ["-o", "--", "cluster=cpu2"], ["batch=512"]),
        (8, ["-o", "--", "cluster.ranks=2"], ["cluster=hls1", "batch=512"]),
        (8, ["-o", "--", "batch=99"], ["cluster=hls1"]),
    ],
)
def test_the_batch_is_that_of_a_card_times_the_ranks(words, machine, cards, argv, said):
    machine(cards)
    extra = argv[argv.index("--") + 1 :] if "--" in argv else []
    kept = [word for word in words("demo_resnet", *BF16, *argv) if word.startswith(("cluster", "batch"))]
    assert kept == [*said, *extra]


def test_without_a_card_it_says_that_it_takes_the_cpu(words, asked, machine):
    machine(0)
    request, _ = asked("demo_resnet", *BF16)
    assert request.notes == ["no Gaudi card on this machine: 1 rank on CPU; for GPUs add -- cluster=gpu1, or gpu8"]
    assert asked("demo_resnet", *BF16, "--", "cluster=gpu1")[0].notes == []
    data = f"data=imagenet data.dir={HERE} data.eval_resample=original"
    lars = f"model=resnet50 optim=lars dtype=bf16 {data} cluster=cpu2 batch=512 epochs=38"
    assert words("demo_resnet_hvd.sh", IMAGENET_DIR=HERE) == [*lars.split(), "eval_every_epochs=8"]


def test_several_servers_get_what_the_original_gave_mpirun(words, asked, machine):
    several = {"MULTI_HLS_IPS": "a,b", "MPI_TPC_INCLUDE": "eth1", "IMAGENET_DIR": HERE}
    request, (train,) = asked("demo_resnet_hvd.sh", **several)
    assert {"cluster=hls1", "cluster.ranks=16", "cluster.hosts=[a:8,b:8]", "batch=4096"} <= set(train)
    interface = {"OMPI_MCA_btl_tcp_if_include": "eth1", "HCCL_SOCKET_IFNAME": "eth1"}
    assert request.env == {"OMPI_MCA_plm_rsh_args": "-p 3022", **interface}
    request, _ = asked("demo_resnet_hvd.sh", **several, OMPI_MCA_plm_rsh_args="-p 22")
    assert request.env == interface
    machine(0)
    request, (train,) = asked("demo_resnet_hvd.sh", **several)
    assert "cluster.hosts=[a:2,b:2]" in train and request.env == {} and "MPI_TPC_INCLUDE=eth1" in request.notes[0]
    with pytest.raises(UserError, match="NUM_WORKERS_PER_HLS"):
        asked("demo_resnet_hvd.sh", "--", "cluster=gpu8", **several)
    said = words("demo_resnet_hvd.sh", "--", "cluster=gpu8", **several, NUM_WORKERS_PER_HLS="4")
    assert {"cluster.ranks=8", "cluster.hosts=[a:4,b:4]", "cluster=gpu8", "batch=2048"} <= set(said)


# ---------------------------------------------------------------------------------------------------------------- the curve
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--enable-lars-optimizer -e 3", ["schedule.horizon_epochs=38"]),  # its warm-up: it rises and stops
        ("--enable-lars-optimizer -e 9", ["schedule.horizon_epochs=38"]),
        ("--enable-lars-optimizer -e 40", ["schedule.horizon_epochs=null"]),
        ("--enable-lars-optimizer -e 38", []),
        ("--enable-lars-optimizer -e 38 -b 4096", ["schedule.warmup_epochs=3", "schedule.horizon_epochs=38"]),
        ("--resnext -e 8", ["schedule.horizon_epochs=90"]),
        ("--resnext -e 9", []),
        ("-e 1", []),
        ("--resnext -e 1 -- schedule=constant", []),
        ("--resnext -- epochs=20", []),
    ],
)
def test_a_curve_ends_with_the_run_or_where_the_published_one_does(words, run_at, tmp_path, argv, said):
    made = words("demo_resnet", *BF16, *argv.split())
    assert [word for word in made if word.startswith("schedule.")] == said
    run_at(tmp_path, *made)


# --------------------------------------------------------------------------------------------------------------- the images
def test_without_a_folder_it_takes_the_digits_and_says_so(asked):
    request, (train,) = asked("demo_resnet", "-d", "bf16")
    assert "data=digits" in train and not [word for word in train if word.startswith("data.")]
    assert request.notes == ["no folder of shards is named: the embedded digits (10 classes, 32 px)"]


def test_without_a_folder_it_takes_the_original_s_if_it_is_there(words, monkeypatch, tmp_path):
    monkeypatch.setattr(places, "STANDARD", ("/nowhere", str(tmp_path)))
    assert f"data.dir={tmp_path}" in words("demo_resnet", "-d", "bf16")


def lay(folder, layout=("img_train/img_train", "img_val/img_val"), classes=None):
    """A folder that looks like one of shards."""
    for name in layout:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-00000-of-00001").touch()
    if classes:
        (folder / "classes.txt").write_text("".join(f"class {number}\n" for number in range(classes)))
    return folder


def test_mini_imagenet_is_read_where_it_lies(asked, tmp_path):
    subset = [f"imagenet_{part}_subset/imagenet_{part}_subset" for part in ("train", "val")]
    lay(tmp_path / "mini", subset)
    _, (train,) = asked("imagenet_main.py", "--mini_imagenet", "--data_dir", tmp_path / "mini" / "imagenet_val_subset")
    assert f"data.dir={tmp_path}/mini" in train
    assert [len(paths) for paths in shards.find(f"{tmp_path}/mini", "")] == [1, 1]


@pytest.mark.parametrize("below", ["", "img_train", "img_val"])
def test_the_folder_may_be_the_shards_or_one_of_their_two(asked, tmp_path, below):
    lay(tmp_path / "s")
    request, (train,) = asked("demo_resnet", "-d", "bf16", "-a", tmp_path / "s" / below)
    assert f"data.dir={tmp_path}/s" in train
    assert bool(request.notes) is bool(below)


def test_the_folder_may_have_them_in_tf_records(asked, tmp_path):
    lay(tmp_path / "imagenet" / "tf_records", ("train/train", "validation/validation"))
    request, (train,) = asked("demo_resnet_hvd.sh", IMAGENET_DIR=f"{tmp_path}/imagenet/")
    assert f"data.dir={tmp_path}/imagenet/tf_records" in train
    assert request.notes == [f"{tmp_path}/imagenet/: the shards lie in {tmp_path}/imagenet/tf_records"]


@pytest.mark.parametrize(("classes", "data"), [(3, "folder"), (1000, "imagenet"), (None, "imagenet")])
def test_the_shards_tell_how_many_classes(asked, tmp_path, run_at, classes, data):
    lay(tmp_path / "s", ("train", "validation"), classes)
    request, (train,) = asked("demo_resnet", "-d", "bf16", "-a", tmp_path / "s")
    assert f"data={data}" in train
    assert run_at(tmp_path, *train[1:]).data.classes == (classes or 1000)
    assert len(request.notes) == (data == "folder")


def test_a_remote_folder_is_not_looked_into(words):
    assert "data.dir=gs://bucket/tf_records" in words("demo_resnet", "-d", "bf16", "-a", "gs://bucket/tf_records")


def test_other_data_takes_no_folder_along(words):
    said = words("demo_resnet", *BF16, "--", "data=digits")
    assert not [word for word in said if word.startswith("data.dir")]
    assert f"data.dir={DATA}" in words("demo_resnet", *BF16, "--", "data=folder", "data.classes=5")


# ----------------------------------------------------------------------------------------------------------- names of folders
NAMES = [
    *("/a b", "/it's", '/"quoted"', "/a;b", "/a=b,c", "/a${b}c", "/$HOME", "/back\\slash", "/ends\\", "/\\'"),
    *("/{a}", "/[a]"),
    *("/\u00e4\u00f6 \u4f60", "/a#b", "/(a)", "/a&b|c", "/*?", "/~", "/new\nline", "/tab\there", "/%d", "/`id`", "/!"),
    *("null", "true", "NaN", "x", "12", "1.10", "1e3", "-", "a:b", "???x", "/a\\${b}"),
]


def test_any_folder_comes_through_a_shell_to_hydra_as_it_is(asked):
    script, data = [], {name: f"/data{name}" if name[0] == "/" else name for name in NAMES}
    for name in NAMES:
        _, lines = asked("demo_resnet", "-d", "bf16", "-a", data[name], "-m", name)
        line = habana.shell_line(lines, {})
        python, train, words = line.partition(" -m resnet.train ")
        assert train and python in ("python", shlex.quote(sys.executable))
        script.append(f"printf '%s\\0' {words}; printf '\\1'")
    done = subprocess.run(["bash", "-c", "\n".join(script)], capture_output=True, check=True).stdout.decode()
    for name, words in zip(NAMES, done.split("\1")[:-1], strict=True):
        overrides = OverridesParser.create().parse_overrides(words.split("\0")[:-1])
        read = {override.key_or_group: override.value() for override in overrides}
        found = OmegaConf.create({key: read[key] for key in ("out", "data.dir")})
        assert (str(found["out"]), str(found["data.dir"])) == (name, data[name])


@pytest.mark.parametrize("name", ['/it\'s; "${b}" = {c}\\', "1.10", "\u00e4 b"])
def test_such_a_folder_is_the_run_s(words, run_at, tmp_path, name):
    run = run_at(tmp_path, *words("demo_resnet", "-d", "bf16", "-a", name, "-m", name))
    assert run.out == run.data.dir == files.absolute(name, Path.cwd())
