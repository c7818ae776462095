"""IDX files to a folder of shards."""

from __future__ import annotations

from collections.abc import Sequence

from resnet import UserError, files, home, shell
from resnet.data import embedded
from resnet.data.formats import idx
from resnet.prepare import summary, target, writer
from resnet.prepare.knobs import Idx
from resnet.prepare.listing import few


def build(settings: Idx) -> None:
    """Write the images of two IDX files, unless they are there. Raises UserError."""
    out = target.of(settings.out)
    options = {"source": "idx", **{name: value for name, value in vars(settings).items() if name != "out"}}
    if writer.is_finished(out, options):
        return
    places = {part: getattr(settings, part) for part in idx.PARTS}
    if settings.dir is None and None in places.values():
        raise UserError("dir: must be given, the folder of the IDX files, or both train= and val=")
    for part, path in places.items():
        if path is None:
            places[part] = idx.file_in(str(settings.dir), part, f"dir={settings.dir}")
    names = class_names(settings.names) if settings.names is not None else None
    out.fill(
        lambda folder: embedded.write(folder, "out", options, lambda: idx.read(places["train"], places["val"], names))
    )
    content = out.content()
    assert content
    print(f"{out.name}: {summary.totals(content)}")
    print("next:", shell.command("resnet.train", "data=folder", shell.override("data.dir", out.name)))


def class_names(text: str) -> Sequence[str]:
    """The names of the classes that the knob gives: one after the other, in a file, or fashion. Raises UserError."""
    if text == "fashion":
        return idx.FASHION
    lines = text.replace(",", "\n")
    if "," not in text:
        path = str(home.expand(text))
        try:
            lines = files.read_text(path)
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            raise UserError(f"names={text}: {reason}; give a,b,c, a file with one a line, or fashion") from error
    names = files.read_classes(lines, f"names={text}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"names={text}: {few(twice)} more than once; the classes must differ")
    return names
