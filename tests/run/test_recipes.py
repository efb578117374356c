"""Published settings."""

import shlex

import pytest

from keras_sat import cli
from keras_sat.run import RECIPES, Run


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_runs(name):
    recipe = RECIPES[name]
    run = Run(**recipe.settings)
    assert run.attack().ball.epsilon in (4, 8)
    assert all((recipe.paper, recipe.cost, recipe.differs))
    assert cli.parse(shlex.split(recipe.command)).recipe == name


def test_the_papers_recipe_is_the_papers():
    run = Run(**RECIPES["sat_resnet"].settings)
    attack = run.attack()
    assert (attack.steps, attack.ball.epsilon, attack.resolved_step_size, attack.clean_start) == (1, 4, 4, 0.2)
    assert (run.epochs, run.optimizer, run.label_smoothing, run.weight_decay) == (100, "sgd", 0.1, 1e-4)
