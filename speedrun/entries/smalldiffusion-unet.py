"""smalldiffusion's Unet, its training_loop and sampler, as in its example for FashionMNIST."""

import time

import torch
from accelerate import Accelerator
from smalldiffusion import Scaled, ScheduleLogLinear, Unet, img_normalize, samples, training_loop

N = 2000  # images that each track asks for
STEPS = 20
PART = 50  # images drawn at once: 250 take half as long again for each
DRAWING = 0.7  # of the time, at most


def train(images, labels, seconds, seed):
    """Trains as long as drawing leaves time."""
    end = time.monotonic() + 0.95 * seconds
    torch.manual_seed(seed)
    channels = images.shape[1]
    sizes = {"in_dim": 32, "ch": 32, "ch_mult": (1, 1, 2, 4), "attn_resolutions": (16,)}
    network = Scaled(Unet)(**sizes, num_res_blocks=1, in_ch=channels, out_ch=channels)
    schedule = ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800)
    precision = "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "no"
    accelerator = Accelerator(cpu=True, mixed_precision=precision)

    def averaged(average, weight, n):
        """With the decay of torch-ema, which the example uses."""
        return average.lerp(weight, 1 - min(0.999, (1 + n.item()) / (10 + n.item())))

    average = torch.optim.swa_utils.AveragedModel(network, avg_fn=averaged)

    def draw(n, seed):
        """Its sampler with gam 1 and mu 0.5, which is DDPM's."""
        torch.manual_seed(seed)
        options = {"gam": 1.0, "mu": 0.5, "accelerator": accelerator}
        parts = []
        for first in range(0, n, PART):
            size = min(PART, n - first)
            *_, x0 = samples(
                average.module, schedule.sample_sigmas(STEPS), batchsize=size, **options
            )
            parts.append(img_normalize(x0))
        return (torch.cat(parts) * 255).round().byte()

    def batches():
        """Until the time is up."""
        while time.monotonic() < end:
            yield images[torch.randint(len(images), (128,))].float() / 127.5 - 1

    draw(10, 0)  # since a first call takes longer
    began = time.monotonic()
    draw(50, 0)
    end -= min(DRAWING * seconds, 1.2 * (time.monotonic() - began) * N / 50)
    for _ in training_loop(batches(), network, schedule, accelerator, lr=7e-4):
        average.update_parameters(network)
    return draw
