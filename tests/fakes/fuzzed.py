"""What test_fuzz.py damages, and what may become of it: `TARGETS[name](tmp_path, ...)` is `case(draw)` of one damaged input."""

import dataclasses
import io
import json
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from resnet import UserError, cli, files, rundir
from resnet.config import compose, errors, fingerprint, help
from resnet.config.data import OnCorrupt, Records
from resnet.config.run import VARIANTS
from resnet.data import images, manifest, shards, source
from resnet.optim import schedule
from resnet.prepare import __main__ as prepare
from resnet.prepare import archive, check
from resnet.training import checkpoint
from resnet.training.trained import read as read_weights

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
        faults = check.read((str(path), rows[str(path)]), 3, deep=False).faults
        assert same == (not faults), "prepare check= must find it"
        read, error = refused(lambda: (now := opened(folder)) and (all_of(now.train), all_of(now.val)))
        if read:  # a silent change of what training reads
            assert read == wanted and same
        skipping, _ = refused(lambda: opened(folder, on_corrupt=OnCorrupt.skip, max_corrupt=1000))
        if skipping:
            for reader, records in zip((skipping.train_reader, skipping.val_reader), wanted, strict=True):
                got, _ = refused(lambda: [reader(number) for number in range(len(reader.records))])  # noqa: B023
                sane = [number for number in range(len(records)) if number not in reader.corrupt]
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
            told, wrong = refused(lambda: check.check(str(folder), deep=False, processes=1))
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
    (out / "checkpoints" / "step-00000001").mkdir(parents=True)
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
