"""The bugs that an examination can name: symptom, place, correction and source of each."""

import re
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
        "hide 10 to 20 % of the labels in training: one more label, `classes`, for unknown",
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
    "neighbour-padding": Bug(
        "the neighbour's alpha_bar is another's",
        "noise, or images that brighten and explode in the first steps",
        "alphas_cumprod_prev = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0): a 1 in front",
        "https://github.com/lucidrains/denoising-diffusion-pytorch/issues/18",
    ),
    "ddim-alpha": Bug(
        "DDIM's step with the alpha_bar of another time",
        "grey or glaring images, the more so the fewer steps",
        "x_s = sqrt(ab_s) x0_hat + sqrt(1 - ab_s - sigma²) eps_hat: ab_s of the next time, twice",
        "arXiv 2010.02502, Eq. 12; https://github.com/jsboige/CoursIA/pull/16158",
    ),
    "respacing": Bug(
        "a chain of fewer steps still goes from t to t - 1",
        "noise, where all T steps draw images",
        "take the next time of the list for s, and alpha = ab_t / ab_s",
        "https://github.com/huggingface/diffusers/pull/2076, "
        "https://github.com/huggingface/diffusers/issues/11347",
    ),
    "network-time": Bug(
        "the network gets another t than its image has",
        "grain or blur; noise where the times are those of another list",
        "call the network with the t at which x_t is: that of q_sample in training",
        "https://github.com/Stability-AI/stablediffusion/pull/226",
    ),
    "clamped-state": Bug(
        "x_t is clamped in each step",
        "flat black and white areas without detail",
        "clamp x0_hat, or the result alone: x_t is noise, and a third of it lies outside [-1, 1]",
        "arXiv 2006.11239, Algorithm 2",
    ),
    "early-end": Bug(
        "sampling ends at the first time instead of the image",
        "a faint grain",
        "after the last call go to alpha_bar = 1: the result is x0_hat",
        "https://github.com/Stability-AI/stablediffusion/pull/345",
    ),
    "no-clipping": Bug(
        "x0_hat is not clipped",
        "glaring colours or grey, with few steps or a young network",
        "x0_hat.clamp(-1, 1) in each step, where data are pixels in [-1, 1]",
        "https://github.com/lucidrains/denoising-diffusion-pytorch/issues/47",
    ),
    "stale-eps": Bug(
        "eps_hat is not computed again after clipping",
        "glaring or flat areas in DDIM's images",
        "after clipping: eps_hat = (x_t - sqrt(ab_t) x0_hat) / sqrt(1 - ab_t)",
        "https://github.com/lucidrains/denoising-diffusion-pytorch/pull/84",
    ),
    "missing-sqrt": Bug(
        "a square root is missing",
        "noise, or images that explode or fade",
        "x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps; noise is multiplied by a deviation, sqrt(beta)",
        "arXiv 2006.11239, Eq. 4 and Algorithm 2",
    ),
    "alpha-for-alpha-bar": Bug(
        "alpha in the place of alpha_bar, or the reverse",
        "noise, or images that explode",
        "alpha_bar_t is the product of alpha_1 … alpha_t: torch.cumprod(1 - betas, 0)",
        "https://github.com/labmlai/annotated_deep_learning_paper_implementations/issues/152",
    ),
    "posterior-variance": Bug(
        "the posterior variance is another time's",
        "too smooth or too grainy images",
        "beta_t (1 - ab_s) / (1 - ab_t): 0 in the last step",
        "https://github.com/huggingface/diffusers/pull/3006",
    ),
    "no-noise": Bug(
        "DDPM's steps without noise",
        "blurred, empty images",
        "add sqrt(variance) * torch.randn_like(x) in all steps but the last; or take DDIM's step",
    ),
    "repeated-noise": Bug(
        "every step has the same noise",
        "a pattern in all images",
        "draw noise in the loop, and set the seed before it",
    ),
    "start-noise": Bug(
        "sampling starts from noise of another size",
        "grey images, or images without detail",
        "x = torch.randn(shape), times sigma_max where x_t = x_0 + sigma eps",
    ),
    "weak-end": Bug(
        "the schedule ends before the image is gone",
        "grey images of middling brightness: sampling starts from noise that training never saw",
        "with fewer steps scale beta by 1000 / T, or take the cosine schedule",
        "arXiv 2305.08891",
    ),
    "reversed-schedule": Bug(
        "the schedule runs backwards",
        "noise; the loss falls to almost nothing",
        "beta rises and alpha_bar falls with t",
    ),
    "swapped-factors": Bug(
        "the factors of x_0 and noise are swapped",
        "noise",
        "x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps",
    ),
    "cosine-end": Bug(
        "the cosine schedule's last beta is 1",
        "NaN, or glaring colours from the first step on",
        "clip beta at 0.999, or predict v",
        "arXiv 2102.09672, Section 3.2; https://github.com/openai/guided-diffusion/issues/42",
    ),
    "guidance-sign": Bug(
        "guidance with a wrong sign",
        "images of other labels, or none",
        "uncond + w (cond - uncond), with w above 1",
        "https://github.com/labmlai/annotated_deep_learning_paper_implementations/issues/177",
    ),
    "guidance-scale": Bug(
        "guidance with a wrong scale",
        "glaring images, or no effect",
        "the weights of cond and uncond have the sum 1: w and 1 - w",
        "arXiv 2207.12598, Eq. 6",
    ),
}


def linked(source: str) -> str:
    """A source with its threads and papers as Markdown links."""
    thread = r"https://github\.com/[\w.-]+/([\w.-]+)/(?:issues|pull)/(\d+)"
    source = re.sub(thread, lambda match: f"[{match[1]} #{match[2]}]({match[0]})", source)
    return re.sub(r"arXiv (\d+\.\d+)", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def markdown_rows() -> list[str]:
    """The table of all bugs, for the page about them."""
    rows = ["| bug | symptom | correction | source |", "|---|---|---|---|"]
    for name, bug in BUGS.items():
        cells = f"**{bug.title}** `{name}`", bug.symptom, bug.correction, linked(bug.source)
        rows.append(f"| {' | '.join(cells)} |")
    return rows
