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
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet import UserError, cli, files, rundir
from resnet.config import compose, errors, fingerprint, help
from resnet.config.data import OnCorrupt, Records
from resnet.config.run import VARIANTS
from resnet.data import manifest, shards, source, tfexample
from resnet.optim import schedule
from resnet.prepare import __main__ as prepare
from resnet.prepare import archive, check, images
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
VALUES = [
    "",
    "0",
    "-1",
    "1",
    "3",
    "0.5",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "null",
    "true",
    "[]",
    "{}",
    "[1,2,3,4]",
    "'x'",
    "x y",
    "9" * 30,
    "9" * 400,
    "1" + "0" * 5000,
    "..",
    "../../x",
    "/",
    "~",
    "~nobody",
    "${batch}",
    "${oc.env:HOME}",
    "???",
    "!!python/object/apply:os.system [true]",
    "[" * 500,
    "{a: " * 200,
    "\\",
    '"',
    "${",
    "a,b",
    "=",
    "gs://x/y",
    "a:b",
    "\u2028",
    "é",
]


def test_there_are_2000():
    assert sum(CASES.values()) == 2000


# ------------------------------------------------------------------------------------------------------------------- damage
def damaged(data, draw):
    """`data` after one to three accidents."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at, length = draw.randrange(len(data) + 1), draw.choice((1, 2, 4, 8, 30, 500))
        hit, noise = data[at : at + length], draw.randbytes(length)
        data = draw.choice(
            (
                data[:at] + bytes([hit[0] ^ 1 << draw.randrange(8)]) + data[at + 1 :] if hit else b"",  # a bit
                data[:at] + noise + data[at + length :],
                data[:at] + bytes(length) + data[at + length :],
                data[:at] + b"\xff" * length + data[at + length :],
                data[:at] + noise + data[at:],  # put between
                data[:at] + data[at + length :],  # lost
                data[:at] + hit + data[at:],  # twice
                data[:at],  # cut short
            )
        )
    return data


def rewritten(data, draw):
    """A text, its numbers and words replaced, lines lost or doubled, or damaged as any bytes are."""
    if draw.random() < 0.4:
        return damaged(data, draw)
    text = data.decode()
    kind = draw.random()
    if kind < 0.6:
        found = list(re.finditer(r"-?\d[\d.e-]*|[A-Za-z_/.]+", text))
        spot = draw.choice(found)
        return (text[: spot.start()] + draw.choice(VALUES) + text[spot.end() :]).encode()
    rows = text.splitlines(keepends=True)
    first, other = draw.randrange(len(rows)), draw.randrange(len(rows))
    rows[first : first + 1] = draw.choice(([], [rows[first]] * 2, [rows[other]]))
    return "".join(rows).encode()


def refused(work):
    """(what `work` returned, None) or (None, its UserError), which must be one line."""
    told = None
    try:
        return work(), None
    except UserError as error:
        told = str(error)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", told) and 0 < len(told) < 20_000, told
    return None, told


# ------------------------------------------------------------------------------------------------------------------- targets
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


def opened(folder, **knobs):
    """The shards in a folder."""
    return source.open_source(Records(name="folder", dir=str(folder), classes=3, **knobs))


def copied(sound, tmp_path):
    """A folder of shards to spoil."""
    shutil.copytree(sound, tmp_path / "copy")
    return tmp_path / "copy"


def all_of(half):
    """Every record."""
    return [shards.read(half, number) for number in range(len(half))]


def shard(tmp_path, sound, **_):
    """Damaged bytes, and whole records lost or doubled."""
    folder = copied(sound, tmp_path)
    files = sorted(path for path in folder.rglob("*-of-*"))
    good = {path: path.read_bytes() for path in files}
    rows = {str(folder / row["file"]): row for row in manifest.shards_of(manifest.read(folder))}
    before = opened(folder)
    wanted = all_of(before.train), all_of(before.val)

    def spoilt(data, draw):
        offsets, lengths = shards.scan(str(path_of[0]))
        frames = [data[at - 12 : at + length + 4] for at, length in zip(offsets, lengths, strict=True)]
        if draw.random() < 0.85:
            return damaged(data, draw)
        place = draw.randrange(len(frames))
        frames[place : place + 1] = draw.choice(([], [frames[place]] * 2))
        return b"".join(frames)

    path_of = files[:1]

    def case(draw):
        path_of[0] = path = draw.choice(files)
        path.write_bytes(spoilt(good[path], draw))
        same = path.read_bytes() == good[path]
        seen = check.look(check.Job(str(path), 3, deep=False))
        faults = [*seen.faults, *check.differences(rows[str(path)], seen)]
        assert same == (not faults), "prepare check= must find it"
        read, error = refused(lambda: (now := opened(folder)) and (all_of(now.train), all_of(now.val)))
        if read:  # a silent change of what training reads
            assert read == wanted and same
        skipping, _ = refused(lambda: opened(folder, on_corrupt=OnCorrupt.skip, max_corrupt=1000))
        if skipping:
            for reader, records in zip((skipping.train_reader, skipping.val_reader), wanted, strict=True):
                got, _ = refused(lambda: [reader(number) for number in range(len(reader.records))])  # noqa: B023
                sane = [number for number in range(len(records)) if reader.is_intact(number)]
                assert len(records) == len(reader.records) and (not got or all(got[n] == records[n] for n in sane))
        path.write_bytes(good[path])
        return "refused" if error else "as before"

    return case


def jpeg(_tmp_path, jpeg, **_):
    """What prepare makes of an image file."""

    def case(draw):
        try:
            made = images.convert(damaged(jpeg, draw), draw.choice((None, 64)))
        except images.Broken:
            return "refused"
        with Image.open(io.BytesIO(made.encoded)) as image:
            assert image.size == (made.width, made.height) and made.width * made.height <= images.MAX_PIXELS
        return "decoded"

    return case


def jpeg_in_tensorflow(_tmp_path, jpeg, **_):
    """What training and evaluation make of a record whose CRC is right and whose image is not."""
    import tensorflow as tf

    from resnet.data import pipeline

    knobs = Records(name="folder", dir="x", classes=3, image_size=32, eval_resize=40)
    signature = [tf.TensorSpec([], tf.string), tf.TensorSpec([4 * pipeline.TRIES], tf.float32)]
    seen = tf.function(
        lambda image, draws: (pipeline.random_crop(image, draws, knobs, 32), pipeline.centre_crop(image, knobs)),
        signature,
    )

    def case(draw):
        draws = np.array([draw.random() for _ in range(4 * pipeline.TRIES)], np.float32)
        try:
            made = seen(damaged(jpeg, draw), draws)
        except tf.errors.InvalidArgumentError:
            return "refused"
        assert all(image.shape == (32, 32, 3) and image.dtype == tf.uint8 for image in made)
        return "decoded"

    return case


def counts(made):
    """All that a manifest counts."""
    return made["classes"], made["splits"]


def of_manifest(tmp_path, sound, **_):
    """manifest.json, held against the shards as training and as `prepare check=` do."""
    folder = copied(sound, tmp_path)
    path, good = folder / manifest.NAME, (sound / manifest.NAME).read_bytes()
    before = json.loads(good)

    def case(draw):
        path.write_bytes(rewritten(good, draw))
        made, error = refused(lambda: manifest.read(folder))
        found, other = refused(lambda: opened(folder))
        if found:
            assert (found.train_images, found.eval_images) == (18, 18)
        if made and counts(made) != counts(before):  # a checksum, or a name: nothing that sums could tell
            told, wrong = refused(lambda: check.audit(folder, deep=False, processes=1))
            assert told is None and wrong
            return "refused by check="
        return "refused" if error or other else "as before"

    return case


def classes(tmp_path, sound, **_):
    """classes.txt, from which data=folder counts the classes."""
    folder = copied(sound, tmp_path)
    path, good = folder / files.CLASSES, (sound / files.CLASSES).read_bytes()

    def case(draw):
        path.write_bytes(damaged(good, draw))
        found, _ = refused(lambda: opened(folder))
        if found:
            assert (
                source.class_names(found.settings) == ["cat", "dog", "emu"] or path.read_bytes().split() != good.split()
            )
            assert len(source.class_names(found.settings)) == 3
        return "as before" if found else "refused"

    return case


def config(tmp_path, run_at, **_):
    """config.yaml of a run's folder: people may edit it, so other values stand, but not unseen by who starts the run again."""
    run = run_at(
        tmp_path, "model=resnet50", "optim=lars", "ema.half_life_steps=100", "finetune.lr_multipliers={fc: 10}"
    )
    out = Path(run.out)
    run.out, run.data.dir, run.track.uri, run.track.run_name = "/runs/1", "/digits", "sqlite:////runs/mlflow.db", "1"
    rundir.save(run, out)
    path, before = out / "config.yaml", fingerprint.flat(run)
    good = path.read_bytes()

    def case(draw):
        path.write_bytes(rewritten(good, draw))
        found, _ = refused(lambda: rundir.load(out))
        if found is None:
            return "refused"
        now = fingerprint.flat(found)
        _, told = refused(lambda: rundir.check_folder(run, out))
        held = [name for name in before if not fingerprint.may_change_on_resume(name)]
        assert bool(told) == any(now.get(name) != before[name] for name in held), told
        return "another run, told apart" if told else "as before"

    return case


def of_checkpoint(tmp_path, **_):
    """commit.json and the files it vouches for."""
    place = checkpoint.path_of(tmp_path, 7)
    place.mkdir(parents=True)
    noise = random.Random(1).randbytes
    files = {"weights.index": noise(300), "weights.data-00000-of-00001": noise(3000)}
    for name, data in files.items():
        (place / name).write_bytes(data)
    state = {"best_top1": 0.5, "seconds": 12.25, "speeds": [1.0, 2.5], "scores": {"top1": 0.5, "seen": 360}}
    digests = {name: checkpoint.digest(place / name) for name in files}
    text = checkpoint.commit_text(
        {"schema": 1, "resnet": "0.1.0", "step": 7, "top1": 0.5, "state": state, "sha256": digests}
    )
    files[checkpoint.COMMIT] = text.encode()

    def case(draw):
        name = draw.choice((*files, checkpoint.COMMIT))
        (place / name).write_bytes((rewritten if name == checkpoint.COMMIT else damaged)(files[name], draw))
        same = (place / name).read_bytes() == files[name]
        (found,) = checkpoint.list_checkpoints(tmp_path)
        wrong, newer = refused(lambda: checkpoint.verify(found))
        (place / name).write_bytes(files[name])
        if wrong or newer:
            return "refused"
        assert (found.step, found.top1, found.state) == (7, 0.5, state) and (same or name == checkpoint.COMMIT)
        return "as before"

    (place / checkpoint.COMMIT).write_bytes(files[checkpoint.COMMIT])
    return case


def of_weights(ending):
    """A file of weights, as init= reads it. Neither format has a checksum of its own: other numbers may stand in it."""

    def make(tmp_path, **_):
        from safetensors.numpy import save

        draw = np.random.default_rng(1)
        shapes = {"conv1.weight": (4, 3, 7, 7), "bn1.weight": (4,), "fc.weight": (10, 4), "fc.bias": (10,)}
        tensors = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        path, packed = tmp_path / f"weights{ending}", io.BytesIO()
        np.savez_compressed(packed, **tensors)
        good = save(tensors) if ending == ".safetensors" else packed.getvalue()

        def case(draw):
            path.write_bytes(damaged(good, draw))
            found, error = refused(lambda: read_weights(str(path)))
            if error:
                return "refused"
            assert all(np.isfinite(tensor).all() for tensor in found.values()) and "fc.bias" in found
            same = {name: tensor.shape for name, tensor in found.items()} == shapes
            return "of these shapes" if same else "of other shapes, which put() compares"

        return case

    return make


def tar(tmp_path, jpeg, tarred, **_):
    """A tar of images."""
    members = [(f"n{number}/{number}.JPEG", jpeg[: 300 + number], {}) for number in range(8)]
    good, path = tarred([*members, ("../up.JPEG", b"x", {})]), tmp_path / "images.tar"

    def case(draw):
        data = bytearray(damaged(good, draw))
        if draw.random() < 0.3:  # a header's size, as the bytes of a negative number or of a huge one
            at = 512 * draw.randrange(len(data) // 512 or 1) + 124
            data[at : at + 12] = draw.choice((b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"77777777777\0", b"-0000000512\0"))
        path.write_bytes(data)
        found, _ = refused(lambda: archive.tar(str(path)))
        if found is None:
            return "refused"
        for entry in found.entries:
            assert ".." not in entry.name.split("/") and not entry.name.startswith("/")
            assert 0 <= entry.offset <= entry.offset + entry.size <= len(data)
        return "as before" if len(found.entries) == len(members) else "fewer or other members, all whole"

    return case


def training_words(tmp_path, run_at, **_):
    """Words on the command line of resnet.train, up to the point where TensorFlow would be imported."""
    compose.register()
    names = [
        *fingerprint.flat(run_at(tmp_path)),
        *VARIANTS,
        "recipe",
        "sweep",
        "track.uri",
        "hydra.run.dir",
        "data.dir",
    ]
    options = [f"{group}={name}" for group, name, _ in help.options() if group != "sweep"]

    def case(draw):
        words = draw.sample(options, draw.choice((0, 0, 1)))
        for _ in range(draw.choice((1, 1, 2))):
            name = draw.choice(names) if draw.random() < 0.9 else draw.choice(VALUES)
            words.append(draw.choice(("", "", "", "", "+", "++", "~")) + name + "=" + draw.choice(VALUES))

        def start():
            with errors.explain():
                return schedule.plan(run_at(tmp_path, *words), 1437)

        argv, sys.argv = sys.argv, ["resnet.train", *words]
        try:
            plan, error = refused(start)
        finally:
            sys.argv = argv
        assert plan is None or plan.total_steps > 0
        return "refused" if error else "accepted"

    return case


def prepare_words(_tmp_path, **_):
    """Words on the command line of resnet.prepare."""
    commands = list(prepare.COMMANDS)
    names = sorted({name for kind in prepare.COMMANDS.values() for name in cli.hints(kind)})

    def case(draw):
        command = draw.choice(commands)
        words = [command if "=" in command else f"{command}=x", "out=y", "dir=z"]
        for _ in range(draw.choice((1, 2))):
            words.append(f"{draw.choice(names)}={draw.choice(VALUES)}")
        if draw.random() < 0.2:
            words = [damaged(word.encode(), draw).decode(errors="replace") for word in words]
        made, error = refused(lambda: prepare.parse([word for word in words if draw.random() < 0.9]))
        assert error or dataclasses.is_dataclass(made)
        return "refused" if error else "accepted"

    return case


TARGETS = {
    "shard": shard,
    "jpeg": jpeg,
    "jpeg_in_tensorflow": jpeg_in_tensorflow,
    "manifest": of_manifest,
    "classes": classes,
    "config": config,
    "checkpoint": of_checkpoint,
    "safetensors": of_weights(".safetensors"),
    "npz": of_weights(".npz"),
    "tar": tar,
    "training_words": training_words,
    "prepare_words": prepare_words,
}


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
    """As shards.index(), past its cache."""
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

    from resnet.data import pipeline

    ribbon = bytearray(encoded(photo(1)))
    at = ribbon.index(b"\xff\xc0") + 5
    ribbon[at : at + 4] = (1).to_bytes(2, "big") + (60_000).to_bytes(2, "big")
    for half, image in (("train", encoded(photo(1))), ("validation", bytes(ribbon))):
        (tmp_path / half).mkdir()
        record = tfexample.encode({"image/encoded": image, "image/class/label": 1})
        (tmp_path / half / f"{half}-00000-of-00001").write_bytes(shards.encode_record(record))
    found, before = opened(tmp_path), peak(anew=True)
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(pipeline.evaluation(found, 1))
    assert peak() - before < LITTLE
    told = str(pipeline.undecodable(found, 1, 0, 1, 64))
    assert "validation-00000-of-00001, byte 0: no JPEG that can be decoded" in told and "100 times the other" in told


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
        UserError, match=r"no checkpoint is whole \(step-00000003 is damaged \(weights.index is not what was"
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
            check.audit(folder, deep=False, processes=1)
    place = checkpoint.path_of(tmp_path, 1)
    place.mkdir(parents=True)
    commit = {"step": 1, "top1": None, "state": {}, "sha256": {"/dev/zero": "0"}}
    (place / checkpoint.COMMIT).write_text(checkpoint.commit_text(commit))
    assert "not that of a checkpoint" in checkpoint.verify(checkpoint.list_checkpoints(tmp_path)[0])
