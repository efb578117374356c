"""Published settings."""

import math
import pathlib
import shlex

import numpy as np
import pytest

from keras_sat import cli
from keras_sat.run import RECIPES, Run, training

PLACES = {"extra_data": "images.npz", "weights": "none"}  # in place of what a recipe needs


def settings(name, **more):
    recipe = RECIPES[name]
    return recipe.settings | {field: PLACES[field] for field in recipe.needs} | more


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_runs(name):
    recipe = RECIPES[name]
    run = Run(**settings(name))
    assert run.attack().ball.epsilon in (4, 8, 0.031 * 255)
    assert all((recipe.paper, recipe.cost, recipe.differs))
    args = cli.parse(shlex.split(recipe.command))
    assert (args.recipe, *(getattr(args, need) for need in recipe.needs)) == (name, *["FILE"] * len(recipe.needs))
    assert run.validation >= 1000 and run.keep == "best"


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.needs])
def test_a_recipe_says_what_it_needs(name):
    (need,) = RECIPES[name].needs
    with pytest.raises(ValueError, match=f"The recipe {name} needs .*: say --{need}=FILE"):
        RECIPES[name].check(RECIPES[name].settings)
    RECIPES[name].check(settings(name))


# What the authors' code says (docs/recipes.md names it): epsilon, steps and step size of the attack in pixels; epochs,
# images in a batch, largest learning rate, weight decay and what decays, Nesterov, momentum.
AUTHORS = {
    "sat_resnet": (4, 1, 4, 100, 256, 0.1, 1e-4, "kernels", True, None),
    "free": (4, 1, 4, 23, 256, 0.1, 1e-4, "all", False, None),
    "fast": (8, 1, 10, 15, 128, 0.2, 5e-4, "all", False, "0.8,0.9"),
    "grad_align": (8, 1, 8, 30, 128, 0.3, 5e-4, "all", False, None),
    "madry": (8, 7, 2, 205, 128, 0.1, 2e-4, "kernels", False, None),
    "trades": (0.031 * 255, 10, 0.007 * 255, 76, 128, 0.1, 2e-4, "all", False, None),
    "gowal": (8, 10, 2, 400, 1024, 0.4, 5e-4, "all_but_batch_norm", True, None),
    "rebuffi": (8, 10, 2, 400, 1024, 0.4, 5e-4, "all_but_batch_norm", True, None),
    "wang2023": (8, 10, 2, 400, 512, 0.2, 5e-4, "all_but_batch_norm", True, "0.85,0.95"),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_the_numbers_are_the_authors(name):
    run = Run(**settings(name))
    attack = run.attack()
    found = (attack.ball.epsilon, attack.steps, attack.resolved_step_size, run.epochs, run.batch_size)
    found += (run.learning_rate, run.weight_decay, run.weight_decay_on, run.nesterov, run.cycle_momentum)
    assert found == pytest.approx(AUTHORS[name])
    assert run.optimizer == "torch_sgd"


TINY = {"dataset": "fashion_mnist_mini", "image_size": 8, "batch_size": 20, "train_split": "train[:60]"}
TINY |= {"validation": 10, "epochs": 2, "warmup_epochs": 1.0, "strategy": "none"}
SMALL = {
    "fast": {"model": "ResNet8", "form": None},
    "grad_align": {"model": "ResNet8", "form": None},
    "trades": {"model": "WideResNet10_1"},
    "gowal": {"model": "WideResNet10_1"},
    "rebuffi": {"model": "WideResNet10_1"},
    "wang2023": {"model": "WideResNet10_1"},
    "revisiting_at": {"image_size": 32},
}


@pytest.fixture
def generated(tmp_path):
    """An .npz file of images and labels, as the authors publish them."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (30, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "images.npz", image=images, label=random.integers(0, 10, 30))
    return str(tmp_path / "images.npz")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "revisiting_at")) for name in SMALL]
)
def test_a_recipe_trains(name, generated, built):
    """Some steps of the recipe on a few small images, with a small network."""
    needed = {"extra_data": generated} if "extra_data" in RECIPES[name].needs else {}
    run = Run(**RECIPES[name].settings | TINY | SMALL[name] | needed)
    assert run.form == RECIPES[name].settings.get("form") or "form" in SMALL[name]
    steps = run.steps_per_epoch()
    assert steps == 2
    model, _ = run.build_to_train()
    before = [weight.numpy() for weight in model.trainable_weights]
    trainer = built(training._trainer(run, model, steps, run.epochs), *next(iter(run.training_data())))
    history = trainer.fit(run.training_data(), steps_per_epoch=steps, epochs=2, shuffle=False, verbose=0).history
    assert all(map(math.isfinite, history["loss"]))
    assert trainer.optimizer.iterations == 4
    moved = [np.abs(weight.numpy() - value).max() for weight, value in zip(model.trainable_weights, before)]
    assert max(moved) > 0 and np.isfinite(moved).all()


def test_the_table_of_the_page_is_that_of_the_code():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    for recipe in RECIPES.values():
        assert f"| `{recipe.name}` | {recipe.paper} | {recipe.cost} | {recipe.differs} |" in page
