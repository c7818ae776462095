"""The rule that a knob exists only where it is read."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from pathlib import Path

import resnet
from resnet.config import cluster, data, model, optim, run, schedule, sweep, track, training
from resnet.config.data import Records
from resnet.config.optim import LarsRow
from resnet.config.run import Run
from resnet.config.schedule import Polynomial

MODULES = [run, cluster, data, training, model, optim, schedule, track, sweep]
KINDS = {name: kind for module in MODULES for name, kind in vars(module).items() if dataclasses.is_dataclass(kind)}
HINTS = {kind: typing.get_type_hints(kind) for kind in KINDS.values()}
# Names that stand for a run where the annotation says Any or DictConfig.
RUNS = {"run", "config", "_root_", "saved"}


def family(kind):
    """A dataclass with all that it could be narrowed to."""
    return {kind} | {other for other in KINDS.values() if issubclass(other, kind)}


def declared():
    """(dataclass that first declares it, knob) of every knob."""
    for kind in KINDS.values():
        for knob in vars(kind).get("__annotations__", {}):
            if not any(knob in HINTS.get(base, {}) for base in kind.__mro__[1:]):
                yield kind, knob


def owner(kind, knob):
    """The dataclass that first declares `knob` of `kind` or of what it could be narrowed to."""
    for narrowed in sorted(family(kind), key=lambda k: len(k.__mro__)):
        for base in reversed(narrowed.__mro__):
            if knob in vars(base).get("__annotations__", {}):
                return base
    return None


class Reader(ast.NodeVisitor):
    """Follows attributes through the types of the dataclasses: `run.schedule.horizon_epochs`, `settings.uri`."""

    def __init__(self):
        self.read = set()  # (dataclass, knob)
        self.scopes = [{}]

    def kind(self, node):
        """The dataclass that an expression is, if the source tells."""
        if isinstance(node, ast.Name):
            return next((s[node.id] for s in reversed(self.scopes) if node.id in s), Run if node.id in RUNS else None)
        if isinstance(node, ast.Attribute):
            base = self.kind(node.value)
            if base is None:
                return self.kind(ast.Name(f".{node.attr}")) or (Run if node.attr == "run" else None)
            holder = owner(base, node.attr) if base else None
            hint = HINTS[holder][node.attr] if holder else None
            parts = [hint, *typing.get_args(hint)]
            return next((part for part in parts if part in HINTS), None)
        if isinstance(node, ast.Subscript):
            return self.kind(node.value)
        if isinstance(node, ast.IfExp):
            return self.kind(node.body) or self.kind(node.orelse)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "next":  # next(row for row in rows ...)
            self.visit(node.args[0])
            return self.kind(getattr(node.args[0], "elt", node.args[0]))
        return None

    def annotated(self, annotation):
        return next((KINDS[n.id] for n in ast.walk(annotation) if isinstance(n, ast.Name) and n.id in KINDS), None)

    def visit_FunctionDef(self, node):
        args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        kinds = {arg.arg: self.annotated(arg.annotation) for arg in args if arg.annotation}
        self.scopes.append({name: kind for name, kind in kinds.items() if kind})
        self.generic_visit(node)
        self.scopes.pop()

    def visit_ClassDef(self, node):
        """`self.settings` is what __init__ was given under that name, or a field of a dataclass."""
        known = {f".{n.target.id}": self.annotated(n.annotation) for n in node.body if isinstance(n, ast.AnnAssign)}
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                known |= {f".{arg.arg}": self.annotated(arg.annotation) for arg in method.args.args if arg.annotation}
        self.scopes.append({name: kind for name, kind in known.items() if kind})
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Assert(self, node):
        """`assert isinstance(settings, Records)`."""
        call = node.test
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "isinstance" and isinstance(call.args[0], ast.Name):
            self.scopes[-1][call.args[0].id] = self.annotated(call.args[1])
        self.generic_visit(node)

    def visit_Match(self, node):
        """`match settings: case Records(): ...`."""
        for case in node.cases:
            kind = self.annotated(case.pattern)
            self.scopes.append({node.subject.id: kind} if kind and isinstance(node.subject, ast.Name) else {})
            self.generic_visit(case)
            self.scopes.pop()

    def visit_Assign(self, node):
        pairs = [(target, node.value) for target in node.targets]
        if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
        for target, value in pairs:
            if isinstance(target, ast.Name) and (kind := self.kind(value)):
                self.scopes[-1][target.id] = kind
        self.generic_visit(node)

    def bind(self, target, source):
        """`for row in optim.rows`."""
        if isinstance(target, ast.Name) and (kind := self.kind(source)):
            self.scopes[-1][target.id] = kind

    def visit_For(self, node):
        self.bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_GeneratorExp(self, node):
        for part in node.generators:
            self.bind(part.target, part.iter)
        self.generic_visit(node)

    def visit_Attribute(self, node):
        kind = self.kind(node.value)
        if kind and isinstance(node.ctx, ast.Load):
            if holder := owner(kind, node.attr):
                self.read.add((holder, node.attr))
            elif isinstance(vars(kind).get(node.attr), property):
                self.read.add((kind, node.attr))
        self.generic_visit(node)

    def visit_Call(self, node):
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and isinstance(node.args[1], ast.Constant):
            kind = self.kind(node.args[0])
            if kind and (holder := owner(kind, node.args[1].value)):
                self.read.add((holder, node.args[1].value))
        self.generic_visit(node)


def knobs_read():
    """(dataclass, knob) of every knob that resnet/ outside of config/ reads."""
    folder = Path(resnet.__file__).parent
    reader = Reader()
    for path in sorted(folder.rglob("*.py")):
        if path.parent.name != "config":
            reader.visit(ast.parse(path.read_text()))
    for kind in KINDS.values():  # a property that is read reads what it is made of
        for name, value in vars(kind).items():
            if isinstance(value, property) and (kind, name) in reader.read:
                reader.scopes.append({"self": kind})
                reader.visit(ast.parse(textwrap.dedent(inspect.getsource(value.fget))))
                reader.scopes.pop()
    return reader.read


def test_every_knob_is_read():
    read = knobs_read()
    # The columns of optim=lars are read by name, in option files: `lr: ${lars_row:lr}`.
    options = "".join(path.read_text() for path in (Path(resnet.__file__).parents[1] / "conf").rglob("*.yaml"))
    read |= {(LarsRow, column) for column in HINTS[LarsRow] if f"${{lars_row:{column}}}" in options}
    # What an option's value depends on: `order: ${order_by_address:}`.
    resolvers = (Path(resnet.__file__).parent / "config" / "resolvers.py").read_text()
    read |= {(Records, knob) for knob in HINTS[Records] if f"_parent_.{knob} is" in resolvers}
    # A variant's name is what load() finds its dataclass by.
    read |= {(kind, "name") for kind in KINDS.values()}
    unread = [f"{kind.__name__}.{knob}" for kind, knob in declared() if (kind, knob) not in read]
    assert not unread


def test_the_search_for_knobs_tells_a_read_knob_from_an_unread_one():
    """What the test above rests on: that a knob of the same name elsewhere, or a store, does not count."""
    reader = Reader()
    reader.visit(
        ast.parse(
            "def f(run: Run, path: Path, schedule: Schedule):\n"
            "    run.batch = 3\n"
            "    path.seed\n"
            "    schedule.power\n"
            "    data = run.data\n"
            "    return data.flip\n"
        )
    )
    assert (Run, "batch") not in reader.read
    assert (Run, "seed") not in reader.read
    assert {(Polynomial, "power"), (Records, "flip"), (Run, "data")} <= reader.read
