"""Bugs of diffusers' schedulers, and of loops around them: changed attributes and functions."""

from collections.abc import Callable
from functools import partial
from types import MethodType

import torch
import torch.nn.functional as F

from buggy.case import Case, as_cases, cosine_betas, with_changed

STEPS = 50
RATIO = "self.config.num_train_timesteps // self.num_inference_steps"


def scheduler(name: str, **options):
    """A scheduler of diffusers, with its defaults for other options."""
    import diffusers

    return getattr(diffusers, name)(**options)


DDPM = partial(scheduler, "DDPMScheduler")
DDIM = partial(scheduler, "DDIMScheduler")
SOLVER = partial(scheduler, "DPMSolverMultistepScheduler")
CLIPPING_SOLVER = partial(SOLVER, thresholding=True)
LARGE = partial(DDPM, variance_type="fixed_large")
NAMES = {DDPM: "diffusers DDPM", DDIM: "diffusers DDIM", SOLVER: "diffusers DPM-Solver++"}


def loop(made, network, shape, *, time=lambda made, k: made.timesteps[k], **options):
    """Samples as the documentation does; time: what the network is told in step k."""
    made.set_timesteps(STEPS)
    x = torch.randn(shape) * made.init_noise_sigma
    for k, t in enumerate(made.timesteps):
        x = made.scale_model_input(x, t)
        output = network(x, torch.as_tensor(time(made, k)).long().expand(len(x)))
        x = made.step(output, t, x, **options).prev_sample
    return x


def loss(made, network, x0, low=0, high=1000, is_one=False, draw=torch.randn_like):
    """The loss of a training with a scheduler's add_noise."""
    t = torch.randint(low, high, (1 if is_one else len(x0),)).expand(len(x0))
    noise = draw(x0)
    return F.mse_loss(network(made.add_noise(x0, noise, t), t), noise)


def sampled(made, **options) -> dict:
    """What is given where the user has a loop for sampling."""
    given = {"schedule": made.alphas_cumprod}
    if not hasattr(made, "sigmas"):  # with them, add_noise needs set_timesteps before
        given["forward"] = made.add_noise
    return given | {"sampler": partial(loop, made, **options)}


def trained(**options) -> dict:
    """What is given where the user has a loop for training."""
    made = DDPM()
    given = {"schedule": made.alphas_cumprod, "forward": made.add_noise}
    return given | {"loss": partial(loss, made, **options)}


def with_table(made, bar: torch.Tensor):
    """The scheduler with another alphas_cumprod."""
    made.alphas_cumprod = bar
    made.sigmas = ((1 - bar) / bar) ** 0.5
    made.lambda_t = -made.sigmas.log()
    return made


def of_alpha(make: Callable):
    """A scheduler with alpha for alphas_cumprod."""
    return with_table(make(), make().alphas)


def half(make: Callable):
    """A scheduler whose product is in float16."""
    return with_table(make(), make().alphas.half().cumprod(0).float())


def end_of_cosine(make: Callable):
    """A cosine schedule whose last beta is not clipped."""
    return make(trained_betas=cosine_betas(1000).tolist())


def rootless(make: Callable):
    """add_noise with 1 - alpha_bar, its root left out."""
    return noised_by(make, lambda bar, alpha: (bar**0.5, 1 - bar))


def noised_by_alpha(make: Callable):
    """add_noise with alpha for alpha_bar."""
    return noised_by(make, lambda bar, alpha: (alpha**0.5, (1 - alpha) ** 0.5))


def told(time: Callable) -> Callable:
    """A loop whose network is told another time: time of (scheduler, step)."""
    return lambda make: sampled(make(), time=time)


def noised_by(make: Callable, levels: Callable):
    """A scheduler whose add_noise has other factors: levels of (alpha_bar, alpha)."""
    made = make()

    def add_noise(x0, noise, timesteps):
        tables = (
            table[timesteps].view(-1, 1, 1, 1) for table in (made.alphas_cumprod, made.alphas)
        )
        signal, deviation = levels(*tables)
        return signal * x0 + deviation * noise

    made.add_noise = add_noise
    return made


def previous(change: Callable):
    """DDPM with another neighbour: change of t."""
    made = DDPM()
    made.previous_timestep = lambda t: change(int(t))
    return made


def variance(change: Callable):
    """DDPM with another variance: change of (the right function, t)."""

    def get_variance(self, t, **options):
        return change(partial(type(self)._get_variance, self), int(t))

    made = DDPM()
    made._get_variance = MethodType(get_variance, made)
    return made


def ended():
    """DDPM whose clean image has alpha_bar_1."""
    made = DDPM()
    made.one = made.alphas_cumprod[0]
    return made


def with_uniform(made):
    """A scheduler whose steps draw uniform noise."""
    draw = lambda shape, dtype=None, **_: torch.rand(shape, dtype=dtype)  # noqa: E731
    return with_changed(made, "step", randn_tensor=draw)


def stretched():
    """A solver of first order whose next sigma is always that of t - 1."""

    def sigma_before(made):
        bar = made.alphas_cumprod[int(made.timesteps[made.step_index]) - 1]
        return ((1 - bar) / bar) ** 0.5

    changes = "self.sigmas[self.step_index + 1]", "sigma_before(self)"
    made = SOLVER(solver_order=1)
    return with_changed(made, "dpm_solver_first_order_update", changes, sigma_before=sigma_before)


def step_of_ddim(old: str, new: str):
    """DDIM with a piece of its step replaced."""
    return with_changed(DDIM(), "step", (old, new))


def noisy_ddim(old: str, new: str) -> dict:
    """DDIM with eta 1 and a piece of its step replaced."""
    return sampled(step_of_ddim(old, new), eta=1.0)


# of all schedulers: bug, what is changed, a function of the scheduler's class
COMMON = [
    ("alpha-for-alpha-bar", "alphas_cumprod = alphas", of_alpha),
    ("half-schedule", "cumprod in float16", half),
    ("cosine-end", "last beta of 1", end_of_cosine),
    ("missing-sqrt", "add_noise: 1 - ᾱ", rootless),
    ("alpha-for-alpha-bar", "add_noise: α", noised_by_alpha),
    ("network-time", "network(x, t - 1)", told(lambda made, k: made.timesteps[k] - 1)),
    ("network-time", "network(x, step)", told(lambda made, k: k)),
    ("network-time", "network(x, next t)", told(lambda made, k: [*made.timesteps, 0][k + 1])),
]
# of one: bug, what is changed, a function of nothing
OF_DDPM = [
    ("neighbour-padding", "neighbour t + 1", lambda: previous(lambda t: min(t + 1, 999))),
    ("respacing", "neighbour t - 1", lambda: previous(lambda t: t - 1)),
    ("last-noise", "fixed_large", lambda: with_changed(LARGE(), "step", ("t > 0", "True"))),
    ("early-end", "ᾱ of the clean image: ᾱ_1", ended),
    ("no-clipping", "clip_sample=False", lambda: DDPM(clip_sample=False)),
    ("missing-sqrt", "variance times noise", lambda: variance(lambda right, t: right(t) ** 2)),
    ("uniform-noise", "rand in the steps", lambda: with_uniform(DDPM())),
    ("posterior-variance", "of t + 20", lambda: variance(lambda right, t: right(min(t + 20, 980)))),
    ("posterior-variance", "of t - 20", lambda: variance(lambda right, t: right(max(t - 20, 0)))),
    ("uniform-noise", "rand in training", lambda: trained(draw=torch.rand_like)),
    ("one-time", "one t a batch", lambda: trained(is_one=True)),
    ("unseen-end", "randint(0, 900)", lambda: trained(high=900)),
    ("unseen-end", "randint(1, 1000)", lambda: trained(low=1)),
]
OF_DDIM = [
    ("early-end", "set_alpha_to_one=False", lambda: DDIM(set_alpha_to_one=False)),
    ("no-clipping", "clip_sample=False", lambda: DDIM(clip_sample=False)),
    ("stale-eps", "use_clipped_model_output=False", lambda: sampled(DDIM())),
    ("respacing", "neighbour t - 1", lambda: step_of_ddim(RATIO, "1")),
    ("ddim-alpha", "ᾱ_t before eps_hat", lambda: step_of_ddim("_t_prev - std", "_t - std")),
    ("missing-sqrt", "ᾱ_s before x0_hat", lambda: step_of_ddim("t_prev ** (0.5) *", "t_prev *")),
    ("uniform-noise", "rand in the steps, η 1", lambda: sampled(with_uniform(DDIM()), eta=1.0)),
    ("ddim-alpha", "σ² not subtracted", lambda: noisy_ddim("- std_dev_t**2", "")),
]
OF_SOLVER = [
    ("early-end", "final_sigmas_type", lambda: SOLVER(final_sigmas_type="sigma_min")),
    ("no-clipping", "thresholding=False", SOLVER),
    ("respacing", "σ of t - 1", stretched),
]
HEALTHY = [
    (DDPM, "", DDPM),
    (DDPM, "fixed_large", LARGE),
    (DDPM, "v", partial(DDPM, prediction_type="v_prediction")),
    (DDPM, "x0", partial(DDPM, prediction_type="sample")),
    (DDPM, "cosine", partial(DDPM, beta_schedule="squaredcos_cap_v2")),
    (DDPM, "trailing", partial(DDPM, timestep_spacing="trailing")),
    (DDPM, "linspace", partial(DDPM, timestep_spacing="linspace")),
    (DDPM, "training", trained),
    (DDIM, "recomputed eps", lambda: sampled(DDIM(), use_clipped_model_output=True)),
    (SOLVER, "", CLIPPING_SOLVER),
    (SOLVER, "sde", partial(CLIPPING_SOLVER, algorithm_type="sde-dpmsolver++")),
    (SOLVER, "Karras' sigmas", partial(CLIPPING_SOLVER, use_karras_sigmas=True)),
]


def healthy() -> list[Case]:
    """The schedulers with their defaults, and with other settings that are right as well."""
    return [case for make, *row in HEALTHY for case in as_cases(NAMES[make], [("", *row)])]


def ill() -> list[Case]:
    """One case for each bug and scheduler."""
    own = {DDPM: OF_DDPM, DDIM: OF_DDIM, SOLVER: OF_SOLVER}
    cases = []
    for make, name in NAMES.items():
        rows = [row for row in COMMON if make is not SOLVER or not row[1].startswith("add_noise")]
        common = [(bug, text, partial(change, make)) for bug, text, change in rows]
        cases += as_cases(name, common + own[make])
    return cases
