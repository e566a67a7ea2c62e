"""Imports point one way, and never in a circle: those inside functions and for type checkers count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("envs", "agents", "meta", "zoo")
"""From the lowest: each may import those before it. What is outside the four folders is below all of them."""


def imports_of(source: str, modules: set[str]) -> set[str]:
    """Return which of ``modules`` a module imports anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed here"
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in modules else str(node.module) for name in names}
    return found & modules


def read_imports() -> dict[str, set[str]]:
    """Return what each module of the package imports of it."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / "metarl").rglob("*.py"))
    }
    return {name: imports_of(path.read_text(), set(paths)) for name, path in paths.items()}


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return read_imports()


def circle_in(imports: dict[str, set[str]], left_out: set[tuple[str, str]]) -> list[str] | None:
    """Return the modules of a circle, the first one again at its end; None where there is none."""
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for other in sorted(imports[name]):
            if (name, other) not in left_out:
                found = search(other, [*path, name])
                if found is not None:
                    return found
        done.add(name)
        return None

    return next((found for name in sorted(imports) if (found := search(name, []))), None)


def against_the_way(imports: dict[str, set[str]]) -> Iterator[str]:
    """Yield imports from a layer below."""

    def height(name: str) -> int:
        part = name.split(".")[1] if "." in name else ""
        return LAYERS.index(part) if part in LAYERS else -1

    for name, others in imports.items():
        if name != "metarl":
            yield from (f"{name} imports {other}" for other in sorted(others) if height(other) > height(name))


def test_no_import_goes_against_the_way(imports):
    assert list(against_the_way(imports)) == []


def test_no_imports_go_in_a_circle(imports):
    circle = circle_in(imports, set())
    assert circle is None, " imports ".join(circle)


def test_an_import_in_a_function_and_one_for_type_checkers_count():
    source = "if TYPE_CHECKING:\n    from a import b\ndef f():\n    import c.d\n    from e import nothing, g\n"
    assert imports_of(source, {"a", "a.b", "c.d", "e", "e.g", "f"}) == {"a.b", "c.d", "e", "e.g"}


def test_a_circle_and_a_wrong_way_are_found():
    wrong = {"metarl.envs.x": {"metarl.agents.y"}, "metarl.agents.y": {"metarl.z"}, "metarl.z": {"metarl.envs.x"}}
    assert circle_in(wrong, set()) == ["metarl.agents.y", "metarl.z", "metarl.envs.x", "metarl.agents.y"]
    assert circle_in(wrong, {("metarl.z", "metarl.envs.x")}) is None
    assert list(against_the_way(wrong)) == ["metarl.envs.x imports metarl.agents.y", "metarl.z imports metarl.envs.x"]
