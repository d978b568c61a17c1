"""The walls of the house: a file imports only from floors below its own, and vLLM only where it may.

`FLOORS` is the layout. Every import counts: at the top of a file, in a function, under TYPE_CHECKING, and
what `import_module` or a "module:name" string names. Files of one room may import each other.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "telemetry", "report", "versions", "ksteer_kernels"),
    ("models", "spec", "data"),
    ("probes", "config"),
    ("methods", "convert"),
    ("admission", "device", "bench"),
    ("fit", "hub", "host"),
    ("experiments", "ksteering", "server", "verify"),
    ("demo", "__init__", "plugin"),
    ("cli",),
)
"""From the ground up. `methods` lies below `admission` and `device`: both run its programs."""

WORKBENCH = {"data", "bench", "fit", "experiments", "ksteering", "convert", "hub", "demo", "cli"}
SERVING = {"spec", "admission", "device", "host", "server", "plugin", "methods", "probes", "config"}
"""The two sides of the house; they meet below, and neither imports the other."""

MAY_IMPORT_VLLM = ("host/", "server/", "bench/engines.py")

PURE = (
    "ksteer_vllm.errors",
    "ksteer_vllm.models",
    "ksteer_vllm.versions",
    "ksteer_vllm.probes.metadata",
    "ksteer_vllm.spec.*",
)
"""Modules that work where neither torch nor vLLM is installed."""

STRINGS = {
    "spec/families.py": ("methods", "fit"),
    "bench/judges/__init__.py": ("bench", "demo"),
    "data/predefined.py": ("demo",),
}
"""file -> rooms that its "module:name" strings may name: FAMILIES is one table, with programs and fits; the
demo's judge and task are known by name alone."""


def package_files() -> Iterator[tuple[str, Path]]:
    for file in sorted((ROOT / "ksteer_vllm").rglob("*.py")):
        yield file.relative_to(ROOT / "ksteer_vllm").as_posix(), file


def room_of(module: str) -> str | None:
    """The room of a dotted name, None if it is not ours."""
    parts = module.split(".")
    if parts[0] == "ksteer_kernels":
        return parts[0]
    if parts[0] != "ksteer_vllm":
        return None
    return parts[1] if len(parts) > 1 else "__init__"


def imports(file: Path) -> Iterator[str]:
    """Dotted names a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module is not None
            if node.module == "ksteer_vllm":
                rooms = {floor_room for floor in FLOORS for floor_room in floor}
                for alias in node.names:
                    yield f"ksteer_vllm.{alias.name}" if alias.name in rooms - {"report"} else "ksteer_vllm"
            else:
                yield node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))


def strings(file: Path) -> Iterator[str]:
    """Dotted names of "module:name" strings."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and (found := _STRING.fullmatch(str(node.value))):
            yield found[1]


_STRING = re.compile(r"(ksteer_vllm(?:\.\w+)+):\w+")


def room_of_file(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def floor_of(room: str) -> int:
    return next(index for index, floor in enumerate(FLOORS) if room in floor)


def test_every_room_has_a_floor() -> None:
    rooms = {room_of_file(name) for name, _ in package_files()}
    assert rooms | {"ksteer_kernels"} == {room for floor in FLOORS for room in floor}


def broken_rules() -> set[tuple[str, str]]:
    """(file, room it must not import)."""
    found = set()
    for name, file in package_files():
        own = room_of_file(name)
        for module in imports(file):
            room = room_of(module)
            if room is None or room == own:
                continue
            if floor_of(room) >= floor_of(own) or (own in SERVING and room in WORKBENCH):
                found.add((name, room))
            if own in WORKBENCH and room in ("host", "server", "device") and own != "cli":
                found.add((name, room))
    return found


def test_imports_go_down() -> None:
    assert broken_rules() == set()


def test_verify_knows_the_workbench_by_its_engines_alone() -> None:
    found = {
        module
        for name, file in package_files()
        if name.startswith("verify/")
        for module in imports(file)
        if room_of(module) in WORKBENCH
    }
    assert found == {"ksteer_vllm.bench.engines"}


def test_strings_name_modules_from_a_closed_list() -> None:
    for name, file in package_files():
        for module in strings(file):
            assert room_of(module) in STRINGS.get(name, ()), f"{name}: {module}"


def test_vllm_is_imported_where_it_may_be() -> None:
    found = {
        name
        for name, file in package_files()
        if any(module.split(".")[0] == "vllm" for module in imports(file))
        and not name.startswith(MAY_IMPORT_VLLM)
    }
    assert found == set()


def test_pure_modules_need_neither_torch_nor_vllm() -> None:
    spec = (file.stem for file in (ROOT / "ksteer_vllm" / "spec").glob("[!_]*.py"))
    modules = [*PURE[:-1], "ksteer_vllm", *(f"ksteer_vllm.spec.{name}" for name in spec)]
    program = (
        "import sys; sys.modules['torch'] = sys.modules['vllm'] = None\n"
        f"from importlib import import_module\nfor name in {modules}: import_module(name)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_no_folder_imports_itself_through_others() -> None:
    """A folder and its own subfolders are one room: they may know each other."""
    graph: dict[str, set[str]] = defaultdict(set)
    for name, file in package_files():
        own = _folder(name)
        for module in imports(file):
            if not module.startswith("ksteer_vllm."):
                continue
            other = _folder_of_module(module)
            if not (f"{other}/".startswith(f"{own}/") or f"{own}/".startswith(f"{other}/")):
                graph[own].add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"folders in a ring: {' -> '.join(error.args[1])}")


def _folder(name: str) -> str:
    """The folder of a file below the package; a file at the root is its own."""
    return name.rpartition("/")[0] or name.removesuffix(".py")


def _folder_of_module(module: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    name = path if path.is_dir() else path.parent
    return name.relative_to(ROOT / "ksteer_vllm").as_posix() if name != ROOT / "ksteer_vllm" else path.name
