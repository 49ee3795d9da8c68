"""Checks of a schedule and of the tables that a code derives from it."""

import math

import torch
from torch import Tensor

from diffusion_doctor.mathematics import Schedule
from diffusion_doctor.report import Check
from diffusion_doctor.subject import CheckEntry, Subject, is_variance_preserving

VISIBLE = 0.3  # a_T / b_T above which x_T still shows the image, for certain
FAINT = 0.12  # and below which it does not; DDPM has 0.006, Stable Diffusion 0.068
LARGEST_BETA = 0.9999


def schedule_checks(subject: Subject, seed: int) -> list[Check]:
    """All checks of the schedule."""
    checks = [check_levels(subject.schedule), check_end_of_schedule(subject.schedule)]
    checks += [check_table_precision(subject), check_clean_image(subject.schedule)]
    checks += [check_roots(subject.schedule), check_products(subject)]
    if is_variance_preserving(subject.schedule):
        checks.append(check_last_beta(subject))
        checks += check_derived_tables(subject)
    return [check for check in checks if check is not None]


SCHEDULE_ENTRY = CheckEntry("schedule", ("schedule",), schedule_checks)


def check_levels(schedule: Schedule) -> Check:
    """Whether all levels are finite, and the noise grows against the signal."""
    name = "schedule: noise grows with t"
    a = schedule.a
    b = schedule.b
    is_bad = ~(a.isfinite() & b.isfinite()) | (a < 0) | (b < 0)
    if is_bad.any():
        count = int(is_bad.sum())
        evidence = {"cosine-end": 0.9} if count == 1 and not a[:-1].isnan().any() else {}
        return Check(name, "wrong", f"{count} entries are no levels", count, 0, evidence)
    angle = torch.atan2(b, a)
    falls = int((angle[1:] < angle[:-1] - 1e-9).sum())
    if falls:
        meaning = f"noise shrinks from one t to the next {falls} times of {schedule.T}"
        evidence = {"reversed-schedule": 1.0} if falls > schedule.T / 2 else {}
        return Check(name, "wrong", meaning, falls, 0, evidence)
    return Check(name, "ok", f"it does, over {schedule.T} steps", 0, 0)


def check_end_of_schedule(schedule: Schedule) -> Check:
    """Whether x_T is noise: sampling starts from noise without any image in it."""
    name = "schedule: signal left at T"
    a, b = (level[-1].item() for level in (schedule.a, schedule.b))
    ratio = a / b if b > 0 else math.inf
    meaning = f"x_T is {a:.3g} x_0 + {b:.3g} eps"
    if ratio > VISIBLE:
        meaning += ": it still shows the image, and sampling starts without one"
        is_single = a**2 > 0.9 * (a**2 + b**2)  # one step's alpha; a product is far smaller
        evidence = {"alpha-for-alpha-bar": 1.0, "weak-end": 0.5} if is_single else {"weak-end": 1.0}
        return Check(name, "wrong", meaning, ratio, VISIBLE, evidence)
    return Check(name, "ok" if ratio <= FAINT else "undecided", meaning, ratio, VISIBLE)


def check_clean_image(schedule: Schedule) -> Check | None:
    """Whether entry 0 is the clean image, where the code has such an entry."""
    a, b = schedule.a[0].item(), schedule.b[0].item()
    if abs(a - 1) + abs(b) < 1e-9:
        return None
    name = "schedule: its entry for the clean image"
    meaning = f"it is {a:.4f} x_0 + {b:.4f} eps, not x_0: padded on the wrong side"
    return Check(name, "wrong", meaning, b, 0.0, {"neighbour-padding": 1.0})


def check_roots(schedule: Schedule) -> Check | None:
    """Whether a root is missing: in levels whose squares do not add up to 1, or in sigmas.

    Sigmas are those of betas that are linear, or whose roots are, only with their root.
    """
    name = "schedule: roots of its levels"
    a = schedule.a
    b = schedule.b
    evidence = {"missing-sqrt": 1.0}
    for description, total in (("b", a**2 + b), ("a", a + b**2)):
        if (total - 1).abs().max() < 1e-5 and not is_variance_preserving(schedule):
            off = (a**2 + b**2 - 1).abs().max().item()
            meaning = f"{description} is a share of variance, whose root belongs there"
            return Check(name, "wrong", meaning, off, 1e-5, evidence)
    sigma = b / a
    if schedule.T < 20 or not sigma.isfinite().all():
        return None
    with_root, without = (is_linear(1 / (1 + each)) for each in (sigma**2, sigma))
    if without and not with_root:
        meaning = "its betas are linear if sigma is read as sigma²"
        return Check(name, "wrong", meaning, None, None, evidence)
    return None


def is_linear(alpha_bar: Tensor) -> bool:
    """Whether the betas, or their roots, rise evenly: within a hundredth of their range."""
    beta = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(min=0)
    for table in (beta, beta.sqrt()):
        line = torch.linspace(0, 1, len(table), dtype=table.dtype)
        off = (table - torch.lerp(table[0], table[-1], line)).abs().max()
        if off < 0.01 * (table[-1] - table[0]).abs():
            return True
    return False


def check_products(subject: Subject) -> Check | None:
    """Whether alphas_cumprod is the product of 1 - beta, where the code has both tables."""
    tables = subject.tables or {}
    beta, alpha_bar = (tables.get(name) for name in ("betas", "alphas_cumprod"))
    if beta is None or alpha_bar is None or beta.shape != alpha_bar.shape:
        return None
    name = "schedule: alphas_cumprod of its betas"
    alpha = 1 - beta.double()
    alpha_bar = alpha_bar.double()
    product = alpha.cumprod(0)
    off = (alpha_bar - product).abs().max().item()
    if off < 1e-4:
        return Check(name, "ok", "it is their product", off, 1e-4)
    bug = "half-schedule"
    meaning = "it is not the product of 1 - beta"
    if (alpha_bar.flip(0) - product).abs().max() < 1e-6:
        bug = "reversed-schedule"
    elif (alpha_bar - alpha).abs().max() < 1e-6:
        bug = "alpha-for-alpha-bar"
        meaning = "it is 1 - beta itself"
    weight = 0.5 if bug == "half-schedule" else 1.0
    return Check(name, "wrong", meaning, off, 1e-4, {bug: weight})


def betas_of(schedule: Schedule) -> Tensor:
    """beta_1 … beta_T (T,) of a schedule with a² + b² = 1."""
    return 1 - (schedule.a[1:] / schedule.a[:-1]).square()


def check_last_beta(subject: Subject) -> Check:
    """Whether x_T keeps enough signal for a network that predicts eps."""
    name = "schedule: the last beta"
    beta = betas_of(subject.schedule)[-1].item()
    if subject.schedule.a[-1] > 1e-6 and beta <= LARGEST_BETA:
        return Check(name, "ok", f"it is {beta:.4f}", beta, LARGEST_BETA)
    meaning = f"it is {beta:.6f}, so that x_T has no signal, and eps_hat does not determine x_0"
    if "prediction" not in subject.known:
        meaning += ": right only for networks that predict v or x_0"
        return Check(name, "undecided", meaning, beta, LARGEST_BETA)
    if subject.conventions.prediction in ("eps", "score"):
        return Check(name, "wrong", meaning, beta, LARGEST_BETA, {"cosine-end": 1.0})
    return Check(name, "ok", f"it is {beta:.6f}, which the network's prediction allows", beta, 1.0)


def alphas_of(schedule: Schedule) -> list[Tensor]:
    """alpha_bar and alpha (T,) of any path, as if it were one with a² + b² = 1."""
    ratio = (schedule.b / schedule.a).square()
    alpha_bar = 1 / (1 + ratio)
    return [alpha_bar[1:], alpha_bar[1:] / alpha_bar[:-1]]


def half_precision_of(table: Tensor) -> torch.dtype | None:
    """The half precision in which all values were computed, if they were."""
    is_even = len(table) > 2 and table.double().diff().diff().abs().max() < 1e-7
    for half in () if is_even else (torch.float16, torch.bfloat16):  # k / 1024 is exact
        error = (table.to(half).double() / table.double() - 1).abs()
        if table.dtype == half or (error.max() < 1e-6 and len(table.to(half).unique()) > 20):
            return half
    return None


def check_table_precision(subject: Subject) -> Check:
    """Whether the table was computed in half precision."""
    name = "schedule: precision of its table"
    tables = subject.tables or {}
    all_tables = [tables[key] for key in ("given", "alphas_cumprod", "sigmas") if key in tables]
    if subject.schedule.a.isfinite().all() and (subject.schedule.a > 0).all():
        all_tables += alphas_of(subject.schedule)
    for half in filter(None, map(half_precision_of, all_tables)):
        meaning = f"all its values are {str(half).removeprefix('torch.')}"
        return Check(
            name, "wrong", meaning, torch.finfo(half).eps, 1e-6, evidence={"half-schedule": 1.5}
        )
    return Check(name, "ok", "float32 or better", 0, 0)


def known_tables(schedule: Schedule) -> dict[str, tuple[Tensor, list[tuple[str, str, Tensor]]]]:
    """Tables (T,) that codes have, on a path with a² + b² = 1: what each holds by its name.

    Beside it, what it holds with a bug: the bug, its description and the values.
    """
    alpha_bar = schedule.a[1:].square()
    before = schedule.a[:-1].square()
    beta = betas_of(schedule)
    after = torch.cat([alpha_bar[1:], torch.ones(1)])
    posterior = beta * (1 - before) / (1 - alpha_bar)
    padded = "neighbour-padding", "padded on the wrong side"
    rootless = "missing-sqrt", "without its root"
    of_alpha = "alpha-for-alpha-bar", "of alpha instead of alpha_bar"
    shifted = "posterior-variance", "that of another time"
    of_posterior = [
        (*padded, beta * (1 - after) / (1 - alpha_bar)),
        (*padded, beta),
        (*shifted, posterior.roll(1)),
        (*shifted, posterior.roll(-1)),
    ]
    roots = [(*rootless, alpha_bar), (*of_alpha, (1 - beta).sqrt())]
    other_roots = [(*rootless, 1 - alpha_bar), (*of_alpha, beta.sqrt())]
    return {
        "alphas_cumprod": (alpha_bar, []),
        "alphas_cumprod_prev": (before, [(*padded, after), (*padded, alpha_bar)]),
        "sqrt_alphas_cumprod": (alpha_bar.sqrt(), roots),
        "sqrt_one_minus_alphas_cumprod": ((1 - alpha_bar).sqrt(), other_roots),
        "posterior_variance": (posterior, of_posterior),
    }


def table_error(schedule: Schedule, table: Tensor, right: Tensor) -> float:
    """The relative error in units of float32's rounding, exceeded by a tenth of the entries.

    1 - alpha_bar and beta lose digits where they are small; first entries are often clipped.
    """
    noise = schedule.b[1:].square()
    allowed = 2e-5 + 4e-7 / noise + 4e-7 / betas_of(schedule).clamp(min=1e-6)
    error = (table - right).abs() / right.abs().clamp(min=1e-12)
    error = (error / allowed)[right.isfinite() & allowed.isfinite()]
    return error.nan_to_num(1e9).quantile(0.9).item() if len(error) else 0.0


def check_derived_tables(subject: Subject) -> list[Check]:
    """The derived tables of the code against what their names say."""
    schedule = subject.schedule
    checks = []
    for name, (right, suspects) in known_tables(schedule).items():
        table = (subject.tables or {}).get(name)
        if table is None or table.numel() not in (len(right), len(right) + 1):
            continue
        table = table.detach().cpu().double().flatten()[-len(right) :]
        error = table_error(schedule, table, right)
        fitting = [each for each in suspects if table_error(schedule, table, each[2]) <= 1]
        meaning = "it is what its name says"
        if error > 1:
            meaning = f"it is {fitting[0][1]}" if fitting else "it is not what its name says"
        evidence = {fitting[0][0]: 1.0} if error > 1 and fitting else {}
        verdict = "wrong" if error > 1 else "ok"
        checks.append(Check(f"schedule: {name}", verdict, meaning, error, 1.0, evidence))
    return checks
