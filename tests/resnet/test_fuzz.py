"""Damaged inputs, 2,000 of them, drawn by number: each is refused in one line, or comes to what the sound one came to.

    python -m pytest -m slow -n0 -s tests/resnet/test_fuzz.py   # all of them, with the figures of docs/reliability.md

About an eighth of them is among the default tests. What a damaged input must never come to: another exception than UserError, a
count that is wrong and accepted, more than a few seconds, or more than a few hundred megabytes.
"""

import dataclasses
import io
import json
import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from foreign import adopt
from fuzzed import TARGETS, all_of, copied, opened, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet import UserError, files, rundir
from resnet.data import manifest, shards
from resnet.data.formats import tfexample
from resnet.prepare import __main__ as prepare
from resnet.prepare import archive, check
from resnet.rundir import metrics
from resnet.training import checkpoint
from resnet.training.trained import read as read_weights

CASES = {
    "shard": 500,
    "jpeg": 150,
    "jpeg_in_tensorflow": 150,
    "manifest": 200,
    "classes": 50,
    "config": 250,
    "checkpoint": 150,
    "safetensors": 150,
    "npz": 50,
    "tar": 100,
    "training_words": 150,
    "prepare_words": 100,
}
SAMPLE = 8  # every so many of them in the default tests, but for those that take 0.1 s each
RARER = {"config": 25, "training_words": 15}
SECONDS, MEGABYTES = 10, {"jpeg": 700, "jpeg_in_tensorflow": 2000}  # of one input; else LITTLE
LITTLE = 200


def test_there_are_2000():
    assert sum(CASES.values()) == 2000


@pytest.fixture(scope="module")
def sound(prepared, tmp_path_factory):
    """A folder of 3 + 2 shards without a fault; tests copy it."""
    one = prepared({"cat": 12, "dog": 12, "emu": 12}, tmp_path_factory.mktemp("sound") / "one")
    words = ["source=folder", f"dir={one}-images", f"out={one.parent / 'shards'}", "val_fraction=0.5", "processes=1"]
    prepare.do(prepare.parse([*words, "train_shards=3", "val_shards=2"]))
    made = manifest.read(one.parent / "shards")
    made["options"]["dir"], made["listing"] = "/images", "0" * 64  # the same bytes wherever this runs
    (one.parent / "shards" / manifest.NAME).write_text(json.dumps(made, indent=1))
    return one.parent / "shards"


@pytest.fixture
def target(request, tmp_path, sound, run_at, encoded, photo, tarred):
    """`case(draw)` of the target that is asked for: what became of one damaged input, in a word or two."""
    return TARGETS[request.param](tmp_path, sound=sound, run_at=run_at, jpeg=encoded(photo(3, 160, 120)), tarred=tarred)


# --------------------------------------------------------------------------------------------------------------------- tests
def peak(anew=False):
    """The most memory this process has had, in MB; `anew`: from here on."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1000


def injected(name, case, numbers):
    """Run the cases of these numbers; a line of figures."""
    came, longest, began = Counter(), 0.0, time.perf_counter()
    before = peak(anew=True)
    for number in numbers:
        used = time.process_time()
        try:
            came[case(random.Random(f"{name} {number}"))] += 1
        except BaseException:
            print(f"{name} {number}")
            raise
        longest = max(longest, time.process_time() - used)
    grown = peak() - before
    told = ", ".join(f"{count} {what}" for what, count in came.most_common())
    print(
        f"\n{name}: {len(numbers)} inputs: {told}; {time.perf_counter() - began:.1f} s, {longest:.2f} s the longest, "
        f"{grown:.0f} MB at most",
        flush=True,
    )
    assert came.total() == len(numbers) and came.total() > came["as before"] and longest < SECONDS
    assert grown < MEGABYTES.get(name, LITTLE)


EACH = pytest.mark.parametrize(
    ("target", "name"), [(name, name) for name in CASES], indirect=["target"], ids=list(CASES)
)


@EACH
def test_a_sample_is_refused_in_a_line_or_comes_to_the_same(target, name):
    injected(name, target, range(0, CASES[name], RARER.get(name, SAMPLE)))


@pytest.mark.slow
@EACH
def test_all_are_refused_in_a_line_or_come_to_the_same(target, name):
    injected(name, target, range(CASES[name]))


# ---------------------------------------------------------------------------------------------------------------- properties
PROPERTY = settings(max_examples=100, deadline=None, database=None, derandomize=True)
RECORDS = st.lists(st.binary(max_size=40), min_size=1, max_size=6)


@PROPERTY
@given(records=RECORDS, bit=st.integers(0, 10**6))
def test_any_records_come_back_and_no_flipped_bit_stays_unseen(tmp_path_factory, records, bit):
    path = tmp_path_factory.mktemp("bits") / "shard"
    path.write_bytes(whole := b"".join(map(shards.encode_record, records)))
    assert all_of(index_of(path)) == records
    spoilt = bytearray(whole)
    spoilt[bit // 8 % len(whole)] ^= 1 << bit % 8
    path.write_bytes(spoilt)
    with pytest.raises(UserError, match=str(path)):
        all_of(index_of(path))


def index_of(path):
    """As indexes.index(), past its cache."""
    offsets, lengths = (np.array(part, np.int64) for part in shards.scan(str(path)))
    return shards.Index((str(path),), np.zeros(len(offsets), np.int32), offsets, lengths)


@settings(PROPERTY, max_examples=40)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=8), room=st.integers(0, 150), again=st.booleans())
def test_a_log_on_a_disk_of_any_size_is_a_beginning_of_what_was_written_and_whole_with_room(
    tmp_path_factory, texts, room, again
):
    path, written, write = tmp_path_factory.mktemp("log") / "lines", [0], os.write
    texts = [json.dumps(text) for text in texts]
    whole = "".join(f"{text}\n" for text in texts).encode()

    def crammed(file, data):
        part = data[: room - written[0]]
        if not part:
            raise OSError(28, "No space left on device")
        written[0] += len(part)
        return write(file, part)

    with pytest.MonkeyPatch.context() as patch:
        log = metrics.MetricsFile(path)
        patch.setattr(os, "write", crammed)
        for text in texts:
            log.append(text)
        if again:
            patch.setattr(os, "write", write)
        trouble = log.close()
    left = path.read_bytes()
    assert whole.startswith(left) and (not left or left.endswith(b"\n"))
    assert (trouble is None) == (left == whole) and (left == whole or not again)


@PROPERTY
@given(names=st.lists(st.text(st.characters(exclude_categories=()), min_size=1, max_size=12), min_size=1, max_size=4))
def test_any_names_of_classes_come_back(names):
    assert files.read_classes("".join(f"{files.escape(name)}\n" for name in names)) == names


@pytest.fixture(scope="module")
def run(run_at, tmp_path_factory):
    """Some run."""
    return run_at(tmp_path_factory.mktemp("run"))


@settings(PROPERTY, max_examples=8)  # each reads YAML twice
@given(name=st.text(st.characters(exclude_categories=()), min_size=1, max_size=20))
def test_a_run_of_any_name_is_loaded_as_it_was_saved_or_refused(tmp_path_factory, run, name):
    folder = tmp_path_factory.mktemp("named")
    run.track.run_name, run.recipe = name, name
    _, error = refused(lambda: rundir.save(run, folder / "run"))
    assert error is None or "\x85" in name
    assert error or rundir.load(folder / "run") == run


# ------------------------------------------------------------------------------------------------- what no accident would hit
def test_records_that_are_gone_or_too_many_are_told_by_the_manifest(tmp_path, sound):
    folder = copied(sound, tmp_path)
    path = sorted(folder.rglob("img_train-*"))[1]
    good = path.read_bytes()
    offsets, lengths = shards.scan(str(path))
    last = good[offsets[-1] - 12 : offsets[-1] + lengths[-1] + 4]
    for data, count in ((good[: -len(last)], len(offsets) - 1), (good + last, len(offsets) + 1)):
        path.write_bytes(data)
        with pytest.raises(
            UserError, match=f"^{path}: {count} records, and manifest.json says {len(offsets)}; copy or prep"
        ):
            opened(folder)
    (folder / manifest.NAME).unlink()  # shards of others have none
    assert opened(folder).train_images == 19


def test_an_image_that_would_fill_the_memory_is_refused_and_named(tmp_path, encoded, photo):
    """A header of 1 x 60,000 pixels: evaluation would scale it to 256 x 15,360,000."""
    import tensorflow as tf

    from resnet.data import pipeline, reading

    ribbon = bytearray(encoded(photo(1)))
    at = ribbon.index(b"\xff\xc0") + 5
    ribbon[at : at + 4] = (1).to_bytes(2, "big") + (60_000).to_bytes(2, "big")
    for half, image in (("train", encoded(photo(1))), ("validation", bytes(ribbon))):
        (tmp_path / half).mkdir()
        record = tfexample.encode({"image/encoded": image, "image/class/label": 1})
        (tmp_path / half / f"{half}-00000-of-00001").write_bytes(shards.encode_record(record))
    found, before = opened(adopt(tmp_path)), peak(anew=True)
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(pipeline.evaluation(found, 1))
    assert peak() - before < LITTLE
    told = str(reading.undecodable(found, 1, 0, 1, 64))
    assert "validation-00000-of-00001, byte 0: no image that can be decoded" in told and "100 times the other" in told


def test_an_archive_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    packed = io.BytesIO()
    np.savez(packed, **{"fc.bias": np.zeros(3), "fc.weight": np.zeros(3)})
    data = bytearray(packed.getvalue())
    for found in re.finditer(rb"PK\x01\x02", packed.getvalue()):  # the directory, where the sizes are
        data[found.start() + 24 : found.start() + 28] = (3_000_000_000).to_bytes(4, "little")
    (tmp_path / "w.npz").write_bytes(data)
    with pytest.raises(
        UserError, match=r"cannot be read \(6,000,000,000 bytes when unpacked; at most 4,294,967,296 are read\)"
    ):
        read_weights(str(tmp_path / "w.npz"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\n", "line 2: *a stands for something else"),
        ("a: " + "[" * 50_000, "line 1: more than 20 brackets within each other"),
        ("a: " + "x" * 200_000, "at most 100,000 are read"),
        ("a: 2021-13-45", "no such knob|Missing key|not in"),
        ("out: ${oc.env:HOME}/x", "line 1: ${oc.env:HOME}/x is not resolved"),
        ("out: !!python/object/apply:os.system ['touch PWNED']", "could not determine a constructor"),
    ],
)
def test_a_config_yaml_is_read_and_never_worked_out(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text)
    used = time.process_time()
    _, error = refused(lambda: rundir.load(tmp_path))
    assert any(part in error for part in said.split("|")) and time.process_time() - used < SECONDS
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\xff" * 10 + b"\xfe\x00", b"-0000001024\0"])
def test_a_tar_of_negative_sizes_ends(tmp_path, tarred, size):
    data = bytearray(tarred([("a.jpg", b"x" * 600, {}), ("b.jpg", b"y", {})]))
    data[124:136] = size
    block = data[:148] + b" " * 8 + data[156:512]
    data[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tar: "):
        archive.tar(str(tmp_path / "a.tar"))


def test_an_error_is_one_line_whatever_it_quotes():
    assert str(UserError("out=a\nb\x1b[2J\u2028c\x85: no")) == r"out=a\nb\x1b[2J\u2028c\x85: no"
    with pytest.raises(UserError) as caught:
        prepare.parse(["source=a\x1b]0;x\x07\n"])
    assert str(caught.value).isprintable()


def saved_twice(folder, value):
    """Two checkpoints of a network of one variable; what restores them."""
    import tensorflow as tf

    @dataclasses.dataclass
    class State:
        seconds: float = 1.5

    stored = tf.train.Checkpoint(network=tf.Variable([value]))
    with checkpoint.CheckpointWriter(folder, stored, 5) as writer:
        for step in (3, 6):
            stored.network.assign([float(step)])
            writer.save(step, step / 10, State())
    return stored


@pytest.mark.parametrize(
    "change", [('"step": 6', '"step": 9'), ('"top1": 0.6', '"top1": 0.9'), ("1.5", "9.5"), ('"seal"', '"sea1"')]
)
def test_a_checkpoint_with_another_step_in_it_is_set_aside_and_without_another_refused(tmp_path, change):
    stored = saved_twice(tmp_path, 0.0)
    commit = checkpoint.path_of(tmp_path, 6) / checkpoint.COMMIT
    text = commit.read_text()
    assert text.count(change[0]) == 1
    commit.write_text(text.replace(*change))
    saved, (note,) = checkpoint.restore(tmp_path, stored)
    assert (saved.step, saved.top1, stored.network.numpy()) == (3, 0.3, [3.0])
    assert note.startswith(
        "step-00000006 is damaged (ValueError: commit.json is not what was written); it was renamed bad-"
    )
    (checkpoint.path_of(tmp_path, 3) / "weights.index").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"no checkpoint is complete \(step-00000003 is damaged \(weights.index is not what was"
    ):
        checkpoint.restore(tmp_path, stored)


def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path):
    import tensorflow as tf

    saved_twice(tmp_path, 0.0)
    for other in (tf.Variable([1.0, 2.0]), tf.Module()):
        other.more = tf.Variable([1.0])
        with pytest.raises(UserError, match="step-00000006: of another network or optimizer"):
            checkpoint.restore(tmp_path, tf.train.Checkpoint(network=other))


def test_a_file_elsewhere_is_not_read_because_a_folder_names_it(tmp_path, sound):
    folder = copied(sound, tmp_path)
    made = json.loads((folder / manifest.NAME).read_text())
    for elsewhere in ("/dev/zero", "../secret", "a/../../b"):
        made["splits"]["train"]["shards"][0]["file"] = elsewhere
        (folder / manifest.NAME).write_text(json.dumps(made))
        with pytest.raises(UserError, match="is no file of this folder"):
            check.check(str(folder), deep=False, processes=1)
    place = checkpoint.path_of(tmp_path, 1)
    place.mkdir(parents=True)
    commit = {"step": 1, "top1": None, "state": {}, "sha256": {"/dev/zero": "0"}}
    (place / checkpoint.COMMIT).write_text(checkpoint.commit_text(commit))
    assert "not that of a checkpoint" in checkpoint.verify(checkpoint.list_checkpoints(tmp_path)[0])
