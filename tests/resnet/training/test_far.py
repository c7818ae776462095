"""A training whose images are far away, on a server that fails and dies, ends with the weights of one that reads the disk."""

import shutil
import threading
import time
from pathlib import Path

import far
import pytest
from run_files import assert_same, logged, tensors

from resnet.data import digits
from resnet.training.loop import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_network")]

COMMON = ["model=tiny", "data=imagenet", "data.classes=10", "data.image_size=32", "data.eval_resize=32", "batch=48"]
ORDER = ["data.order=blocks", "data.streams=12", "data.block_mb=0.01", "data.fetch_mb=0.05"]
MORE = ["track=off", "optim.lr=0.05", "epochs=4", "log_every_steps=2", "save_every_steps=20"]
OUTAGE_S = 20


def test_a_server_that_dies_for_20_s_in_mid_epoch_costs_time_and_nothing_else(run_of, tmp_path):
    digits.write(str(tmp_path / "shards"))
    near = run_of(*COMMON, *ORDER, *MORE, "steps=60", f"data.dir={tmp_path / 'shards'}", f"out={tmp_path / 'near'}")
    expected = train(near, Path(near.out))
    cache = tmp_path / "cache"
    with far.Server(tmp_path) as server:
        words = [
            f"data.dir={server.address}/shards",
            "data.cache=disk",
            f"data.cache_dir={cache}",
            f"out={tmp_path / 'far'}",
        ]
        server.fail, server.truncate = 0.1, 0.05
        outage = threading.Thread(target=die_after, args=(server, len(list(requests_of(server))) + 60))
        outage.start()
        begin = time.monotonic()
        first = run_of(*COMMON, *ORDER, *MORE, *words, "steps=40")
        train(first, Path(first.out))
        outage.join()
        assert time.monotonic() - begin > OUTAGE_S
        shutil.rmtree(cache)
        again = run_of(*COMMON, *ORDER, *MORE, *words, "steps=60")
        result = train(again, Path(again.out))
    assert_same(tensors(near.out), tensors(again.out))
    for name in ("final/top1", "eval/loss"):
        assert result[name] == pytest.approx(expected[name], rel=1e-6)
    waits = dict(logged(again.out, "train/data_wait"))
    assert max(waits.values()) > 0.9 and all(0 <= wait <= 1 for wait in waits.values())


def requests_of(server):
    return (one for one in server.requests if one[2] and "img_train" in one[1])


def die_after(server, count):
    """Let the server die for OUTAGE_S once it has had so many requests for training images."""
    while sum(1 for _ in requests_of(server)) < count:
        time.sleep(0.05)
    server.dead = True
    time.sleep(OUTAGE_S)
    server.dead = False
