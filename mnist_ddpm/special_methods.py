"""Methods that ask more of a recipe than a prediction: with a second network, or a certain one."""

from mnist_ddpm import networks
from mnist_ddpm.ddpm import check
from mnist_ddpm.methods.distribution_matching import DistributionMatching
from mnist_ddpm.methods.drifting import Drifting
from mnist_ddpm.methods.guidance import Teacher
from mnist_ddpm.methods.mean_flow import MeanFlow
from mnist_ddpm.methods.predictions import Conversion
from mnist_ddpm.recipe import Recipe


def distribution_matching(
    recipe: Recipe, conversion: Conversion, teacher: Teacher | None
) -> DistributionMatching:
    """The method of distribution matching. Raises ValueError where the recipe does not fit."""
    name = f"objective {recipe.objective}"
    has_both = bool(recipe.teacher and recipe.init_from)
    check(has_both, f"{name} needs a teacher and a trained network: name teacher and init_from")
    is_supported = not recipe.conditional and recipe.network == "unet"
    check(is_supported, f"{name} takes no condition, and no network but unet")
    check(recipe.optimizer == "adam", f"{name} takes no optimizer {recipe.optimizer}: take adam")
    times = recipe.student_timesteps
    falls = [*times, 0] == sorted({*times, 0}, reverse=True) and times[:1] == (recipe.T,)
    message = f"student_timesteps are {times}: they must fall, from {recipe.T} to at least 1"
    check(falls or not times, message)
    most = recipe.batch_size  # each time has images in each batch
    check(len(times) <= most, f"student_timesteps are {len(times)}: name at most {most}")
    fake = networks.shortcut_unet(recipe, recipe.channels, recipe.channels)
    return DistributionMatching(conversion, fake, teacher, recipe.learning_rate, times)


def mean_flow(recipe: Recipe, teacher: Teacher | None) -> MeanFlow:
    """The method of mean flows. Raises ValueError where the recipe does not fit."""
    wanted = {"network": "shortcut", "schedule": "flow", "prediction": "velocity"}
    for name, value in wanted.items():
        actual = getattr(recipe, name)
        check(actual == value, f"objective mean-flow takes no {name} {actual}: take {value}")
    check_plain(recipe, teacher)
    return MeanFlow()


def drifting(recipe: Recipe, conversion: Conversion, teacher: Teacher | None) -> Drifting:
    """The method of drifting models. Raises ValueError where the recipe does not fit."""
    check_plain(recipe, teacher)
    return Drifting(conversion)


def check_plain(recipe: Recipe, teacher: Teacher | None) -> None:
    """Raises ValueError for a condition, a teacher or a critic, which the method does not take."""
    name = f"objective {recipe.objective}"
    check(not recipe.conditional, f"{name} takes no condition")
    check(teacher is None, f"{name} takes no teacher")
    check(not recipe.critic, f"{name} takes no critic: set it to 0")
