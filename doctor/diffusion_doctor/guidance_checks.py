"""Checks of guidance: its formula, its scale, and what the network is told for "no label"."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_doctor.report import Check
from diffusion_doctor.subject import CheckEntry, Subject

TOLERANCE = 1e-3
SCALES = 0.0, 1.0, 3.0
IMAGES = 4
PUBLISHED = {  # weights of the outputs with and without label, at scale w
    "uncond + w (cond - uncond)": lambda w: (w, 1 - w),
    "(1 + w) cond - w uncond": lambda w: (1 + w, -w),
}


class LabelledProbe(torch.nn.Module):
    """A network whose output is white noise, one for each label; it records the labels."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed
        self.outputs: dict[str, Tensor] = {}  # by label, as text
        self.weight = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def output_of(self, x: Tensor, label: object) -> Tensor:
        """The noise (1, …) for one image with this label."""
        key = describe_label(label)
        if key not in self.outputs:
            generator = torch.Generator().manual_seed(self.seed + len(self.outputs))
            self.outputs[key] = torch.randn(x.shape[1:], generator=generator)
        return self.outputs[key]

    def forward(self, x: Tensor, t: Tensor, *labels, **named_labels) -> Tensor:
        seen = [each for each in (*labels, *named_labels.values()) if each is not None]
        rows = seen[0] if seen and isinstance(seen[0], Tensor) else None
        if rows is not None and (rows.ndim == 0 or len(rows) != len(x)):
            rows = rows.expand(len(x), *rows.shape[1:])
        singles = [None if rows is None else rows[k] for k in range(len(x))]
        return torch.stack([self.output_of(x, label) for label in singles]).to(x)


def describe_label(label: object) -> str:
    """A label as text, by which outputs are kept."""
    if label is None:
        return "None"
    values = torch.as_tensor(label).detach().cpu().double().flatten().tolist()
    return ", ".join(f"{value:g}" for value in values)


def guidance_checks(subject: Subject, seed: int) -> list[Check]:
    """All checks of guidance."""
    name = "guidance: its formula"
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(IMAGES, *subject.shape, generator=generator)
    t = torch.full((IMAGES,), 1)
    label = 3
    labels = torch.full((IMAGES,), label)
    weights = {}
    for scale in SCALES:
        network = LabelledProbe(seed)
        with torch.no_grad():
            guided = subject.guidance(network, x, t, labels, scale)
        without = [key for key in network.outputs if key != str(label)]
        if scale == SCALES[-1]:
            null = check_null_label(network, label)
            if null.verdict == "wrong":
                return [null]
        pair = fit_weights(network, guided[0], str(label), without)
        if pair is None:
            meaning = "what it returns is no sum of the network's two outputs"
            return [Check(name, "undecided", meaning)]
        weights[scale] = pair
    return [judge_weights(weights), null]


GUIDANCE_ENTRY = CheckEntry("guidance", ("guidance",), guidance_checks)


def fit_weights(
    network: LabelledProbe, guided: Tensor, label: str, without: list[str]
) -> tuple[float, float] | None:
    """The weights of the outputs with and without label in a guided one; None if it is no sum."""
    keys = [key for key in (label, *without[:1]) if key in network.outputs]
    basis = torch.stack([network.outputs[key].flatten().double() for key in keys], dim=1)
    wanted = guided.flatten().double()
    solution = torch.linalg.lstsq(basis, wanted[:, None]).solution.flatten()
    if (basis @ solution - wanted).abs().max() > TOLERANCE * wanted.abs().max().clamp(min=1):
        return None
    weights = dict(zip(keys, solution.tolist()))
    return weights.get(label, 0.0), sum(weights.get(key, 0.0) for key in without[:1])


def check_null_label(network: LabelledProbe, label: int) -> Check:
    """Whether one of the network's two calls has no label."""
    name = "guidance: the call without label"
    seen = list(network.outputs)
    others = [key for key in seen if key != str(label)]
    if not others:
        meaning = f"the network is always called with the label {', '.join(seen)}"
        return Check(name, "wrong", meaning, len(seen), 2, {"no-null-label": 1.0})
    null = others[0]
    if null == "0":
        meaning = "label 0 stands for none: right if classes count from 1"
        return Check(name, "undecided", meaning, 0)
    shown = "None" if null == "None" else f"the label {null}"
    return Check(name, "ok", f"it has {shown}", len(seen), 2)


def judge_weights(weights: dict[float, tuple[float, float]]) -> Check:
    """The weights at all scales against both published formulas.

    One of them with its outputs exchanged, or with another sign, is a wrong sign.
    """
    name = "guidance: its formula"
    errors = {formula: weights_error(weights, each) for formula, each in PUBLISHED.items()}
    formula, error = min(errors.items(), key=lambda item: item[1])
    if error <= TOLERANCE:
        return Check(name, "ok", f"it is {formula}", error, TOLERANCE)
    pair = weights[SCALES[-1]]  # other scales may be cut short, with one of the outputs alone
    meaning = f"at scale {SCALES[-1]:g} it is {pair[0]:.3g} cond {pair[1]:+.3g} uncond"
    turned = {(k * x, m * y) for x, y in (pair, pair[::-1]) for k in (1, -1) for m in (1, -1)}
    errors = [
        weights_error({SCALES[-1]: each}, published)
        for each in turned - {pair}
        for published in PUBLISHED.values()
    ]
    bug = "guidance-sign" if min(errors) <= TOLERANCE else "guidance-scale"
    return Check(name, "wrong", meaning, error, TOLERANCE, {bug: 1.0})


def weights_error(weights: dict[float, tuple[float, float]], published: Callable) -> float:
    """The largest difference of weights from a formula. A network that is not called has 0."""
    errors = [
        abs(measured - right)
        for scale, pair in weights.items()
        for measured, right in zip(pair, published(scale))
    ]
    return max(errors)
