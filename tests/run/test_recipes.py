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


def test_the_papers_recipe_is_the_papers():
    run = Run(**RECIPES["sat_resnet"].settings)
    attack = run.attack()
    assert (attack.steps, attack.ball.epsilon, attack.resolved_step_size, attack.clean_start) == (1, 4, 4, 0.2)
    assert (run.epochs, run.optimizer, run.label_smoothing, run.weight_decay) == (100, "sgd", 0.1, 1e-4)


TINY = {"dataset": "fashion_mnist_mini", "image_size": 8, "batch_size": 20, "train_split": "train[:60]"}
TINY |= {"validation": 10, "epochs": 2, "warmup_epochs": 1.0, "strategy": "none"}
SMALL = {
    "fast": {"model": "ResNet8", "form": None},
    "grad_align": {"model": "ResNet8", "form": None},
    "trades": {"model": "WideResNet10_1"},
    "gowal": {"model": "WideResNet10_1"},
    "rebuffi": {"model": "WideResNet10_1"},
    "wang2023": {"model": "WideResNet10_1"},
    "revisiting_at": {"model": "ResNet8", "form": None},
}


@pytest.fixture
def generated(tmp_path):
    """An .npz file of images and labels, as the authors publish them."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (30, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "images.npz", image=images, label=random.integers(0, 10, 30))
    return str(tmp_path / "images.npz")


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_trains(name, generated, built):
    """Some steps of the recipe on a few small images, with a small network."""
    needed = {"extra_data": generated} if "extra_data" in RECIPES[name].needs else {}
    run = Run(**RECIPES[name].settings | TINY | SMALL[name] | needed)
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
