"""Listing tars and folders: every image's place, nothing that has no business there, and damage told by file and byte."""

import contextlib
import gzip
import lzma
import os
import random
import tarfile

import pytest

from resnet import UserError
from resnet.prepare import archive
from resnet.prepare.archive import Entry


def written(path, data):
    path.write_bytes(data)
    return str(path)


# -------------------------------------------------------------------------------------------------------------------- tars
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_image_of_a_tar_is_found_in_place(tmp_path, tarred, form):
    long = "folder/" * 30 + "ü" * 60 + ".jpeg"
    names = ["b.JPEG", "a.jpg", "c/d.png", "./e.webp", *([long] if form != tarfile.USTAR_FORMAT else [])]
    data = {name: os.urandom(700 + number) for number, name in enumerate(names)}
    path = written(tmp_path / "x.tar", tarred([(name, data[name], {}) for name in names], form))
    found = archive.tar(path)
    assert not found.refused
    assert [entry.name for entry in found.entries] == sorted(name.removeprefix("./") for name in names)
    for entry in found.entries:
        assert archive.read(entry) == data.get(entry.name, data.get(f"./{entry.name}"))


def test_a_tar_inside_a_tar_is_read_where_it_lies(tmp_path, tarred):
    inner = {f"{name}.tar": tarred([(f"{name}{n}.jpg", f"{name}{n}".encode(), {}) for n in range(3)]) for name in "ab"}
    path = written(tmp_path / "x.tar", tarred([(name, data, {}) for name, data in inner.items()]))
    for member, _ in archive.members(path):
        found = archive.tar(path, member.offset, member.size)
        letter = member.name[0]
        assert [archive.read(entry).decode() for entry in found.entries] == [f"{letter}{n}" for n in range(3)]


@pytest.mark.parametrize(
    ("name", "header", "reason"),
    [
        ("a.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a link"),
        ("a.jpg", {"type": tarfile.SYMTYPE, "linkname": "b.jpg"}, "a link"),
        ("a.jpg", {"type": tarfile.LNKTYPE, "linkname": "b.jpg"}, "a link"),
        ("a.jpg", {"type": tarfile.CHRTYPE}, "not a regular file"),
        ("a.jpg", {"type": tarfile.FIFOTYPE}, "not a regular file"),
        ("/etc/a.jpg", {}, "an absolute name"),
        ("../a.jpg", {}, "a name that climbs out of the archive"),
        ("a/../../../b.jpg", {}, "a name that climbs out of the archive"),
        ("./../a.jpg", {}, "a name that climbs out of the archive"),
        ("b.jpg", {}, "a second file of this name"),
        ("./b.jpg", {}, "a second file of this name"),
    ],
)
def test_what_has_no_business_in_a_tar_is_refused_and_the_rest_is_not(tmp_path, tarred, name, header, reason):
    found = archive.tar(
        written(tmp_path / "x.tar", tarred([("b.jpg", b"b", {}), (name, b"", header), ("c.jpg", b"c", {})]))
    )
    assert [entry.name for entry in found.entries] == ["b.jpg", "c.jpg"]
    assert found.refused == [(name.removeprefix("./"), reason)]
    assert list(tmp_path.iterdir()) == [tmp_path / "x.tar"]


def test_dots_within_a_name_climb_nowhere(tmp_path, tarred):
    path = written(tmp_path / "x.tar", tarred([("a..b/c...jpg", b"1", {}), ("..d.jpg", b"2", {})]))
    assert [entry.name for entry in archive.tar(path).entries] == ["a..b/c...jpg"]  # the other is hidden, not refused
    assert not archive.tar(path).refused


def test_folders_are_passed_over_and_other_files_counted_by_their_ending(tmp_path, tarred):
    members = [
        ("d", b"", {"type": tarfile.DIRTYPE}),
        ("a.TXT", b"", {}),
        ("b.xml", b"", {}),
        ("c.xml", b"", {}),
        ("README", b"", {}),
        ("d/._x.jpg", b"", {}),
        ("d/x.JPG", b"1", {}),
    ]
    found = archive.tar(written(tmp_path / "x.tar", tarred(members)))
    assert [entry.name for entry in found.entries] == ["d/x.JPG"]
    assert found.ignored == {".txt": 1, ".xml": 2, "no ending": 1, "hidden": 1}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda _: b"", "empty file"),
        (lambda tar: gzip.compress(tar), r"compressed \(gzip\).*unpack it to a plain tar"),
        (lambda tar: lzma.compress(tar), r"compressed \(xz\)"),
        (lambda tar: b"BZh91AY" + tar, r"compressed \(bzip2\)"),
        (lambda tar: b"PK\x03\x04" + tar, r"compressed \(zip\)"),
        (lambda _: b"<html>404</html>" * 100, "not a tar"),
        (lambda _: b"hello", "not a tar"),
        (lambda tar: tar[:5000], "cut short at byte 5,000"),
        (lambda tar: tar[:1700], "cut short at byte 1,700"),
        (lambda tar: tar[:1536], "cut short at byte 1,536"),
        (lambda tar: tar[: 3 * 1536], "cut short at byte 4,608"),  # all members, but not the mark of the end
        (lambda tar: tar[:1536] + b"\x99" * 512 + tar[2048:], "damaged header at byte 1,536"),
        (lambda tar: tar[:1536] + tar[1540:], "damaged header at byte 1,536"),
    ],
)
def test_damage_is_told_with_the_file_and_the_byte(tmp_path, tarred, data, said):
    tar = tarred([(f"{number}.jpg", bytes([number]) * 900, {}) for number in range(3)])
    path = written(tmp_path / "x.tar", data(tar))
    with pytest.raises(UserError, match=f"^{path}: {said}"):
        archive.tar(path)


def test_a_missing_tar_is_told(tmp_path):
    with pytest.raises(UserError, match=r"x.tar: cannot be read \(No such file"):
        archive.tar(str(tmp_path / "x.tar"))


def test_an_inner_tar_ends_where_its_outer_one_says(tmp_path, tarred):
    inner = tarred([("a.jpg", b"a" * 900, {}), ("b.jpg", b"b" * 900, {})])
    path = written(tmp_path / "x.tar", tarred([("a.tar", inner, {}), ("c.tar", inner, {})]))
    first, _ = next(archive.members(path))
    for cut in (0, 700, 1536, 2000, 3000):
        with pytest.raises(UserError, match=rf"x.tar \(the tar inside it at byte 512\): .*{first.offset + cut:,}"):
            archive.tar(path, first.offset, cut)


def test_no_damage_brings_anything_but_a_user_error(tmp_path, tarred):
    tar = tarred([(f"{number}.jpg", b"x" * 300, {}) for number in range(4)], tarfile.PAX_FORMAT)
    draw = random.Random(0)
    for number in range(300):
        damaged = bytearray(tar)
        for _ in range(draw.randrange(1, 5)):
            damaged[draw.randrange(5000)] = draw.randrange(256)
        path = written(tmp_path / f"{number}.tar", bytes(damaged))
        with contextlib.suppress(UserError):
            assert all(entry.offset + entry.size <= len(tar) for entry in archive.tar(path).entries)


def test_a_million_members_are_not_kept(tmp_path, tarred, monkeypatch):
    kept, next_of = [], tarfile.TarFile.next
    monkeypatch.setattr(tarfile.TarFile, "next", lambda tar: (kept.append(len(tar.members)), next_of(tar))[1])
    archive.tar(written(tmp_path / "x.tar", tarred([(f"{number}.jpg", b"", {}) for number in range(50)])))
    assert max(kept) <= 1


# ----------------------------------------------------------------------------------------------------------------- folders
def test_every_image_below_a_folder_is_found(tmp_path):
    names = ["b.jpg", "A.JPeG", "deep/er/c.webp", "ü.png", "new\nline.bmp", "a'\"b.jpg"]
    for name in [*names, "notes.txt", ".hidden.jpg", ".git/x.jpg", "Thumbs.db"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = archive.folder(str(tmp_path), str(tmp_path))
    assert [entry.name for entry in found.entries] == sorted(names, key=str.encode)
    assert [archive.read(entry).decode() for entry in found.entries] == sorted(names, key=str.encode)
    assert found.ignored == {".txt": 1, "hidden": 2}


def test_a_name_that_is_no_utf8_is_a_name(tmp_path):
    (tmp_path / os.fsdecode(b"\xff\xfe.jpg")).write_text("x")
    (entry,) = archive.folder(str(tmp_path), str(tmp_path)).entries
    assert archive.raw(entry.name) == b"\xff\xfe.jpg"
    assert archive.read(entry) == b"x"


def test_links_are_followed_within_the_tree_only(tmp_path):
    root, outside = tmp_path / "tree", tmp_path / "outside"
    (root / "cat").mkdir(parents=True)
    (outside / "more").mkdir(parents=True)
    for path in (root / "real.jpg", outside / "secret.jpg", tmp_path / "tree-2.jpg"):
        path.write_text(path.name)
    for name, target in {
        "inside.jpg": root / "real.jpg",
        "relative.jpg": "../real.jpg",
        "out.jpg": outside / "secret.jpg",
        "climbing.jpg": "../../outside/secret.jpg",
        "beside.jpg": tmp_path / "tree-2.jpg",
        "broken.jpg": root / "nothing",
        "folder": outside / "more",
        "loop": root,
        "itself.jpg": root / "cat" / "itself.jpg",
    }.items():
        (root / "cat" / name).symlink_to(target)
    os.mkfifo(root / "cat" / "pipe.jpg")
    found = archive.folder(str(root / "cat"), str(root))
    assert [entry.name for entry in found.entries] == ["inside.jpg", "relative.jpg"]
    assert dict(found.refused) == {
        "out.jpg": "a link that leads out of the tree (links=follow reads it)",
        "climbing.jpg": "a link that leads out of the tree (links=follow reads it)",
        "beside.jpg": "a link that leads out of the tree (links=follow reads it)",
        "folder": "a link that leads out of the tree (links=follow reads it)",
        "loop": "a link to a folder (links=follow reads it)",
        "broken.jpg": "a broken link",
        "itself.jpg": "a broken link",
        "pipe.jpg": "not a regular file",
    }
    (outside / "more" / "deep.jpg").write_text("deep")
    (outside / "more" / "up").symlink_to(outside / "more")
    found = archive.folder(str(root / "cat"), str(root), follow=True)
    inside = ["beside.jpg", "climbing.jpg", "folder/deep.jpg", "inside.jpg", "out.jpg", "relative.jpg"]
    assert [entry.name for entry in found.entries] == inside
    assert archive.read(found.entries[2]) == b"deep"
    assert dict(found.refused) == {
        "folder/up": "a link to a folder that it lies in",
        "loop": "a link to a folder that it lies in",
        "broken.jpg": "a broken link",
        "itself.jpg": "a broken link",
        "pipe.jpg": "not a regular file",
    }


def test_a_file_that_begins_as_an_image_is_one_whatever_its_ending(tmp_path, photo, encoded, tarred, monkeypatch):
    data = {form: encoded(photo(1), form) for form in ("JPEG", "PNG", "TIFF")}
    members = {
        "a": data["JPEG"],
        "b.JPG_large": data["PNG"],
        "raw.cr2": data["TIFF"],
        "c.txt": data["JPEG"],
        "d.bin": b"no",
    }
    for name, content in members.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "e.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf")
    monkeypatch.setattr(archive.images, "decodes", lambda form: form != "HEIF")
    found = archive.folder(str(tmp_path), str(tmp_path))
    assert [entry.name for entry in found.entries] == ["a", "b.JPG_large"]
    assert found.by_content == {"no ending": 1, ".jpg_large": 1}
    assert found.ignored == {".cr2": 1, ".txt": 1, ".bin": 1, ".heic": 1}
    tar = archive.tar(written(tmp_path / "x.tar", tarred([(name, content, {}) for name, content in members.items()])))
    assert [entry.name for entry in tar.entries] == ["a", "b.JPG_large"]


# ----------------------------------------------------------------------------------------------------------------- reading
def test_what_cannot_be_read_says_why(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"1234")
    assert archive.read(Entry("a", str(path), 1, 2)) == b"23"
    with pytest.raises(archive.Unreadable, match="4 bytes where 9 were listed"):
        archive.read(Entry("a", str(path), 0, 9))
    with pytest.raises(archive.Unreadable, match="No such file"):
        archive.read(Entry("a", str(tmp_path / "b.jpg"), 0, 9))
    with pytest.raises(archive.Unreadable, match="Is a directory"):
        archive.read(Entry("a", str(tmp_path), 0, 9))


def test_the_order_is_that_of_the_bytes(tmp_path, tarred):
    names = ["z.jpg", "Z.jpg", "é.jpg", "e.jpg", "10.jpg", "9.jpg", "ﬀ.jpg", "𝄞.jpg"]
    found = archive.tar(written(tmp_path / "x.tar", tarred([(name, b"", {}) for name in names])))
    assert [entry.name for entry in found.entries] == sorted(names, key=str.encode)
