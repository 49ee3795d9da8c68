"""Checks of a schedule and of the tables that a code derives from it."""

import math

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Schedule
from mnist_ddpm.doctor.report import Check
from mnist_ddpm.doctor.subject import CheckEntry, Subject, is_variance_preserving

VISIBLE = 0.3  # a_T / b_T above which x_T still shows the image, for certain
FAINT = 0.12  # and below which it does not; DDPM has 0.006, Stable Diffusion 0.068
LARGEST_BETA = 0.9999


def schedule_checks(subject: Subject, seed: int) -> list[Check]:
    """All checks of the schedule."""
    checks = [check_levels(subject), check_end_of_schedule(subject), check_table_precision(subject)]
    checks += [check_clean_image(subject), check_roots(subject), check_products(subject)]
    checks = [check for check in checks if check is not None]
    if is_variance_preserving(subject.schedule):
        checks.append(check_last_beta(subject))
        for name, table in (subject.tables or {}).items():
            checks += check_table(subject, name, table)
    return checks


SCHEDULE_ENTRY = CheckEntry("schedule", ("schedule",), schedule_checks)


def check_levels(subject: Subject) -> Check:
    """Whether all levels are finite, and the noise grows against the signal."""
    name = "schedule: noise grows with t"
    a = subject.schedule.a
    b = subject.schedule.b
    place = subject.place("schedule")
    if not (a.isfinite() & b.isfinite()).all() or (a < 0).any() or (b < 0).any():
        count = int((~(a.isfinite() & b.isfinite()) | (a < 0) | (b < 0)).sum())
        evidence = {"cosine-end": 0.9} if count == 1 and not a[:-1].isnan().any() else {}
        return Check(
            name,
            "wrong",
            f"{count} entries are no levels",
            count,
            0,
            where=place,
            evidence=evidence,
        )
    angle = torch.atan2(b, a)
    falls = int((angle[1:] < angle[:-1] - 1e-9).sum())
    if falls:
        meaning = f"noise shrinks from one t to the next {falls} times of {subject.T}"
        evidence = {"reversed-schedule": 1.0} if falls > subject.T / 2 else {}
        return Check(name, "wrong", meaning, falls, 0, place, evidence=evidence)
    return Check(name, "ok", f"it does, over {subject.T} steps", 0, 0, place)


def check_end_of_schedule(subject: Subject) -> Check:
    """Whether x_T is noise: sampling starts from noise without any image in it."""
    name = "schedule: signal left at T"
    a, b = (level[-1].item() for level in (subject.schedule.a, subject.schedule.b))
    ratio = a / b if b > 0 else math.inf
    place = subject.place("schedule")
    meaning = f"x_T is {a:.3g} x_0 + {b:.3g} eps"
    if ratio > VISIBLE:
        meaning += ": it still shows the image, and sampling starts without one"
        is_single = a**2 > 0.9 * (a**2 + b**2)  # one step's alpha; a product is far smaller
        evidence = {"alpha-for-alpha-bar": 1.0, "weak-end": 0.5} if is_single else {"weak-end": 1.0}
        return Check(name, "wrong", meaning, ratio, VISIBLE, where=place, evidence=evidence)
    verdict = "ok" if ratio <= FAINT else "undecided"
    return Check(name, verdict, meaning, ratio, VISIBLE, place)


def check_clean_image(subject: Subject) -> Check | None:
    """Whether entry 0 is the clean image, where the code has such an entry."""
    a, b = subject.schedule.a[0].item(), subject.schedule.b[0].item()
    if abs(a - 1) + abs(b) < 1e-9:
        return None
    name = "schedule: its entry for the clean image"
    meaning = f"it is {a:.4f} x_0 + {b:.4f} eps, not x_0: padded on the wrong side"
    place = subject.place("schedule")
    return Check(name, "wrong", meaning, b, 0.0, where=place, evidence={"neighbour-padding": 1.0})


def check_roots(subject: Subject) -> Check | None:
    """Whether a root is missing: in levels whose squares do not add up to 1, or in sigmas.

    Sigmas are those of betas that are linear, or whose roots are, only with their root.
    """
    name = "schedule: roots of its levels"
    a, b = subject.schedule.a, subject.schedule.b
    place = subject.place("schedule")
    for description, total in (("b", a**2 + b), ("a", a + b**2)):
        if (total - 1).abs().max() < 1e-5 and not is_variance_preserving(subject.schedule):
            off = (a**2 + b**2 - 1).abs().max().item()
            meaning = f"{description} is a share of variance, whose root belongs there"
            return Check(
                name, "wrong", meaning, off, 1e-5, where=place, evidence={"missing-sqrt": 1.0}
            )
    sigma = b / a
    if subject.T < 20 or not sigma.isfinite().all():
        return None
    with_root, without = (is_linear(1 / (1 + each)) for each in (sigma**2, sigma))
    if without and not with_root:
        meaning = "its betas are linear if sigma is read as sigma²"
        return Check(
            name, "wrong", meaning, None, None, where=place, evidence={"missing-sqrt": 1.0}
        )
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
    off = (alpha_bar.double() - alpha.cumprod(0)).abs().max().item()
    place = subject.places.get("alphas_cumprod", "alphas_cumprod")
    if off < 1e-4:
        return Check(name, "ok", "it is their product", off, 1e-4, place)
    is_single = (alpha_bar.double() - alpha).abs().max() < 1e-6
    evidence = {"alpha-for-alpha-bar": 1.0} if is_single else {"half-schedule": 0.5}
    if (alpha_bar.double().flip(0) - alpha.cumprod(0)).abs().max() < 1e-6:
        evidence = {"reversed-schedule": 1.0}
    meaning = "it is 1 - beta itself" if is_single else "it is not the product of 1 - beta"
    return Check(name, "wrong", meaning, off, 1e-4, where=place, evidence=evidence)


def betas_of(schedule: Schedule) -> Tensor:
    """beta_1 … beta_T (T,) of a schedule with a² + b² = 1."""
    return 1 - (schedule.a[1:] / schedule.a[:-1]).square()


def check_last_beta(subject: Subject) -> Check:
    """Whether x_T keeps enough signal for a network that predicts eps."""
    name = "schedule: the last beta"
    beta = betas_of(subject.schedule)[-1].item()
    place = subject.place("schedule")
    if subject.schedule.a[-1] > 1e-6 and beta <= LARGEST_BETA:
        return Check(name, "ok", f"it is {beta:.4f}", beta, LARGEST_BETA, place)
    meaning = f"it is {beta:.6f}, so that x_T has no signal, and eps_hat does not determine x_0"
    evidence = {"cosine-end": 1.0}
    is_known = "prediction" in subject.known
    if is_known and subject.conventions.prediction in ("eps", "score"):
        return Check(name, "wrong", meaning, beta, LARGEST_BETA, place, evidence=evidence)
    if is_known:
        meaning = f"it is {beta:.6f}, which the network's prediction allows"
        return Check(name, "ok", meaning, beta, 1.0, place)
    meaning += ": right only for networks that predict v or x_0"
    return Check(name, "undecided", meaning, beta, LARGEST_BETA, place, evidence=evidence)


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
    place = subject.place("schedule")
    tables = subject.tables or {}
    table = tables.get("given")
    all_tables = [tables[key] for key in ("given", "alphas_cumprod", "sigmas") if key in tables]
    if subject.schedule.a.isfinite().all() and (subject.schedule.a > 0).all():
        all_tables += alphas_of(subject.schedule)
    for each in all_tables:
        half = half_precision_of(each)
        if half is not None:
            meaning = f"all its values are {str(half).removeprefix('torch.')}"
            step = torch.finfo(half).eps
            return Check(
                name, "wrong", meaning, step, 1e-6, where=place, evidence={"half-schedule": 1.5}
            )
    if table is None:
        return Check(name, "ok", "float32 or better", 0, 0, place)
    changes = table[1:] - table[:-1]
    repeated = int((changes == 0).sum())
    if repeated > len(table) / 20 and len(table.unique()) > 2:
        meaning = f"{repeated} of its values repeat the one before, as after rounding"
        return Check(name, "undecided", meaning, repeated, len(table) / 20, place)
    return Check(name, "ok", "float32 or better", repeated, len(table) / 20, place)


def right_tables(schedule: Schedule) -> dict[str, Tensor]:
    """What common tables hold (T,) by their usual names, on a path with a² + b² = 1."""
    alpha_bar = schedule.a.square()
    now = alpha_bar[1:]
    before = alpha_bar[:-1]
    beta = betas_of(schedule)
    posterior = beta * (1 - before) / (1 - now)
    return {
        "alphas_cumprod": now,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": now.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - now).sqrt(),
        "sqrt_recip_alphas_cumprod": now.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / now - 1).sqrt(),
        "sqrt_recip_alphas": (1 - beta).rsqrt(),
        "posterior_variance": posterior,
        "posterior_mean_coef1": beta * before.sqrt() / (1 - now),
        "posterior_mean_coef2": (1 - before) * (1 - beta).sqrt() / (1 - now),
    }


def suspects(schedule: Schedule, name: str) -> list[tuple[str, str, Tensor]]:
    """Bugs that a table may have: key, description, and what the table would hold."""
    right = right_tables(schedule)[name]
    alpha_bar = schedule.a.square()[1:]
    beta = betas_of(schedule)
    after = torch.cat([alpha_bar[1:], torch.ones(1)])
    repeated = torch.cat([alpha_bar[1:], alpha_bar[-1:]])
    wrong = [
        ("missing-sqrt", "without its root", right.square()),
        ("missing-sqrt", "with a root too many", right.sqrt()),
    ]
    for padded in (after, repeated, alpha_bar):
        values = {
            "alphas_cumprod_prev": padded,
            "posterior_variance": beta * (1 - padded) / (1 - alpha_bar),
            "posterior_mean_coef1": beta * padded.sqrt() / (1 - alpha_bar),
            "posterior_mean_coef2": (1 - padded) * (1 - beta).sqrt() / (1 - alpha_bar),
        }
        if name in values:
            wrong.append(("neighbour-padding", "padded on the wrong side", values[name]))
    if name == "posterior_variance":
        for shift in (-1, 1):
            wrong.append(("posterior-variance", f"shifted by {shift}", right.roll(shift)))
        inverted = beta * (1 - alpha_bar) / (1 - schedule.a.square()[:-1]).clamp(min=1e-20)
        wrong.append(("posterior-variance", "with its two alpha_bar swapped", inverted))
    if "alphas_cumprod" in name:
        own = {
            "sqrt_alphas_cumprod": (1 - beta).sqrt(),
            "sqrt_one_minus_alphas_cumprod": beta.sqrt(),
        }
        if name in own:
            wrong.append(("alpha-for-alpha-bar", "of alpha instead of alpha_bar", own[name]))
    return wrong


def table_error(schedule: Schedule, table: Tensor, right: Tensor) -> float:
    """The relative error in units of float32's rounding, exceeded by a tenth of the entries.

    1 - alpha_bar and beta lose digits where they are small; first entries are often clipped.
    """
    noise = schedule.b[1:].square()
    allowed = 2e-5 + 4e-7 / noise + 4e-7 / betas_of(schedule).clamp(min=1e-6)
    error = (table - right).abs() / right.abs().clamp(min=1e-12)
    return (error / allowed).nan_to_num(1e9).quantile(0.9).item()


def check_table(subject: Subject, name: str, table: Tensor) -> list[Check]:
    """A derived table of the code against what its name says. Empty for names without a rule."""
    right = right_tables(subject.schedule).get(name)
    if right is None or table.numel() not in (len(right), len(right) + 1):
        return []
    table = table.detach().cpu().double().flatten()[-len(right) :]
    title = f"schedule: {name}"
    error = table_error(subject.schedule, table, right)
    place = subject.places.get(name, name)
    if error <= 1:
        return [Check(title, "ok", "it is what its name says", error, 1.0, place)]
    for bug, description, values in suspects(subject.schedule, name):
        if table_error(subject.schedule, table, values) <= 1:
            evidence = {bug: 1.0}
            return [
                Check(title, "wrong", f"it is {description}", error, 1.0, place, evidence=evidence)
            ]
    meaning = "it is not what its name says"
    return [Check(title, "wrong", meaning, error, 1.0, place)]
