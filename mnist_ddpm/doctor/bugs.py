"""The bugs that an examination can name: symptom, place, correction and source of each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """One bug that people really make."""

    title: str  # as a row of a table: "noise in the last step"
    symptom: str  # what the pictures or the loss show
    correction: str  # the right line, or what to do
    source: str = ""  # a thread, a paper or a pull request


BUGS: dict[str, Bug] = {
    "last-noise": Bug(
        "noise in the last step",
        "good images under an even grain",
        "add noise only while s > 0: the last step is the mean alone",
    ),
    "channel-groups": Bug(
        "a normalisation takes each channel alone",
        "grey or tinted patches; brightness and colour come out wrong; t has little effect",
        "give a group 4 channels or more: GroupNorm(channels // 4, channels), and no InstanceNorm",
        "arXiv 1803.08494, Section 3.2: with one channel a group it is instance normalisation",
    ),
    "attention-reshape": Bug(
        "attention is reshaped instead of permuted",
        "training works, but the samples are worse: the network works around scrambled positions",
        "(N, C, H, W) to rows: x.flatten(2).mT; and back: rows.mT.reshape(x.shape)",
        "https://github.com/leaderj1001/Attention-Augmented-Conv2d/issues/21, "
        "https://github.com/jsbaan/transformer-from-scratch/pull/6",
    ),
    "batch-leak": Bug(
        "an image's prediction depends on the others of its batch",
        "good in training, noise or other colours in sampling, and with another batch size",
        "take GroupNorm for BatchNorm: a batch mixes noise levels in training, and not in sampling",
        "https://github.com/real-stanford/diffusion_policy/issues/103",
    ),
    "time-ignored": Bug(
        "the network ignores t",
        "blurred or noisy samples; the loss stays higher",
        "add the embedding of t in each block, before a normalisation of several channels",
        "https://github.com/samb-t/unleashing-transformers/issues/10",
    ),
    "unit-time": Bug(
        "t in [0, 1] goes into frequencies made for 1 … 1000",
        "worse samples: all embeddings of t are nearly the same",
        "give the embedding 1000 t",
        "https://github.com/willisma/SiT/issues/24, "
        "https://github.com/ArchiMickey/Just-a-DiT/pull/9",
    ),
    "averaged-buffers": Bug(
        "buffers are averaged with the weights",
        "the averaged network draws black images, the raw one good images",
        "average parameters alone, and copy buffers",
        "https://github.com/lucidrains/denoising-diffusion-pytorch/issues/136",
    ),
    "young-average": Bug(
        "the weights' average is too young",
        "the averaged network draws noise, the raw one images",
        "warm the decay up: min(decay, (1 + step) / (10 + step)); or sample from the raw weights",
        "https://github.com/openai/improved-diffusion/issues/59, "
        "https://github.com/konpatp/diffae/issues/16",
    ),
    "one-time": Bug(
        "all images of a batch have the same t",
        "the loss jumps from step to step; blurred samples after the usual number of steps",
        "t = torch.randint(…, (len(x0),)): one t for each image",
    ),
    "unseen-end": Bug(
        "training never sees the last t, or the first",
        "a tint or a grain in all samples: sampling begins where the network never was",
        "the end of torch.randint is excluded: randint(1, T + 1, …), or randint(0, T, …) from 0",
        "https://github.com/lucidrains/imagen-pytorch/issues/265",
    ),
    "uniform-noise": Bug(
        "rand for randn",
        "grey or washed-out samples",
        "noise is normal: torch.randn_like(x0)",
        "https://github.com/acids-ircam/diffusion_models/issues/8",
    ),
    "shared-noise": Bug(
        "all images of a batch have the same noise",
        "the loss jumps from step to step; worse samples",
        "torch.randn_like(x0), of the shape of the batch",
    ),
    "data-range": Bug(
        "the data are in [0, 1] or 0 … 255",
        "washed-out, grey samples; or noise, where the noise is drowned",
        "scale images to [-1, 1]: x / 127.5 - 1",
        "https://github.com/lucidrains/DALLE2-pytorch/issues/96, "
        "https://github.com/lucidrains/denoising-diffusion-pytorch/issues/20",
    ),
    "other-target": Bug(
        "the loss compares with something else than what is in x_t",
        "the loss stays near that of a network that knows nothing; samples are noise",
        "draw the noise once: in x_t, and as the target",
    ),
    "no-null-label": Bug(
        "no label for guidance's network without labels",
        "guidance with a scale above 1 draws noise or glaring colours",
        "hide 10 to 20 % of the labels in training: a label of its own, `classes`, for unknown",
        "arXiv 2207.12598, Algorithm 1; https://github.com/NVlabs/Sana/issues/188",
    ),
    "frozen-likelihood": Bug(
        "bits/dim with a frozen t",
        "bits/dim far from others', or different by a factor from run to run",
        "set t in each turn of the loop over the bound's terms",
        "https://github.com/tqch/ddpm-torch/issues/20",
    ),
    "half-schedule": Bug(
        "the schedule's tables are in half precision",
        "grain or noise in the last steps, infinities where alpha_bar is rounded to 1",
        "keep the tables in float64 or float32, also where the network is in half precision",
        "https://github.com/huggingface/diffusers/pull/3005, "
        "https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/14071",
    ),
}
