"""Samples in tars that Python's tarfile writes: what makes one, and every kind of damage."""

import io
import tarfile

import foreign as writers
import pytest

from resnet import UserError
from resnet.data.formats import numbering, tars

IMAGE = b"\xff\xd8 an image" * 90


def tar(*members, form=tarfile.GNU_FORMAT):
    """The bytes of a tar of (name, data) or (name, data, header)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data, *header in members:
            writers.add(archive, name, data, **dict(*header))
    return file.getvalue()


def samples(content):
    return list(tars.samples(io.BytesIO(content), len(content)))


def refused(content):
    with pytest.raises(tars.TarError) as caught:
        samples(content)
    return caught.value.at, str(caught.value)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("ending", ["jpg", "JPEG", "png", "webp", "bmp", "gif"])
def test_an_image_and_its_label_are_neighbours_of_one_name(form, ending):
    folder = "dir.with.dots" if form == tarfile.USTAR_FORMAT else "ü" * 300
    content = tar(
        (f"{folder}/a.{ending}", IMAGE), (f"{folder}/a.cls", b"7"), (f"{folder}/b.cls", b" 12\n"),
        (f"{folder}/b.seg.png", b"of another kind"), (f"{folder}/b.{ending}", IMAGE[:512]), form=form,
    )  # fmt: skip
    first, second = samples(content)
    assert (first.image, first.label, second.image, second.label) == (IMAGE, 7, IMAGE[:512], 12)
    for one in (first, second):
        assert content[one.offset : one.offset + len(one.image)] == one.image


def test_a_label_may_be_that_of_a_json_and_a_cls_comes_first():
    one, two = samples(
        tar(
            *(("a.json", b'{"label": 3, "filename": "x"}'), ("a.jpg", IMAGE)),
            *(("b.jpg", IMAGE), ("b.json", b'{"label": "cat"}'), ("b.cls", b"4")),
        )
    )
    assert (one.label, two.label) == (3, 4)


def test_what_is_no_sample_is_passed_over():
    content = tar(
        *(("README.md", b"x"), ("._a.jpg", b"of macOS"), ("__key__.jpg", b"x"), ("meta.json", b"no JSON")),
        *(("a", b"", {"type": tarfile.DIRTYPE}), ("a/x.jpg", IMAGE), ("a/x.cls", b"0"), ("notes.txt", b"x")),
    )
    assert [sample.label for sample in samples(content)] == [0]
    assert samples(tar()) == samples(b"") == []


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ([("a.jpg", IMAGE), ("b.cls", b"1")], "a has no label: no a.cls, nor a a.json with label, is its neighbour"),
        ([("a.cls", b"1"), ("b.jpg", IMAGE)], "a has a label and no neighbour with one of the endings jpg, "),
        ([("a.jpg", IMAGE), ("a.json", b'{"class": 1}')], "a has no label: "),
        (
            [("a.jpg", IMAGE), ("a.json", b'{"label": "cat"}')],
            "a.json: label 'cat' where the whole number of a class must be",
        ),
        ([("a.jpg", IMAGE), ("a.json", b'{"label": tru')], "a.json: damaged ("),
        ([("a.jpg", IMAGE), ("a.cls", b"cat")], "a.cls: b'cat' where the whole number of a class must be"),
        ([("a.jpg", IMAGE), ("a.cls", b"9" * 30)], "a.cls: b'9"),
        ([("a.jpg", IMAGE), ("a.cls", b"1"), ("a.png", IMAGE)], "a.png: the second image of its sample, after a.jpg"),
        ([("a.jpg", IMAGE), ("a.cls", b"1"), ("a.cls", b"1")], "a.cls: the second cls of its sample, after a.cls"),
        (
            [("a.jpg", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), ("a.cls", b"1")],
            "a has a label and no ",
        ),
        ([("a\n\x1b.jpg", IMAGE)], r"a\u000a\u001b has no label: "),
    ],
)
def test_a_sample_that_is_not_one_image_with_one_label_is_refused(members, line):
    assert refused(tar(*members))[1].startswith(line)


SOUND = tar(*((f"{n}.{end}", data) for n in range(4) for end, data in (("jpg", IMAGE), ("cls", b"1"))))
SIZE = 512 + 1024 + 512 + 512  # of one sample in it


@pytest.mark.parametrize("cut", [1, 400, 600, SIZE - 600, SIZE, 2 * SIZE, 4 * SIZE, 4 * SIZE + 100])
def test_a_tar_that_was_cut_off_is_refused_wherever_it_was_cut(cut):
    assert refused(SOUND[:cut])


@pytest.mark.parametrize("at", [0, 60, 130, 148, 257, 1536 + 3, 2 * SIZE + 10, 4 * SIZE + 5])
def test_a_changed_byte_of_a_header_is_noticed(at):
    assert refused(SOUND[:at] + bytes([SOUND[at] ^ 0x21]) + SOUND[at + 1 :])


def test_what_is_no_tar_is_refused():
    for content in (b"x", b"version https://git-lfs.github.com/spec/v1\n" * 99, IMAGE * 9):
        assert refused(content)[1].startswith("no sound tar (")


# ------------------------------------------------------------------------------------------------------------- numbering
@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["train-0.tar", "train-2.tar"], "data: 1 of 3 tars are missing, first number 1;"),
        (["train-2.tar", "train-3.tar"], "data: 1 of 3 tars are missing, first number 1;"),
        (
            ["a-train-0.tar", "b-train-1.tar"],
            r"data: tars of 2 sets lie here \(a-train-\*, b-train-\*, ...\); keep one",
        ),
        (["train-0.tar", "train-00.tar"], "data: two tars of the same number lie here"),
        (["train-0.tar", "train-copy.tar"], "data/train-copy.tar: has no number at its end"),
        (["n01440764.tar", "n01443537.tar"], "data: 1,443,535 of 1,443,537 tars are missing, first number 1;"),
    ],
)
def test_tars_are_numbered_without_a_gap(names, line):
    with pytest.raises(UserError, match=f"^{line}"):
        numbering.check_complete([f"data/{name}" for name in names])


def test_whole_sets_of_tars_are_not_refused():
    numbering.check_complete([f"data/x-train-{number:06d}.tar" for number in range(12)])
    numbering.check_complete([f"data/{number}.tar" for number in range(1, 4)])


def test_two_sets_of_shards_with_the_same_number_are_refused():
    names = [f"data/{name}-train.tfrecord-0000{number}-of-00002" for name in ("cats", "dogs") for number in range(2)]
    with pytest.raises(
        UserError, match=r"^data: shards of 2 sets lie here \(cats-train.tfrecord, dogs-train.tfrecord\)"
    ):
        numbering.check_complete(names)
