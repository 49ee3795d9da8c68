"""denoising-diffusion-pytorch's Unet and GaussianDiffusion, a step as its Trainer's.

Learning rate 1e-3, the average in every step and batches of 32 suit minutes (docs/peers.md).
"""

import time

import torch
from accelerate import Accelerator
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA

N = 2000  # images that each track asks for
STEPS = 5  # ten take nearly all of five minutes on two cores
PART = 50  # images drawn at once: 200 take half as long again for each
DRAWING = 0.7  # of the time, at most


def train(images, labels, seconds, seed):
    """Trains as long as drawing leaves time."""
    end = time.monotonic() + 0.95 * seconds
    torch.manual_seed(seed)
    network = Unet(dim=32, dim_mults=(1, 1, 2, 4), channels=images.shape[1], flash_attn=True)
    precision = "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "no"
    network = Accelerator(cpu=True, mixed_precision=precision).prepare_model(network)
    options = {"timesteps": 1000, "sampling_timesteps": STEPS, "ddim_sampling_eta": 1.0}
    diffusion = GaussianDiffusion(network, image_size=32, **options)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-3, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=1)

    def draw(n, seed):
        """Its DDIM with fresh noise."""
        torch.manual_seed(seed)
        model = average.ema_model.eval()
        sizes = [min(PART, n - first) for first in range(0, n, PART)]
        drawn = torch.cat([model.sample(batch_size=size) for size in sizes])
        return (drawn * 255).clamp(0, 255).round().byte()

    draw(10, 0)  # since a first call takes longer
    began = time.monotonic()
    draw(50, 0)
    end -= min(DRAWING * seconds, 1.2 * (time.monotonic() - began) * N / 50)
    diffusion.train()
    while time.monotonic() < end:
        x0 = images[torch.randint(len(images), (32,))].float() / 255
        diffusion(x0).backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
    return draw
