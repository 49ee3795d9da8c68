"""Methods that few need, added to the catalogue as docs/extend.md says."""

from mnist_ddpm import catalogue
from mnist_ddpm.ddpm import check
from mnist_ddpm.method import PlainMethod
from mnist_ddpm.methods.guidance import Teacher
from mnist_ddpm.methods.predictions import unweighted
from mnist_ddpm.recipe import Recipe


def add_methods() -> None:
    """Adds the objectives "shortcuts", "mean-flow" and "drifting" to the catalogue."""
    entries = {"shortcuts": make_shortcuts, "mean-flow": make_mean_flow, "drifting": make_drifting}
    for name, make in entries.items():
        catalogue.OBJECTIVES[name] = catalogue.MethodEntry(make)


def check_plain(recipe: Recipe, *names: str) -> None:
    """Raises ValueError where one of these settings has another value than its default."""
    for name in names:
        value = getattr(recipe, name)
        is_default = value == getattr(Recipe, name)
        check(is_default, f"objective {recipe.objective} takes no {name} ({value}): leave it out")


def make_shortcuts(recipe: Recipe, teacher: Teacher | None):
    """The method of shortcut models, for --network shortcut. Raises ValueError for others."""
    from experiments.methods.shortcuts import Shortcuts

    takes_step = catalogue.takes_next_time(recipe)
    check(takes_step, "objective shortcuts needs a network that knows its step: take shortcut")
    check_plain(recipe, "condition")
    conversion = catalogue.conversion_of(recipe)
    return Shortcuts(PlainMethod(unweighted(conversion)), conversion, teacher)


def make_mean_flow(recipe: Recipe, teacher: Teacher | None):
    """The method of mean flows. Raises ValueError where the recipe does not fit."""
    from experiments.methods.mean_flow import MeanFlow

    wanted = {"network": "shortcut", "schedule": "flow", "prediction": "velocity"}
    for name, value in wanted.items():
        actual = getattr(recipe, name)
        check(actual == value, f"objective mean-flow takes no {name} {actual}: take {value}")
    check_plain(recipe, "condition", "teacher", "critic")
    return MeanFlow()


def make_drifting(recipe: Recipe, teacher: Teacher | None):
    """The method of drifting models. Raises ValueError where the recipe does not fit."""
    from experiments.methods.drifting import Drifting

    check(teacher is None, "objective drifting takes no teacher")
    # images of a batch are compared with each other, which parts of it would not be
    check_plain(recipe, "condition", "teacher", "critic", "accumulation")
    return Drifting(catalogue.conversion_of(recipe))
