"""The peers, each imported by its own process alone."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contest.contestant import FEW, Contestant, Task


class Lucidrains(Contestant):
    """Step as its Trainer's: Adam, clipped, EMA 0.995; predicts v. Rate 1e-3, and EMA in every
    step: with 8e-5 and EMA in every tenth, made for larger networks and days, little is learned in
    minutes. Its DDIM sampler with η = 1, and batches of 32, which in trials did better than its own
    η = 0, and than 128."""

    package, names = "denoising_diffusion_pytorch", ("GaussianDiffusion", "Unet")
    NETWORK: ClassVar[dict] = dict(dim=32, dim_mults=(1, 1, 2, 4), channels=1, flash_attn=True)
    BATCH = 32

    def __init__(self, task: Task):
        super().__init__(task)
        GaussianDiffusion, Unet = self.imported()
        self.network = self.in_precision(Unet(**self.NETWORK))
        options = {"timesteps": 1000, "sampling_timesteps": 250, "ddim_sampling_eta": 1.0}
        self.diffusion = GaussianDiffusion(self.network, image_size=32, **options)

    def training(self, images: Tensor) -> Iterator:
        from ema_pytorch import EMA

        diffusion, rate = self.diffusion, self.task.rate or 1e-3
        optimizer = torch.optim.Adam(diffusion.parameters(), lr=rate, betas=(0.9, 0.99))
        average = EMA(diffusion, beta=0.995, update_every=1)
        self.diffusion, self.network = average.ema_model, average.ema_model.model
        diffusion.train()
        for batch in self.task.batches(images):
            diffusion(batch.float() / 255).backward()
            nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update()
            yield

    def sample(self, n: int, evaluations: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        self.diffusion.eval().sampling_timesteps = evaluations
        return (self.diffusion.sample(batch_size=n) * 255).clamp(0, 255).round().byte()


class Diffusers(Contestant):
    """As its train_unconditional.py --use_ema: AdamW, cosine, clipped. Learning rate 1e-3, as its
    course takes for MNIST; the script's 1e-4 is for a network forty times as large. 8 groups in a
    normalisation: its own 32 leave one channel to each, which hides from the network how bright an
    image is, and its digits are lost on white and grey."""

    package = "diffusers"
    names = "UNet2DModel", "DDPMScheduler", "DDPMPipeline"
    FEWER = "By its DPMSolverMultistepScheduler, sde-dpmsolver++, as this project draws."
    SIZES: ClassVar[dict] = {"sample_size": 32, "block_out_channels": (32, 32, 64, 128)}
    NETWORK: ClassVar[dict] = SIZES | {
        **dict.fromkeys(("in_channels", "out_channels", "layers_per_block"), 1),
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    }

    def __init__(self, task: Task):
        super().__init__(task)
        UNet2DModel, DDPMScheduler, DDPMPipeline = self.imported()
        self.network = self.in_precision(UNet2DModel(**self.NETWORK)).eval()
        self.noise, self.average = DDPMScheduler(num_train_timesteps=1000), None
        self.pipeline = DDPMPipeline(self.network, self.noise)
        self.pipeline.set_progress_bar_config(disable=True)

    def training(self, images: Tensor) -> Iterator:
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        task, network = self.task, deepcopy(self.network).train()
        parameters = list(network.parameters())
        options = {"lr": task.rate or 1e-3, "betas": (0.95, 0.999), "weight_decay": 1e-6}
        optimizer = torch.optim.AdamW(parameters, **options)
        counts = {"num_warmup_steps": task.warmup, "num_training_steps": task.steps}
        plan = get_scheduler("cosine", optimizer, **counts)
        options = {"decay": 0.9999, "use_ema_warmup": True, "inv_gamma": 1.0, "power": 0.75}
        self.average = EMAModel(parameters, **options)
        for batch in islice(task.batches(images), task.steps):
            x0 = batch.float() / 127.5 - 1
            eps, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
            F.mse_loss(network(self.noise.add_noise(x0, eps, t), t).sample, eps).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            plan.step()
            optimizer.zero_grad()
            self.average.step(parameters)
            yield

    def fast_scheduler(self):
        """The scheduler for few evaluations, which a cold start does not import."""
        from diffusers import DPMSolverMultistepScheduler

        options = {"thresholding": True, "sample_max_value": 1.0}
        options["algorithm_type"] = "sde-dpmsolver++"
        return DPMSolverMultistepScheduler.from_config(self.noise.config, **options)

    def sample(self, n: int, evaluations: int, seed: int) -> Tensor:
        if self.average:
            self.average.copy_to(self.network.parameters())
        self.pipeline.scheduler = self.fast_scheduler() if evaluations <= FEW else self.noise
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": evaluations, "output_type": "pt"}
        return (self.pipeline(n, generator, **options).images * 255).round().byte()


class SmallDiffusion(Contestant):
    """As its example for FashionMNIST: its training_loop, AdamW, 7e-4, EMA 0.999. Its DDPM sampler,
    gam 1 and mu 0.5, which in a trial did better than the accelerated one."""

    package = "smalldiffusion"
    FEWER = "By its accelerated sampler, gam 2 and mu 0."
    names = "Unet", "Scaled", "ScheduleLogLinear", "training_loop", "samples", "img_normalize"
    SIZES: ClassVar[dict] = {"in_dim": 32, "ch": 32, "ch_mult": (1, 1, 2, 4)}
    BLOCKS: ClassVar[dict] = {"num_res_blocks": 1, "attn_resolutions": (16,)}
    NETWORK: ClassVar[dict] = SIZES | BLOCKS | {"in_ch": 1, "out_ch": 1}

    def __init__(self, task: Task):
        super().__init__(task)
        from accelerate import Accelerator

        Unet, Scaled, ScheduleLogLinear, *functions = self.imported()
        self.loop, self.samples, self.normalize = functions
        mixed = "no" if task.precision == "float32" else "bf16"
        self.accelerator = Accelerator(cpu=True, mixed_precision=mixed)
        self.network = self.in_precision(Scaled(Unet)(**self.NETWORK))
        self.schedule = ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800)

    def training(self, images: Tensor) -> Iterator:
        model, task, rate = self.network, self.task, self.task.rate or 7e-4

        def averaged(average: Tensor, weight: Tensor, n: Tensor) -> Tensor:
            """With the decay of torch-ema, which the example uses."""
            return average.lerp(weight, 1 - min(0.999, (1 + n.item()) / (10 + n.item())))

        average = torch.optim.swa_utils.AveragedModel(model, avg_fn=averaged)
        self.network = average.module
        loader = (batch.float() / 127.5 - 1 for batch in task.batches(images))
        for _ in self.loop(loader, model, self.schedule, self.accelerator, lr=rate):
            average.update_parameters(model)
            yield

    def sample(self, n: int, evaluations: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        sigmas = self.schedule.sample_sigmas(evaluations)
        gam, mu = (2.0, 0.0) if evaluations <= FEW else (1.0, 0.5)
        options = {"gam": gam, "mu": mu, "batchsize": n, "accelerator": self.accelerator}
        *_, x0 = self.samples(self.network, sigmas, **options)
        return (self.normalize(x0) * 255).round().byte()
