"""A schedule from a table that anybody has: beta, alpha_bar, alpha, sigma, by name and values."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_doctor.mathematics import Schedule, check

NAMES = {  # pieces of names, in the order in which they are looked for
    "sqrt_one_minus": "sqrt(1 - alpha_bar)",
    "sqrt_1m": "sqrt(1 - alpha_bar)",
    "sqrt_alpha": "sqrt(alpha_bar)",
    "cumprod": "alpha_bar",
    "alpha_bar": "alpha_bar",
    "alphas_bar": "alpha_bar",
    "alpha_hat": "alpha_bar",
    "_prod": "alpha_bar",
    "cumulative": "alpha_bar",
    "abar": "alpha_bar",
    "alphabar": "alpha_bar",
    "a_bar": "alpha_bar",
    "cum_prod": "alpha_bar",
    "alphas_hat": "alpha_bar",
    "bar_alpha": "alpha_bar",
    "ab_t": "alpha_bar",
    "b_t": "beta",
    "beta": "beta",
    "sigma": "sigma",
}
TABLE_NAMES = (  # attributes of objects and modules, the one that says most first
    "alphas_cumprod",
    "alpha_bars",
    "alphas_bar",
    "alpha_bar",
    "alpha_hat",
    "alpha_cumprod",
    "alphas_cum_prod",
    "alpha_cum_prod",
    "alphas_hat",
    "alpha_cumprods",
    "alphas_cumprods",
    "alphas_bars",
    "alpha_prod",
    "alphas_prod",
    "alphas_cumulative_product",
    "alphas_cumulative",
    "a_bar",
    "a_bars",
    "alphabar_t",
    "alphabar",
    "alpha_bar_t",
    "bar_alphas",
    "ab_t",
    "betas",
    "beta",
    "beta_t",
    "b_t",
    "sigmas",
    "sqrt_alphas_cumprod",
)
DERIVED = "alphas", "alphas_cumprod_prev", "sqrt_one_minus_alphas_cumprod", "posterior_variance"


def as_table(value: Any) -> Tensor | None:
    """A tensor, array or list of numbers as a tensor of the same precision (K,), else None."""
    if isinstance(value, np.ndarray) or (isinstance(value, list) and value):
        try:
            value = torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError):
            return None
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() < 2:
        return None
    return value.detach().cpu().flatten() if value.numel() == max(value.shape) else None


def own_schedule(value: Any) -> Schedule | None:
    """The schedule of an object of this package, or of a copy of its class: tables a and b."""
    a, b = (as_table(getattr(value, name, None)) for name in "ab")
    if a is None or b is None or a.shape != b.shape:
        return None
    return Schedule(a.double(), b.double())


def kind_of_table(table: Tensor, name: str = "") -> str:
    """What a table (K,) holds: by its name as in NAMES, or without one by its values.

    Raises ValueError for values below 0.
    """
    table = table.double()
    by_name = next((kind for piece, kind in NAMES.items() if piece in name.lower()), None)
    rises = bool(table[-1] > table[0])
    is_share = bool((table >= 0).all() and (table <= 1).all())
    if by_name:
        return by_name
    if not is_share:
        check(bool((table >= 0).all()), f"{name or 'the table'} is no schedule: it falls below 0")
        return "sigma"
    if rises or table.max() < 0.5:
        return "beta"
    return "alpha" if table.min() > 0.5 and len(table) > 10 else "alpha_bar"


def schedule_of(table: Tensor, kind: str) -> Schedule:
    """The schedule, with entry 0 for the clean image, of a table of this kind (T,) or (T+1,).

    A table of T + 1 entries that begins with the clean image is understood. Values that are no
    levels become NaN.
    """
    values = table.double()
    if values[0] > values[-1] and kind == "sigma":
        values = values.flip(0)
    if kind in ("beta", "alpha"):
        beta = values if kind == "beta" else 1 - values
        alpha_bar = (1 - beta).cumprod(0)
    elif kind == "sigma":
        values = values[1:] if values[0] == 0 else values
        b = torch.cat([torch.zeros(1), values])
        return Schedule(torch.ones_like(b), b)
    else:
        squares = {"sqrt(alpha_bar)": values**2, "sqrt(1 - alpha_bar)": 1 - values**2}
        alpha_bar = squares.get(kind, values)
    if alpha_bar[0] == 1:
        alpha_bar = alpha_bar[1:]
    alpha_bar = torch.cat([torch.ones(1), alpha_bar])
    is_rounded = (alpha_bar > -1e-6) & (alpha_bar < 1 + 1e-6)
    alpha_bar = torch.where(is_rounded, alpha_bar.clamp(0, 1), alpha_bar)
    return Schedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def usual_tables() -> dict[str, Tensor]:
    """DDPM's linear tables of 1000 steps by their usual names, for codes that are handed them."""
    betas = torch.linspace(1e-4, 0.02, 1000)
    alpha_bars = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1), alpha_bars[:-1]])
    of_kind = {"alpha_bar": alpha_bars, "beta": betas, "sqrt(alpha_bar)": alpha_bars.sqrt()}
    tables = {name: of_kind.get(kind_of_table(alpha_bars, name)) for name in TABLE_NAMES}
    tables |= {name: 1 - betas for name in ("alphas", "alpha", "alpha_t", "alphas_t")}
    tables["alphas_cumprod_prev"] = before
    tables["sqrt_recip_alphas"] = (1 - betas).rsqrt()
    tables["sqrt_one_minus_alphas_cumprod"] = (1 - alpha_bars).sqrt()
    tables["posterior_variance"] = betas * (1 - before) / (1 - alpha_bars)
    return {name: table for name, table in tables.items() if table is not None}


def named_tables(holder: Any) -> dict[str, Tensor]:
    """The tables among a module's or object's names, by their usual names.

    ALPHA_BAR and _alpha_bar are alpha_bar.
    """
    attributes = [*getattr(holder, "__dict__", ()), *getattr(holder, "_buffers", ())]
    others = {name.strip("_").lower(): name for name in attributes}
    tables = {}
    for name in (*TABLE_NAMES, *DERIVED):
        own = name if hasattr(holder, name) else others.get(name)
        value = None if own is None else as_table(getattr(holder, own, None))
        if value is not None:
            tables[name] = value
    return tables
