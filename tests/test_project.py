"""The house rules that no linter knows: what is packaged and pinned, who imports whom, and what nobody may call."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from metarl import ALGORITHMS
from metarl.agents import LEARNERS
from metarl.agents.stock.entries import PREFIX

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "metarl").rglob("*.py"))
LAYERS = ("envs", "agents", "meta", "zoo")
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def version() -> str:
    found = re.search(r'__version__ = "(.+)"', (ROOT / "metarl" / "version.py").read_text())
    assert found is not None
    return found[1]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel as pip builds it, from a copy, so that no build folder appears in the tree."""
    folder = tmp_path_factory.mktemp("project")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "metarl", folder / "metarl", ignore=ignore)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignore)
    for name in LAYERS:
        if (ROOT / name).is_symlink():
            (folder / name).symlink_to(f"metarl/{name}")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "pip", "wheel", "-q", ".", "--no-deps", "--no-build-isolation", "-w", "out"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "out").glob("*.whl")
    assert path.name == f"metarl_sb3-{version()}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_every_extra_brings_what_some_module_uses(wheel: zipfile.ZipFile) -> None:
    (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = wheel.read(path).decode()
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))
    assert "dev" in extras
    code = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "metarl").rglob("*.py"))
    for extra in extras - {"dev"}:
        packages = re.findall(rf"^Requires-Dist: ([\w-]+).*extra == .{extra}.$", metadata, re.MULTILINE)
        assert any(re.search(rf"^\s*(import|from) {name.replace('-', '_')}\b", code, re.MULTILINE) for name in packages)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"metarl"}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.yml", "*.csv", "*.md", "*.xml", "*.json", "*.safetensors", "*.npz", "py.typed")
        for path in (ROOT / "metarl").rglob(pattern)
    }
    assert names == wanted


def test_the_console_script_and_the_licence(wheel: zipfile.ZipFile) -> None:
    (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "metarl = metarl.zoo.__main__:script" in wheel.read(entry).decode()
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_every_dependency_is_pinned(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    required = re.findall(r"^Requires-Dist: ([\w.-]+)(.*)$", wheel.read(metadata).decode(), flags=re.M)
    names = {normal(name) for name, rest in required if "extra ==" not in rest or re.search("extra == .dev.", rest)}
    assert {"torch", "stable-baselines3", "mujoco", "ruff", "pytest"} <= names
    pins = (ROOT / "constraints.txt").read_text()
    pinned = {normal(name) for name in re.findall(r"^([\w.-]+)==", pins, flags=re.M)}
    assert names - pinned == set()
    assert "torch==2.13.0\n" in pins


def test_the_links_at_the_top_lead_into_the_package() -> None:
    for name in ("envs", "agents", "zoo"):
        link = ROOT / name
        assert link.is_symlink()
        assert link.readlink() == Path("metarl") / name


def test_the_changelog_knows_the_version() -> None:
    assert f"## {version()} " in (ROOT / "CHANGELOG.md").read_text()


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in SOURCES:
        yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_one_way() -> None:
    wrong = []
    for path, tree in trees():
        layer = path.parts[1] if len(path.parts) > 2 else None
        if path.name == "__init__.py" and layer is None:
            continue
        above = LAYERS[LAYERS.index(layer) + 1 :] if layer in LAYERS else LAYERS
        banned = tuple(f"metarl.{name}" for name in above)
        wrong += [f"{path}: {name}" for name in imported(tree) if ".".join(name.split(".")[:2]) in banned]
    assert wrong == []


def test_every_row_on_reliability_names_a_test_that_exists() -> None:
    """Or says that it does not hold, or was tried by hand."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| tried |")]
    assert len(rows) > 100
    wrong = []
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
        if not named and not re.search(r"do(es)? not hold|by hand", row):
            wrong.append(row)
        for path, name in named:
            code = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else None
            if code is None or (name and f"def {name}(" not in code):
                wrong.append(f"{path}::{name}")
    assert wrong == []


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call, dict[str | None, str]]]:
    """Every call: what is called, the node, and its keywords as text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node, {word.arg: ast.unparse(word.value) for word in node.keywords}


def runs_code(called: str, keywords: dict[str | None, str], safe_loaders: set[str]) -> bool:
    return (
        called in ("eval", "exec", "compile", "__import__", "yaml.unsafe_load", "yaml.full_load")
        or (called == "yaml.load" and keywords.get("Loader") not in safe_loaders)
        or (called in ("torch.load", "th.load") and keywords.get("weights_only") != "True")
        or (called in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False")
    )


def test_nothing_loads_pickle_or_runs_text() -> None:
    wrong = []
    for path, tree in trees():
        wrong += [f"{path}: {name}" for name in imported(tree) if name.split(".")[0] in PICKLES]
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        safe = {node.name for node in classes if [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]}
        safe.add("yaml.SafeLoader")
        wrong += [f"{path}:{node.lineno}: {name}" for name, node, words in calls(tree) if runs_code(name, words, safe)]
    assert wrong == []


def test_no_global_generator_is_drawn_from_or_seeded() -> None:
    allowed = {"default_rng", "getstate", "setstate", "get_state", "set_state"}
    wrong = []
    for path, tree in trees():
        # Stock SB3 code draws from the global generators; inside these contexts one thread has them to itself.
        forks = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.With) and re.search(r"sb3_(alone|generators)\(", ast.unparse(node.items))
        ]
        forked = {node for fork in forks for _, node, _ in calls(fork)}
        for called, node, _ in calls(tree):
            drawn = re.fullmatch(r"(?:random|(?:np|numpy)\.random)\.([a-z]\w*)", called)
            seeds = re.search(r"(^|\.)(torch\.manual_seed|set_random_seed|fork_rng)$", called)
            if (drawn and drawn[1] not in allowed) or (seeds and node not in forked):
                wrong.append(f"{path}:{node.lineno}: {called}")
    assert wrong == []


@pytest.mark.parametrize(
    "code",
    ["eval(x)", "torch.load(f)", "np.load(f)", "yaml.load(f, Loader=yaml.FullLoader)", "np.load(f, allow_pickle=True)"],
)
def test_the_rule_against_running_code_bites(code: str) -> None:
    assert [runs_code(name, words, {"yaml.SafeLoader"}) for name, _, words in calls(ast.parse(code))] == [True]


def names_compared(tree: ast.Module, names: set[str], constants: dict[str, str]) -> list[tuple[int, str]]:
    """Return where code compares with a name, matches it, or looks for the beginning of one; with the name.

    :param constants: what stands for some of them, with the name.
    """
    found = []
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("startswith", "endswith", "removeprefix")):
            parts = [*node.args]
        elif isinstance(node, ast.match_case):
            parts = [node.pattern]
        for each in [each for part in parts for each in ast.walk(part)]:
            if isinstance(each, ast.Constant) and each.value in names:
                found.append((each.lineno, str(each.value)))
            elif isinstance(each, ast.Name) and each.id in constants:
                found.append((each.lineno, constants[each.id]))
    return found


def constants_of(tree: ast.Module, names: set[str]) -> dict[str, str]:
    """Return the constants of a module that hold one of ``names``, with the name."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
    return {
        target.id: str(node.value.value)  # type: ignore[attr-defined]
        for node in assigned
        for target in node.targets
        if isinstance(target, ast.Name) and node.value.value in names  # type: ignore[attr-defined]
    }


def test_no_code_outside_its_own_file_compares_the_name_of_a_learner_or_a_wrapper() -> None:
    """What a learner or a wrapper can do is asked of it; a name that is compared would not know somebody's own."""
    own = {name: cls.__module__ for registry in (LEARNERS, ALGORITHMS) for name, cls in registry.items()}
    own[PREFIX] = LEARNERS[f"{PREFIX}ppo"].__module__
    constants: dict[str, str] = {}
    for _, tree in trees():
        constants |= constants_of(tree, set(own))
    assert constants["PREFIX"] == PREFIX
    wrong = []
    for path, tree in trees():
        module = ".".join(path.with_suffix("").parts)
        wrong += [
            f"{path}:{line}: {name}" for line, name in names_compared(tree, set(own), constants) if own[name] != module
        ]
    assert wrong == []


@pytest.mark.parametrize(
    "code",
    [
        'self.learner == "vpg"',
        'learner in ("vpg", "a2c")',
        'name.startswith("sb3_")',
        'kind != {"leap": 1}',
        "algo == FIRST",
        'match algo:\n    case "maml":\n        pass',
    ],
)
def test_the_rule_against_comparing_names_bites(code: str) -> None:
    names = {*LEARNERS, *ALGORITHMS, PREFIX}
    constants = constants_of(ast.parse('FIRST = "maml"'), names)
    assert names_compared(ast.parse(code), names, constants)
    assert names_compared(ast.parse('make(learner="vpg", words={"maml": "ppo"})'), names, constants) == []


def test_folders_and_classes_are_small() -> None:
    # Somebody new reads a folder's list and a class as a whole; the one folder has a file for each algorithm.
    folders = Counter(path.parent for path in (ROOT / "metarl").rglob("*.py") if path.name != "__init__.py")
    assert {folder.name for folder, n in folders.items() if n > 12} <= {"algorithms"}
    long = [
        f"{path.name}: {node.name}"
        for path in (ROOT / "metarl").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= 250
    ]
    assert long == []
    assert [str(path) for path in (ROOT / "metarl").rglob("*.py") if len(path.read_text().splitlines()) > 500] == []


PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")]


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_lines_of_prose_have_at_most_120_characters(page: Path) -> None:
    """Tables and commands may be longer."""
    in_code, long = False, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        in_code ^= line.startswith("```")
        if len(line) > 120 and not in_code and not line.startswith("|"):
            long.append((number, len(line)))
    assert not long
