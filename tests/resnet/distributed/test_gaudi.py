"""Gaudi: what is refused without a card, and whole trainings under a stand-in for the plug-in that enforces its order."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resnet import UserError
from resnet.config.cluster import Cluster, Device
from resnet.config.model import Dtype, Policy
from resnet.distributed import device, gaudi
from resnet.training import checkpoint

ROOT = Path(__file__).resolve().parents[3]
FAKE = ROOT / "tests" / "fakes" / "gaudi"
GAUDI = Cluster("gaudi1", Device.hpu)
FP32, BF16 = Dtype("fp32", Policy.float32), Dtype("bf16", Policy.mixed_bfloat16)
TINY = ("model=tiny", "data=digits", "batch=24", "steps=4", "eval_steps=2", "track=off", "log_every_steps=1")


def cards(root, *kinds):
    """A machine with these accelerators."""
    for number, kind in enumerate(kinds):
        folder = root / "sys" / "class" / "accel" / f"accel{number}" / "device"
        folder.mkdir(parents=True)
        (folder / "device_type").write_text(f"{kind}\n")
    (root / "sys" / "class" / "accel" / "accel_controlD0").mkdir(parents=True, exist_ok=True)
    return root


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(gaudi, "ROOT", tmp_path)
    monkeypatch.delenv("HABANA_VISIBLE_MODULES", raising=False)
    monkeypatch.delenv("TF_BF16_CONVERSION", raising=False)
    return tmp_path


# ------------------------------------------------------------------------------------------------------- what is refused
def test_cards_are_counted_by_the_drivers_own_files(machine, monkeypatch):
    assert gaudi.cards() == 0
    cards(machine, "GAUDI2", "GAUDI2", "NPU")
    assert gaudi.kinds() == ["GAUDI2", "GAUDI2"]
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "3")
    assert gaudi.cards() == 1


@pytest.mark.parametrize(
    ("nodes", "count"), [(["accel/accel0", "accel/accel_controlD0"], 1), (["hl0", "hl1", "hl_controlD0"], 2)]
)
def test_without_sysfs_device_nodes_are_counted(machine, nodes, count):
    for node in nodes:
        (machine / "dev" / node).parent.mkdir(parents=True, exist_ok=True)
        (machine / "dev" / node).touch()
    assert gaudi.cards() == count


def test_another_makers_accelerator_is_no_gaudi(machine):
    cards(machine, "NPU")
    (machine / "dev" / "accel").mkdir(parents=True)
    (machine / "dev" / "accel" / "accel0").touch()
    assert gaudi.cards() == 0


def refused(*arguments):
    with pytest.raises(UserError) as caught:
        gaudi.check(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_trained_on_is_told_with_the_way_out(machine, monkeypatch):
    assert "cluster=gaudi1: no Gaudi card on this machine" in refused(GAUDI, FP32)
    cards(machine, "GAUDI", "GAUDI")
    eight = Cluster("hls1", Device.hpu, ranks=8)
    assert refused(eight, FP32, 8) == "cluster=hls1: 8 ranks, and this machine has 2 Gaudi card(s); use cluster.ranks=2"
    told = refused(GAUDI, FP32)
    assert "habana-tensorflow is not installed" in told and ".[gaudi]" in told and "docs/gaudi.md" in told
    monkeypatch.syspath_prepend(str(FAKE))
    gaudi.check(GAUDI, FP32, 2)
    told = refused(GAUDI, Dtype("fp32", Policy.float32, gaudi_conversion="half"))
    assert told == "dtype.gaudi_conversion=half: must be full or basic, or a file of operations"
    monkeypatch.setenv("TF_BF16_CONVERSION", "full")
    assert refused(GAUDI, BF16).startswith("dtype=bf16: TF_BF16_CONVERSION=full is set as well")
    gaudi.check(GAUDI, FP32)


def test_conversion_is_told_to_the_plug_in(run_of, tmp_path):
    listed = tmp_path / "ops.json"
    listed.touch()
    words = ("cluster=gaudi1", "dtype=fp32", *TINY)
    assert gaudi.CONVERSION not in gaudi.environment(run_of(*words))
    assert gaudi.environment(run_of(*words, "dtype.gaudi_conversion=basic"))[gaudi.CONVERSION] == "basic"
    assert gaudi.environment(run_of(*words, f"dtype.gaudi_conversion={listed.name}"))[gaudi.CONVERSION] == str(listed)


def test_operations_that_end_up_elsewhere_are_told(monkeypatch):
    import tensorflow as tf

    assert device.placed_on("CPU").endswith("CPU:0")
    assert device.placed_on("HPU").endswith("CPU:0")  # what TensorFlow does in silence
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _kind: [])
    with pytest.raises(UserError, match=r"cluster=gaudi1: .*sees no card.*hl-smi"):
        device.assert_placement(GAUDI)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _kind: ["a card"])
    with pytest.raises(UserError, match=r"operations end up on .*CPU:0, not on the HPU"):
        device.assert_placement(GAUDI)


def test_without_a_card_a_run_is_refused_before_tensorflow_is_imported(tmp_path):
    program = "import atexit, sys; from resnet import train; "
    program += "atexit.register(lambda: print('tensorflow' in sys.modules)); train.main()"
    command = [sys.executable, "-c", program, *TINY, "cluster=gaudi1", f"out={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout.split()) == (1, ["False"])
    assert done.stderr.startswith("error: cluster=gaudi1: no Gaudi card on this machine")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------- trainings under the stand-in
def weights(out):
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(checkpoint.list_checkpoints(out)[-1].path / "weights"))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in n}


def assert_alike(left, right, share):
    """But for so much of a variable's largest value: CPUs have layers of their own, which round otherwise."""
    left, right = weights(left), weights(right)
    assert left.keys() == right.keys() and len(left) > 40
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=0, atol=share * np.abs(value).max(), err_msg=name)


@pytest.mark.timeout(300)
def test_a_training_on_one_card_is_the_one_on_the_cpu(spawn, tmp_path):
    fake = cards(tmp_path / "machine", "GAUDI2")
    before = (
        f"import sys; sys.path.insert(0, {str(FAKE)!r}); from pathlib import Path; "
        f"from resnet.distributed import gaudi; gaudi.ROOT = Path({str(fake)!r})"
    )
    words = ("cluster=gaudi1", "dtype.gaudi_conversion=full", f"out={tmp_path / 'card'}")
    card = spawn("resnet.train", *TINY, *words, before=before).finish()
    assert card.returncode == 0, card.stdout + card.stderr
    assert "the fake Gaudi was loaded full" in card.stdout and "Gaudi2" in card.stdout
    cpu = spawn("resnet.train", *TINY, f"out={tmp_path / 'cpu'}").finish()
    assert cpu.returncode == 0, cpu.stderr
    assert_alike(tmp_path / "card", tmp_path / "cpu", share=1e-4)


def trained(where, *words, fake=None):
    """Run a training whose ranks are processes of their own; what it said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    if fake:
        environment |= {"PYTHONPATH": f"{FAKE}{os.pathsep}{ROOT}", "FAKE_GAUDI": str(fake)}
    command = [sys.executable, "-m", "resnet.train", *TINY, f"out={where}", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=where.parent, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_on_two_cards_is_the_one_on_two_cpus(tmp_path):
    fake = cards(tmp_path / "machine", "GAUDI2", "GAUDI2")
    words = ("cluster=gaudi1", "cluster.ranks=2", "cluster.starter=horovodrun", "cluster.threads=1", "dtype=bf16")
    code, said = trained(tmp_path / "cards", *words, fake=fake)
    assert code == 0, said
    assert trained(tmp_path / "cpus", "cluster=cpu2", "cluster.threads=1", "dtype=bf16")[0] == 0
    assert_alike(tmp_path / "cards", tmp_path / "cpus", share=0.1)


def test_the_stand_in_aborts_where_the_plug_in_does(spawn):
    program = f"import sys; sys.path.insert(0, {str(FAKE)!r}); import tensorflow as tf; tf.ones([1]); "
    done = spawn(None, before=f"{program}from resnet.distributed import gaudi; gaudi.load()").finish()
    assert done.returncode == -6 and "TensorFlow has been at work before" in done.stderr
