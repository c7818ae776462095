"""S3's ways, by moto's server: preparing, killed and called again, checking, training. Needs `pip install moto[server] s3fs`."""

import os
import signal
import subprocess
import sys
import time

import pytest

moto = pytest.importorskip("moto.server", reason="moto[server] is not installed: S3 is not tested")
pytest.importorskip("s3fs", reason="s3fs is not installed: S3 is not tested")
boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: S3 is not tested")

pytestmark = pytest.mark.slow
KEY, SECRET, OUT = "AKIATESTTESTTEST", "a+secret/of12345", "s3://bucket/shards"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A bucket of a server on the loopback; the environment has its credentials."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    names = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()


@pytest.fixture
def command(tmp_path):
    """Runs a command, killed after some seconds if that is asked for; (status, all that it prints, which is stored too)."""

    def call(*words, kill_s=None):
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if kill_s:
            time.sleep(kill_s)
            process.send_signal(signal.SIGKILL)
        printed = process.communicate(timeout=300)[0]
        (tmp_path / f"log-{time.monotonic_ns()}").write_text(printed)
        return process.returncode, printed

    return call


def objects(client, prefix):
    listed = client.list_objects_v2(Bucket="bucket", Prefix=f"{prefix}/").get("Contents", [])
    bodies = {one["Key"]: client.get_object(Bucket="bucket", Key=one["Key"])["Body"].read() for one in listed}
    return {name.removeprefix(f"{prefix}/"): body for name, body in bodies.items()}


def test_prepared_with_kills_then_trained(bucket, command, tree, tmp_path):
    words = [
        "resnet.prepare",
        "source=folder",
        f"dir={tree({'cat': 60, 'dog': 60})}",
        "train_shards=12",
        "val_shards=3",
    ]
    assert command(*words, f"out={tmp_path / 'whole'}")[0] == 0
    whole = tmp_path / "whole"
    wanted = {str(path.relative_to(whole)): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    for kill_s in (2, 3, 3.5, 4, 4.5):
        command(*words, f"out={OUT}", kill_s=kill_s)
        if "upload.incomplete" in objects(bucket, "shards"):
            status, printed = command("resnet.prepare", f"check={OUT}")
            assert (status, "incomplete" in printed) == (1, True)
    assert command(*words, f"out={OUT}")[0] == 0
    assert objects(bucket, "shards") == wanted
    status, printed = command("resnet.prepare", f"check={OUT}", "deep=true")
    assert status == 0 and "120 records in 15 shards, without a fault" in printed
    sizes = ["data.image_size=64", "data.eval_resize=64", "batch=48"]
    train = ["resnet.train", "data=imagenet", f"data.dir={OUT}", "model=tiny", *sizes]
    status, printed = command(*train, "steps=20", "out=runs/x", "data.classes=2")
    assert status == 0, printed
    assert command("resnet.export", "runs/x", "out=s3://bucket/model")[0] == 0
    status, printed = command(*train, "steps=2", "out=runs/y", "data.classes=2", "init=s3://bucket/model")
    assert status == 0 and "s3://bucket/model: 87 tensors of tiny" in printed
    status, printed = command(*words, "out=s3://none/shards")
    assert status == 1 and printed.splitlines()[-1].endswith(
        "cannot be written (there is no such bucket); what stood there before still stands"
    )
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20 and os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
