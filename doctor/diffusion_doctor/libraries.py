"""Objects of other libraries as subjects. The libraries are those from which the objects come.

What counts is which attributes an object has, so that copies of their classes are understood too.
"""

import json
import sys
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_doctor.mathematics import Schedule, check
from diffusion_doctor.plain_functions import exchanged_network, plain_network
from diffusion_doctor.schedule_tables import named_tables, own_schedule, schedule_of
from diffusion_doctor.subject import Conventions, Subject

PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
    "pred_noise": "eps",
    "pred_x0": "x0",
    "pred_v": "v",
}
KNOWN = frozenset({"first_time", "time", "prediction"})
K_STEPS = 38  # of k-diffusion's samplers: 37 divides 999, so that their times are whole


def from_library(code: Any, steps: int, shape: tuple[int, ...]) -> Subject | None:
    """The subject of an object of a library; None where it is none that is known."""
    if isinstance(code, Subject):
        return code
    if isinstance(code, (str, Path)):
        code = open_folder(Path(code))
    schedule = own_schedule(code)
    if schedule is not None:
        return Subject(schedule=schedule, shape=shape)
    if hasattr(code, "scheduler") and hasattr(code, "unet"):
        return of_pipeline(code, steps)
    if hasattr(code, "set_timesteps") and hasattr(code, "step"):
        return of_scheduler(code, steps, shape)
    if hasattr(code, "p_sample_loop") and hasattr(code, "alphas_cumprod"):
        return of_gaussian_diffusion(code, shape)
    if hasattr(code, "sample_sigmas") and hasattr(code, "sigmas"):
        return of_sigma_schedule(code, steps, shape)
    if hasattr(code, "inner_model") and hasattr(code, "get_scalings"):
        return of_denoiser(code, shape)
    return None


def open_folder(folder: Path) -> Any:
    """The pipeline or scheduler that diffusers wrote into a folder, else ValueError."""
    names = {"model_index.json": "DiffusionPipeline", "scheduler_config.json": ""}
    present = [name for name in names if (folder / name).is_file()]
    check(bool(present), f"{folder} holds no pipeline of diffusers: it has no model_index.json")
    diffusers = import_module("diffusers")
    if names[present[0]]:
        return diffusers.DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    config = json.loads((folder / present[0]).read_text(encoding="utf-8"))
    return getattr(diffusers, config["_class_name"]).from_config(config)


def of_pipeline(pipeline: Any, steps: int) -> Subject:
    """A pipeline with a scheduler and a U-Net."""
    config = pipeline.unet.config
    size = config.sample_size
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    subject = of_scheduler(pipeline.scheduler, steps, (config.in_channels, *sides))
    return replace(subject, network=plain_network(pipeline.unet))


def of_scheduler(scheduler: Any, steps: int, shape: tuple[int, ...]) -> Subject:
    """A scheduler of diffusers: its table, add_noise, and a loop over its steps."""
    config = scheduler.config
    is_flow = not hasattr(scheduler, "alphas_cumprod")
    if is_flow:
        b = torch.cat([torch.zeros(1), scheduler.sigmas.double().sort().values])
        b = b[b.diff(prepend=torch.tensor([-1.0])) > 0]
        schedule = Schedule(1 - b, b)
        tables = {}
    else:
        tables = {"given": scheduler.alphas_cumprod}
        schedule = schedule_of(scheduler.alphas_cumprod.cpu(), "alpha_bar")
    prediction = getattr(config, "prediction_type", "flow_prediction" if is_flow else "epsilon")
    clips = getattr(config, "clip_sample", None)

    def sampler(network: Callable, batch: tuple[int, ...]) -> Tensor:
        own = deepcopy(scheduler)
        own.set_timesteps(min(steps, config.num_train_timesteps))
        x = torch.randn(batch) * getattr(own, "init_noise_sigma", 1.0)
        for t in own.timesteps:
            shown = own.scale_model_input(x, t) if hasattr(own, "scale_model_input") else x
            x = own.step(network(shown, t), t, x).prev_sample
        return x

    def forward(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return scheduler.add_noise(x0, noise, t)

    has_own_indices = hasattr(scheduler, "sigmas")  # add_noise wants times of the sampler alone
    name = type(scheduler).__name__
    return Subject(
        schedule=schedule,
        forward=None if has_own_indices else forward,
        sampler=sampler,
        tables=tables,
        clips=False if clips is False else None,
        shape=shape,
        conventions=Conventions(
            first_time=1 if is_flow else 0, prediction=PREDICTIONS.get(prediction, "eps")
        ),
        known=KNOWN,
        places={
            "schedule": f"{name}.alphas_cumprod",
            "forward": f"{name}.add_noise",
            "sampler": f"{name}.step",
        },
    )


def of_gaussian_diffusion(diffusion: Any, shape: tuple[int, ...]) -> Subject:
    """GaussianDiffusion of denoising-diffusion-pytorch, whose network is its attribute model."""
    name = type(diffusion).__name__
    draws_by_ddim = getattr(diffusion, "is_ddim_sampling", False)
    draw = diffusion.ddim_sample if draws_by_ddim else diffusion.p_sample_loop
    sides = getattr(diffusion, "image_size", shape[1:])
    sides = sides if isinstance(sides, tuple) else (sides, sides)
    own_shape = (getattr(diffusion, "channels", shape[0]), *sides)
    scales_images = getattr(diffusion, "normalize", float)(0.0) < 0
    data_range = (0.0, 1.0) if scales_images else (-1.0, 1.0)

    def sampler(network: nn.Module, batch: tuple[int, ...]) -> Tensor:
        with exchanged_network(draw, network):
            return draw(batch)

    def loss(network: nn.Module, x0: Tensor) -> Tensor:
        with exchanged_network(draw, network):
            return diffusion(x0)  # which draws t, and scales images from [0, 1]

    tables = named_tables(diffusion)
    alpha_bar = tables["alphas_cumprod"]
    return Subject(
        schedule=schedule_of(alpha_bar, "alpha_bar"),
        forward=lambda x0, t, noise: diffusion.q_sample(x0, t, noise),
        sampler=sampler,
        network=plain_network(diffusion.model),
        loss=loss,
        tables=tables | {"given": tables.get("betas", alpha_bar)},
        clips=True,
        shape=own_shape,
        conventions=Conventions(
            prediction=PREDICTIONS.get(diffusion.objective, "eps"), data_range=data_range
        ),
        known=KNOWN if hasattr(diffusion, "objective") else frozenset({"first_time", "time"}),
        places={
            "schedule": f"{name}.betas",
            "forward": f"{name}.q_sample",
            "sampler": f"{name}.{'ddim_sample' if draws_by_ddim else 'p_sample_loop'}",
            "network": f"{name}.model",
            "loss": f"{name}.forward",
        },
    )


def of_sigma_schedule(schedule: Any, steps: int, shape: tuple[int, ...]) -> Subject:
    """A Schedule of smalldiffusion, with the function samples of its module."""
    module = sys.modules.get(type(schedule).__module__)
    samples = getattr(module, "samples", None)

    def sampler(network: nn.Module, batch: tuple[int, ...]) -> Tensor:
        *_, x = samples(network, schedule.sample_sigmas(steps), batchsize=batch[0])
        return x

    name = type(schedule).__name__
    return Subject(
        schedule=schedule_of(torch.as_tensor(schedule.sigmas).cpu(), "sigma"),
        sampler=sampler if samples else None,
        tables={"given": torch.as_tensor(schedule.sigmas)},
        shape=shape,
        clips=False,
        conventions=Conventions(time="sigma"),
        known=KNOWN,
        places={"schedule": f"{name}.sigmas", "sampler": "samples"},
    )


def of_denoiser(denoiser: Any, shape: tuple[int, ...]) -> Subject | None:
    """A denoiser of k-diffusion around a network: Euler's steps with an exact network inside."""
    check(
        hasattr(denoiser, "get_sigmas") and hasattr(denoiser, "get_eps"),
        f"{type(denoiser).__name__} has no table of sigmas: pass it as network, with time='sigma' "
        "and prediction='x0'",
    )
    sampling = import_module("k_diffusion.sampling")

    def sampler(network: nn.Module, batch: tuple[int, ...]) -> Tensor:
        own = copy(denoiser)
        own._modules = dict(denoiser._modules) | {"inner_model": network}
        sigmas = own.get_sigmas(K_STEPS)
        return sampling.sample_euler(own, torch.randn(batch) * sigmas[0], sigmas, disable=True)

    sigma = denoiser.sigmas.double().cpu()
    alpha_bar = 1 / (1 + sigma**2)
    name = type(denoiser).__name__
    return Subject(
        schedule=schedule_of(alpha_bar, "alpha_bar"),
        sampler=sampler,
        shape=shape,
        clips=False,
        conventions=Conventions(),
        known=KNOWN,
        places={"schedule": f"{name}.sigmas", "sampler": f"{name}.forward"},
    )
