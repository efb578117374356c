"""What holds for the package as a whole."""

import ast
import configparser
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

# What a module may import of the package: the layers below its own, and its own.
LAYERS = [
    ("version", "typing"),
    ("files", "extras", "activations", "losses", "preprocessing", "data"),
    ("attacks", "models"),
    ("training", "evaluation", "export", "serving"),
    ("run",),
    ("cli",),
    ("__main__",),
]
BESIDE = {
    "data": {"data", "preprocessing", "files"},
    "attacks": {"attacks"},
    "models": {"models"},
    "export": {"export", "training", "evaluation"},
}


def layer(module):
    return next(number for number, names in enumerate(LAYERS) if module in names)


def imported(path):
    """Returns the modules of the package that a file imports, by their first name in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "keras_sat":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras_sat."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("keras_sat.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if module == "__init__":
        return
    beside = BESIDE.get(module, {module})
    for name in imported(path):
        assert name in beside or layer(name) < layer(module), f"{module} imports {name}"


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


def test_importing_the_package_imports_nothing_heavy_beyond_keras():
    code = "import sys, keras; before = set(sys.modules); import keras_sat; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = {name.split(".")[0] for name in done.stdout.split()}
    assert "keras_sat" in new
    assert not new & {"tensorflow_datasets", "matplotlib", "pandas", "tensorboard", "absl.app"}


def test_another_backend_is_refused():
    code = "import keras; keras.backend.backend = lambda: 'jax'; import keras_sat"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "KERAS_BACKEND=tensorflow. Received: jax" in done.stderr


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
