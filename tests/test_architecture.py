"""The structure of the package, read from its imports: one table says which folder stands on which, and on what else.

A folder imports only folders above its own line, and only the third-party libraries that its line lists.
"""

import ast
import re
import sys
import tomllib
from collections import Counter
from importlib import import_module
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "pipeline"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

FOLDERS = {
    "records": "pyarrow yaml",
    "storage": "aiohttp fsspec pyarrow tenacity",
    "video": "PIL av decord numpy",
    "faces": "PIL dlib numpy onnx onnxruntime sklearn torch",
    "sandbox": "msgpack msgspec numpy psutil",
    "corpus": "fsspec pyarrow",
    "ledger": "duckdb psutil pyarrow",
    "runtime": "av numpy pyarrow ray rich torch yaml",
    "report": "PIL jinja2 markupsafe numpy plotly pyarrow",
    "dataset": "PIL numpy pyarrow torch",
    "models": "huggingface_hub numpy onnx onnxruntime onnxscript safetensors torch torchvision transformers",
    "preprocess": "PIL imagehash msgspec numpy pyarrow",
    "evaluate": "fairlearn numpy rich torch yaml",
    "train": "mlflow numpy ray rich torch yaml",
    "score": "PIL numpy pyarrow torch",
    "labels": "matplotlib numpy pyarrow pympi sklearn statsmodels",
    "viewer": "pyarrow numpy starlette uvicorn",
    "synthetic": "PIL av numpy skimage",
}
# What lies beside the package.
BESIDE = {
    "jobs": "docstring_parser jsonargparse",
    "benchmarks": "PIL av boto3 daft decord dlib fsspec moto numpy plotly psutil pyarrow ray rich scenedetect torch",
}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def detector_libraries(path):
    """The modules that a detector names in its record for the fork server: what its extra brings."""
    module = import_module(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    return {name.split(".")[0] for name in module.SPEC.preload} if hasattr(module, "SPEC") else set()


def libraries_of(folder):
    found = {name.split(".")[0] for path in sources(folder) for name in imported_modules(path)}
    return found - set(sys.stdlib_module_names)


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def sources(folder):
    return sorted(folder.rglob("*.py"))


def test_every_folder_is_in_the_table():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(FOLDERS)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_lies_above_it(folder):
    order = list(FOLDERS)
    above = set(order[: order.index(folder) + 1])
    for path in sources(PACKAGE / folder):
        names = set(imported_modules(path))
        assert {name.split(".")[1] for name in names if name.startswith("pipeline.")} & set(FOLDERS) <= above, path
        assert not any(name.split(".")[0] in ("jobs", "benchmarks", "tests") for name in names), path


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_the_libraries_of_its_line(folder):
    """A library that no line lists fails here too, wherever it is imported; a detector lists its own in its record."""
    allowed = {*FOLDERS[folder].split(), "lazy_loader", "pipeline", *sys.stdlib_module_names}
    for path in sources(PACKAGE / folder):
        own = detector_libraries(path) if path.parent.name == "detectors" else set()
        assert {name.split(".")[0] for name in imported_modules(path)} - allowed - own == set(), path


@pytest.mark.parametrize("folder", BESIDE)
def test_jobs_and_studies_import_only_the_libraries_of_their_line(folder):
    own = {"benchmarks", "command_line", "pipeline"}
    assert libraries_of(REPOSITORY / folder) - own == set(BESIDE[folder].split())


def test_the_table_lists_no_library_that_is_not_imported():
    for folder, libraries in FOLDERS.items():
        assert set(libraries.split()) - libraries_of(PACKAGE / folder) == set(), folder


@pytest.mark.lengthy
def test_what_is_imported_is_declared():
    """Also what another dependency brings today: it may stop doing so."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    declared = {normalised(re.match(r"[\w.-]+", each)[0]) for each in wanted} | {normalised(project["name"])}
    brought = packages_distributions()
    imported = set().union(*(libraries_of(REPOSITORY / folder) for folder in ("pipeline", "jobs")))
    installed = {name: {normalised(each) for each in brought[name]} for name in imported & brought.keys()}
    assert {name for name, distributions in installed.items() if not distributions & declared} == set()


@pytest.mark.lengthy
def test_modules_import_each_other_in_no_circle():
    modules = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in sources(PACKAGE)}
    needs = {
        name: {needed for needed in imported_modules(path) if needed in modules and needed != name}
        for name, path in modules.items()
        if path.name != "__init__.py"
    }
    done: set[str] = set()
    while needs:
        free = {name for name, needed in needs.items() if needed & set(needs) <= {name}}
        assert free, f"a circle among {sorted(needs)}"
        done |= free
        needs = {name: needed for name, needed in needs.items() if name not in free}


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_a_folder_offers_is_there(folder):
    """Names are imported where they are first asked for, which no type checker sees."""
    tree = ast.parse((PACKAGE / folder / "__init__.py").read_text())
    offered = [
        (module, name)
        for call in ast.walk(tree)
        for keyword in (call.keywords if isinstance(call, ast.Call) else [])
        if keyword.arg == "submod_attrs"
        for module, names in ast.literal_eval(keyword.value).items()
        for name in names
    ]
    for module, name in offered:
        path = PACKAGE / folder / f"{module.replace('.', '/')}.py"
        body = ast.parse((path if path.exists() else path.with_suffix("") / "__init__.py").read_text()).body
        assert name in set(chain.from_iterable(map(defined_by, body))), f"{folder}: {module}.{name}"
    assert offered or "__all__" in (PACKAGE / folder / "__init__.py").read_text()


def defined_by(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)


def test_jobs_are_thin():
    for path in (REPOSITORY / "jobs").glob("*.py"):
        if path.name != "command_line.py":
            assert len(path.read_text().splitlines()) < 60, path.name


def test_the_configuration_library_stays_in_the_jobs():
    users = [path.name for path in (REPOSITORY / "jobs").glob("*.py") if "jsonargparse" in set(imported_modules(path))]
    assert users == ["command_line.py"]


def test_nothing_is_ever_unpickled_from_storage():
    for path in sources(PACKAGE):
        names = set(imported_modules(path))
        assert not {"pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"} & names, path.name
        assert not re.search(r"(?<!safetensors\.)\btorch\.load\(", path.read_text()), path.name
        assert "yaml.load(" not in path.read_text(), path.name


# What parses JSON that this process wrote itself; all else goes through one reader.
OWN_JSON = {
    *("corpus/parquet_rows.py", "runtime/pool.py", "runtime/unit_actor.py", "train/worker.py"),
    *("records/documents.py",),
}


def test_files_of_users_are_parsed_by_one_reader_with_limits():
    """`records/documents.py` bounds length, depth and aliases, and never quotes a file in an error."""
    parsers = re.compile(r"\bjson\.loads?\(|yaml\.(safe_)?load|ET\.(fromstring|parse)\(|safetensors\.torch\.load\(")
    allowed = {PACKAGE / name for name in (*OWN_JSON, "models/tensors.py")}
    found = {path for path in sources(PACKAGE) if parsers.search(path.read_text())}
    assert found - allowed == set()
    assert allowed - found == set(), "the list is longer than it need be"


def test_no_two_test_files_have_one_name():
    """pytest knows a file by its name alone: of two it runs the first that it meets."""
    names = Counter(path.name for path in (REPOSITORY / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
