"""Rules for the package as a whole."""

import ast
import configparser
import graphlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import keras_sat

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "keras_sat"


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}

# A module may import the layers below its own, and, where it belongs to a package, its package.
LAYERS = [
    {"version", "typing"},
    {"files", "extras", "tables", "lines", "internals", "interrupts", "activations", "losses", "preprocessing"},
    {"data", "deployed"},
    {"provenance"},
    {"attacks", "models"},
    {"training", "evaluation"},
    {"export", "serving"},
    {"run"},
    {"cli"},
    {"__main__"},
]
# Inside a package, where the order of the files says something.
INNER_LAYERS = {
    "attacks": [
        {"gradients", "randomness", "bpda"},
        {"threats", "survivors", "judging", "agreement"},
        {"apgd_steps"},
        {"validation"},
        {"attack"},
        {"pgd", "apgd", "fab", "square", "noise", "transfer"},
        {"autoattack"},
        {"_names"},
    ],
    "evaluation": [
        {"identity"},
        {"intervals", "state", "stages", "examples", "copies", "distortions", "_audit", "signs", "html_page"},
        {"corruptions", "summary"},
        {"attack_names", "progress", "plots"},
        {"html_report"},
        {"report", "certification"},
        {"report_files", "html_comparison", "_evaluate", "_compare", "_certify", "robustbench"},
        {"corrupted_files"},
    ],
    "models.pytorch": [
        {"pickles", "wrappers"},
        {"tensors"},
        {"reader"},
        {"conversion"},
    ],
    "run": [
        {"pretrained", "ranges"},
        {"configuration", "recipes"},
        {"trained_on"},
        {"folder", "optimizers"},
        {"training", "subject"},
        {"predictor"},
    ],
    "export": [
        {"signatures", "warmup", "reload"},
        {"saved_model"},
        {"fine_tuning", "litert"},
        {"_verify"},
    ],
}
# Rooms that do not import these of the layers below them.
APART = {
    "data": {"extras", "tables", "activations", "losses"},
    "training": {"deployed", "provenance"},
    "serving": {"data", "deployed", "attacks", "models", "provenance", "training", "evaluation"},
}


def running(tree):
    """Yields the nodes of a file but for those under `if TYPE_CHECKING`, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from running(node)


def imports(path):
    """Returns the modules of the package that a file imports, in functions too: a late import only hides a circle.

    `from keras_sat.attacks import pgd` imports the module pgd. That it runs the package's `__init__` before does not
    count: every import of a module of a package does so. `from keras_sat.attacks import PGD` imports the package.
    """
    names = set()
    for node in running(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= full | {node.module} if full - set(MODULES) else full
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & set(MODULES)


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def layer(name, layers):
    return next(number for number, names in enumerate(layers) if name in names)


def test_no_circle_of_imports():
    try:
        list(graphlib.TopologicalSorter(IMPORTS).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


@pytest.mark.parametrize("module", [name for name in MODULES if name != "keras_sat"])
def test_imports_go_one_way(module):
    room = module.split(".")[1]
    for name in IMPORTS[module] - {"keras_sat"}:
        other = name.split(".")[1]
        assert other == room or layer(other, LAYERS) < layer(room, LAYERS), f"{module} imports {name}"
        assert other not in APART.get(room, ()), f"{module} imports {name}"


@pytest.mark.parametrize("room", INNER_LAYERS)
def test_imports_inside_a_package_go_one_way(room):
    layers, prefix = INNER_LAYERS[room], f"keras_sat.{room}."
    inner = {name.removeprefix(prefix) for name in MODULES if name.startswith(prefix)}
    assert inner == set().union(*layers)
    for module in inner:
        for name in IMPORTS[prefix + module]:
            assert name != f"keras_sat.{room}", f"{module} imports its own package"
            if name.startswith(prefix):
                other = name.removeprefix(prefix)
                assert layer(other, layers) < layer(module, layers), f"{room}.{module} imports {other}"


def test_there_is_one_tape_for_input_gradients():
    opening = [path.name for path in PACKAGE.rglob("*.py") if "GradientTape(" in path.read_text()]
    assert opening == ["gradients.py"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked: what a user gets, apart from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        f"--wheel-dir={folder}",
    ]
    copy = folder / "source"  # setuptools would leave its build folder in the checkout
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "keras-sat-quickstart*"))
    subprocess.run([*build, str(copy)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_works_with_its_data(wheel):
    code = """
import keras_sat
images, labels = next(iter(keras_sat.data.load("fashion_mnist_mini", "test", 5)))
assert keras_sat.models.ResNet8(weights="sat-fashion-mnist")(images).shape == (5, 10)
print(keras_sat.__file__, images.shape)
"""
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=wheel, env=environment, capture_output=True, text=True, check=True
    )
    assert str(wheel) in done.stdout
    assert "(5, 28, 28, 1)" in done.stdout
    assert "keras-sat = keras_sat_command:main" in next(wheel.glob("*.dist-info/entry_points.txt")).read_text()


IMPORT = """
import sys, keras
before, backend = set(sys.modules), keras.backend.backend
keras.backend.backend = lambda: "jax"
try:
    import keras_sat
except ImportError as error:
    print("refused:", error, file=sys.stderr)
keras.backend.backend = backend
import keras_sat
print(*(set(sys.modules) - before))
"""


@pytest.fixture(scope="module")
def imported():
    """A process that imports the package, first with another backend."""
    return subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)


def test_importing_the_package_imports_nothing_heavy_beyond_keras(imported):
    new = {name.split(".")[0] for name in imported.stdout.split()}
    assert "keras_sat" in new
    assert not new & {"tensorflow_datasets", "matplotlib", "pandas", "tensorboard", "absl.app"}


def test_another_backend_is_refused(imported):
    assert re.search("^refused: .*KERAS_BACKEND=tensorflow. Received: jax", imported.stderr, re.MULTILINE)


def unannotated(function, method):
    """Returns the arguments of a function that have no annotation, and "return" if its result has none."""
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    static = any(isinstance(name, ast.Name) and name.id == "staticmethod" for name in function.decorator_list)
    if method and not static:
        arguments = arguments[1:]  # self or cls
    missing = [argument.arg for argument in arguments if argument and argument.annotation is None]
    return missing + (["return"] if function.returns is None else [])


def public_functions(body, inside=""):
    """Yields (name, node, whether it is a method) of the functions and methods that a module or a class defines."""
    for node in body:
        public = not getattr(node, "name", "").startswith("_") or getattr(node, "name", "") in ("__init__", "__call__")
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node.body, f"{inside}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and public:
            yield inside + node.name, node, bool(inside)
        elif isinstance(node, (ast.If, ast.Try)):
            yield from public_functions(node.body, inside)


def test_what_is_public_is_annotated():
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno} {name}: {', '.join(names)}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, node, method in public_functions(ast.parse(path.read_text()).body)
        if (names := unannotated(node, method))
    ]
    if missing:
        pytest.fail(f"{len(missing)} functions lack annotations:\n" + "\n".join(missing), pytrace=False)


def test_the_lower_bounds_are_those_of_setup_cfg():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = re.findall(r"^([\w-]+)>=([\d.]+)$", config["options"]["install_requires"], re.MULTILINE)
    bounds = re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".github" / "lower-bounds.txt").read_text(), re.MULTILINE)
    assert [name for name, _ in required] == [name for name, _ in bounds]
    for (name, lowest), (_, bound) in zip(required, bounds):
        assert f"{bound}.".startswith(f"{lowest}."), name


def test_the_citation_names_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == keras_sat.__version__
