"""diffusers' UNet2DModel, trained as by its train_unconditional.py, drawn by DPM-Solver++."""

import math
import time

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

N = 2000  # images that each track asks for
STEPS = 20
PART = 250  # images drawn at once
# 8 groups, and a learning rate of 1e-3, suit a network this small (docs/peers.md)
SIZES = {"sample_size": 32, "layers_per_block": 1, "block_out_channels": (32, 32, 64, 128)}
DOWN = "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"
UP = "UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"


def train(images, labels, seconds, seed):
    """Trains as long as drawing leaves time, with a rate that falls by the clock."""
    end = time.monotonic() + 0.95 * seconds
    torch.manual_seed(seed)
    sizes = SIZES | dict.fromkeys(("in_channels", "out_channels"), images.shape[1])
    blocks = {"down_block_types": DOWN, "up_block_types": UP}
    network = UNet2DModel(**sizes, **blocks, norm_num_groups=8)
    precision = "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "no"
    network = Accelerator(cpu=True, mixed_precision=precision).prepare_model(network)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.95, 0.999), weight_decay=1e-6)
    average = EMAModel(network.parameters(), use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def draw(n, seed):
        """sde-dpmsolver++, with x_0 clipped."""
        options = {"algorithm_type": "sde-dpmsolver++", "thresholding": True, "sample_max_value": 1}
        fast = DPMSolverMultistepScheduler.from_config(scheduler.config, **options)
        pipeline = DDPMPipeline(network.eval(), fast)
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": STEPS, "output_type": "pt", "generator": generator}
        sizes = [min(PART, n - first) for first in range(0, n, PART)]
        return (torch.cat([pipeline(s, **options).images for s in sizes]) * 255).round().byte()

    draw(10, 0)  # since a first call takes longer
    began = time.monotonic()
    draw(50, 0)
    end -= min(0.7 * seconds, 1.2 * (time.monotonic() - began) * N / 50)
    began = time.monotonic()
    while time.monotonic() < end:
        done = (time.monotonic() - began) / (end - began)
        optimizer.param_groups[0]["lr"] = min(1, 20 * done) * (1 + math.cos(math.pi * done)) / 2000
        x0 = images[torch.randint(len(images), (128,))].float() / 127.5 - 1
        eps, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
        F.mse_loss(network.train()(scheduler.add_noise(x0, eps, t), t).sample, eps).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())
    average.copy_to(network.parameters())
    return draw
