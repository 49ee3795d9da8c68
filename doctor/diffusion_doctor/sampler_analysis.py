"""Which formula carries each state of a sampler to the next, as a recorded run shows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from diffusion_doctor.oracles import SamplerRun
from diffusion_doctor.sampler_bugs import WRONG, WRONG_X0, WrongFormula
from diffusion_doctor.sampler_formulas import (
    RIGHT,
    Formula,
    Steps,
    ddim_step,
    dpmpp_step,
    predicted,
)
from diffusion_doctor.subject import Subject, is_variance_preserving, levels_at

FALSE_ALARM = 1e-4  # probability that correct code is not recognised, for a whole run
LIKELIER = 16.0  # log-likelihood by which a wrong formula must surpass a right one
EXAMINED = 40  # steps of a run that are compared with all formulas, at most
MANY = 300  # steps with which few formulas are compared
RIVALS = 3
LARGEST = 1e6  # pixels of steps that are compared
CLIPPINGS: dict[str, tuple[float, float, bool]] = {  # limits of x0_hat; whether eps_hat follows
    "none": (-torch.inf, torch.inf, False),
    "with eps_hat to match": (-1.0, 1.0, True),
    "with eps_hat as it was": (-1.0, 1.0, False),
    "to [0, 1]": (0.0, 1.0, True),
}
SCREENED = 12  # formulas of many that are compared with all examined steps
ETAS = torch.linspace(0, 1, 6).tolist()
PUBLISHED = [WrongFormula("", name, formula) for name, formula in RIGHT.items()]


@dataclass(frozen=True)
class Candidate:
    """One formula, and how well it explains the steps of a run.

    misfit: the largest deviation in units of what correct code may show: it fits up to 1.
    """

    bug: str | None  # None: a right formula
    description: str
    formula: Formula
    clipping: str
    view: "View"
    likelihood: float
    misfit: float

    @property
    def fits(self) -> bool:
        """Whether the run is explained."""
        return self.misfit <= 1


@dataclass(frozen=True)
class View:
    """Which levels the code believes its images to have: entries of its steps t to s."""

    bug: str | None
    description: str
    t: Tensor  # (K,)
    s: Tensor  # (K,); of the last step 0
    x0_from_eps: Callable | None = None  # as in WRONG_X0


def views(subject: Subject, run: SamplerRun) -> list[View]:
    """The right view first; then those of codes that mix up two times."""
    t = subject.entries(run.code_times)
    s = torch.cat([t[1:], torch.zeros(1)])
    right = View(None, "", t, s)
    is_sigma = subject.conventions.time == "sigma"
    wrong = []
    for shift in () if is_sigma else (1, -1):
        side = "below" if shift > 0 else "above"
        shifted = (t + shift, torch.cat([s[:-1] + shift, torch.zeros(1)]))
        wrong.append(
            View("network-time", f", the network at a time 1 {side} its image's", *shifted)
        )
    start = (2 * t[:1] - t[1:2] if len(t) > 1 else t).clamp(max=subject.T)
    wrong.append(
        View("network-time", ", the network at the next time", torch.cat([start, t[:-1]]), t)
    )
    for stride in {1, max(1, subject.T // len(t))}:
        if ((t - s)[:-1] - stride).abs().gt(0.5).any():
            description = f", to t - {stride} where the next time is another"
            wrong.append(View("respacing", description, t, (t - stride).clamp(min=0)))
    for bug, description, x0_from_eps in [] if is_sigma else WRONG_X0:
        wrong.append(View(bug, f", x0_hat with {description}", t, s, x0_from_eps))
    return [right, *wrong]


def examined_steps(run: SamplerRun, most: int = EXAMINED) -> Tensor:
    """Numbers of the steps that are compared: without the last, and up to where images explode.

    Where there are too many, more of the late ones, in which most bugs show.
    """
    results = torch.cat([run.x[1:], run.end[None]])
    sizes = torch.maximum(run.x.abs().amax((1, 2)), results.abs().amax((1, 2)))
    possible = (sizes[:-1] < LARGEST).nonzero().flatten()
    if len(possible) <= most:
        return possible
    fractions = 1 - (1 - torch.linspace(0, 1, most)) ** 2
    return possible[(fractions * (len(possible) - 1)).round().long().unique()]


def steps_seen(
    subject: Subject, run: SamplerRun, view: View, chosen: Tensor, clipping: str
) -> Steps:
    """The chosen steps of a run, as a code with this view sees them."""
    before = (chosen - 1).clamp(min=0)
    results = torch.cat([run.x[1:], run.end[None]])
    prediction = subject.conventions.prediction
    seen = []
    for k in (chosen, before):
        x0, eps = predicted(prediction, subject.path, view.t[k], run.x[k], run.output[k])
        if view.x0_from_eps is not None:
            a, b = (level.view(-1, 1, 1) for level in levels_at(subject.path, view.t[k]))
            a_s, _ = (level.view(-1, 1, 1) for level in levels_at(subject.path, view.s[k]))
            x0 = view.x0_from_eps(run.x[k], eps, a, b, a / a_s)
        low, high, has_matching_eps = CLIPPINGS[clipping]
        x0 = x0.clamp(low, high)
        if has_matching_eps:
            _, eps = predicted("x0", subject.path, view.t[k], run.x[k], x0)
        seen.append((run.x[k], x0, eps))
    (x, x0, eps), (x_before, x0_before, eps_before) = seen
    following = (chosen + 1).clamp(max=len(run.code_times) - 1)
    is_corrector = (run.code_times[chosen] == run.code_times[following]) & (chosen < following)
    return Steps(
        schedule=subject.path,
        t=view.t[chosen],
        s=view.s[chosen],
        t_before=view.t[before],
        x=x,
        x0=x0,
        eps=eps,
        x_before=x_before,
        x0_before=x0_before,
        eps_before=eps_before,
        is_first=(chosen == 0).view(-1, 1, 1),
        is_corrector=is_corrector.view(-1, 1, 1),
        y=results[chosen],
        allowed=rounding(subject, run, chosen),
    )


def rounding(subject: Subject, run: SamplerRun, chosen: Tensor) -> Tensor:
    """The deviation (K, 1, 1) that codes in float32 may have from a formula in float64.

    Levels are those of the times of the calls, not those that a code believes in.
    """
    t = subject.entries(run.code_times)
    s = torch.cat([t[1:], torch.zeros(1)])
    a_t, b_t = levels_at(subject.path, t[chosen])
    a_s, _ = levels_at(subject.path, s[chosen])
    of_tables = 3e-7 * (a_t / b_t.clamp(min=1e-4)) ** 2  # 1 - alpha_bar where it is small
    of_x0 = 1e-6 * (a_s / a_t.clamp(min=1e-6)).clamp(max=1e3)
    size = run.x[chosen].square().mean((1, 2), True).sqrt().clamp(min=1)
    return size * (2e-5 + of_tables + of_x0).view(-1, 1, 1)


def judge(steps: Steps, formula: Formula) -> tuple[float, float]:
    """The log-likelihood of the steps under a formula, and its misfit.

    Allowed beside rounding: what normal noise shows in this many pixels, with a probability of
    FALSE_ALARM over all steps and statistics.
    """
    mean, deviation = formula(steps)
    n = steps.x[0].numel()
    allowed = steps.allowed
    variance = deviation**2 + allowed**2
    error = steps.y - mean
    square = error.square().mean((1, 2), True)
    ratio = square / variance
    beyond_rounding = torch.maximum(square, allowed**2) / variance
    likelihood = -n / 2 * (variance.log() + beyond_rounding).sum().item()
    tests = 3.0 * len(steps.t) + 1
    z = torch.special.ndtri(torch.tensor(1 - FALSE_ALARM / 2 / tests, dtype=torch.float64)).item()
    is_noisy = deviation > 10 * allowed
    excess = torch.where(is_noisy, (ratio - 1).abs(), ratio - 3)
    misfits = [excess / (z * (2 / n) ** 0.5 + 0.02)]
    if is_noisy.any():
        pooled = (ratio - 1)[is_noisy].mean().abs()
        misfits.append(pooled / (z * (2 / n / is_noisy.sum()) ** 0.5 + 0.01))
    for part in (steps.x, steps.x0):
        size = part.square().mean((1, 2), True).sqrt().clamp(min=1e-9)
        share = (error * part).mean((1, 2), True).abs() / size
        misfits.append(share / (z * (variance / n).sqrt() + 2 * allowed))
    misfit = max(each.max().item() for each in misfits)
    is_finite = all(map(torch.isfinite, (torch.tensor(misfit), torch.tensor(likelihood))))
    return (likelihood, misfit) if is_finite else (-float("inf"), float("inf"))


def explain(subject: Subject, run: SamplerRun, with_bugs: bool = True) -> list[Candidate]:
    """Candidates for the steps of a run, the best first: right ones that fit before all others.

    Wrong formulas are only compared where no right one fits, or far worse than they, and on a path
    with a² + b² = 1.
    """
    chosen = examined_steps(run)
    if len(chosen) == 0:
        return []
    right_view, *wrong_views = views(subject, run)
    key = "right formulas", subject.conventions, id(run)
    if key not in subject.cache:
        subject.cache[key] = candidates_of(subject, run, right_view, right_formulas)
    right = subject.cache[key]
    fitting = by_likelihood([each for each in right if each.fits])
    if not with_bugs:
        return fitting or by_likelihood(right)
    wrong = []
    if is_variance_preserving(subject.path):
        wrong += candidates_of(subject, run, right_view, lambda steps: WRONG)
    for view in wrong_views:
        wrong += candidates_of(subject, run, view, lambda steps: PUBLISHED)
    likely = by_likelihood([each for each in wrong if each.fits])
    if fitting:
        least = fitting[0].likelihood - LIKELIER
        rivals = [each for each in likely if each.likelihood > least][:RIVALS]
        likelier = [each for each in rivals if surpasses(subject, run, each, fitting[0])]
        return likelier + fitting
    return likely + by_likelihood(right) if likely else by_likelihood(right + wrong)


def with_mixed_times(subject: Subject, run: SamplerRun) -> list[Candidate]:
    """Right formulas that fit with the network at another time than its image's."""
    candidates = []
    for view in views(subject, run)[1:]:
        if view.bug == "network-time":
            candidates += candidates_of(subject, run, view, lambda steps: PUBLISHED)
    return by_likelihood([each for each in candidates if each.fits])


def by_likelihood(candidates: list[Candidate]) -> list[Candidate]:
    """The likeliest first; those that are about as likely in their order."""
    if not candidates:
        return []
    best = max(each.likelihood for each in candidates)
    return sorted(candidates, key=lambda each: -min(each.likelihood, best - 30))


def candidates_of(
    subject: Subject, run: SamplerRun, view: View, formulas: Callable
) -> list[Candidate]:
    """All formulas with all clippings, up to a clipping with one that fits.

    formulas: of the steps to wrong formulas, which are right ones where their bug is "".
    """
    tried = []
    for steps, clipping in clippings(subject, run, view, examined_steps(run)):
        tried_here = []
        for bug, name, formula in likeliest(steps, [*formulas(steps)]):
            bug, name = (bug, name) if bug else (view.bug, f"{name}{view.description}")
            likelihood, misfit = judge(steps, formula)
            values = {"likelihood": likelihood, "misfit": misfit}
            tried_here.append(Candidate(bug, name, formula, clipping, view, **values))
        tried += sorted(tried_here, key=lambda each: each.fits)
        if tried[-1].fits:
            break
    return tried


def surpasses(subject: Subject, run: SamplerRun, wrong: Candidate, right: Candidate) -> bool:
    """Whether a wrong formula is far likelier than a right one, over many more steps."""
    chosen = examined_steps(run, MANY)
    likelihoods = []
    for each in (wrong, right):
        steps = steps_seen(subject, run, each.view, chosen, each.clipping)
        likelihoods.append(judge(steps, each.formula)[0])
    return likelihoods[0] > likelihoods[1] + LIKELIER


def likeliest(steps: Steps, formulas: list[WrongFormula]) -> list[WrongFormula]:
    """Of many formulas some that explain some of the steps best."""
    if len(formulas) <= SCREENED:
        return formulas
    some = some_steps(steps)
    return sorted(formulas, key=lambda each: -judge(some, each.formula)[0])[:SCREENED]


def some_steps(steps: Steps) -> Steps:
    """About a sixth of the steps."""
    names = [each.name for each in fields(Steps) if each.name != "schedule"]
    return replace(steps, **{name: getattr(steps, name)[::6] for name in names})


def clippings(
    subject: Subject, run: SamplerRun, view: View, chosen: Tensor
) -> Iterator[tuple[Steps, str]]:
    """The steps without clipping, and with those that would change them."""
    steps = steps_seen(subject, run, view, chosen, "none")
    yield steps, "none"
    for clipping, (low, high, _) in CLIPPINGS.items():
        if ((steps.x0 < low - 0.001) | (steps.x0 > high + 0.001)).double().mean() > 0.001:
            yield steps_seen(subject, run, view, chosen, clipping), clipping


def right_formulas(steps: Steps) -> Iterator[WrongFormula]:
    """RIGHT, and if none fits DDIM and SDE-DPM-Solver++(2M) with the eta that fits best."""
    has_fit = False
    for each in PUBLISHED:
        has_fit |= judge(steps, each.formula)[1] <= 1
        yield each
    if not has_fit:
        for name, formula in (("DDIM", ddim_step), ("SDE-DPM-Solver++(2M)", dpmpp_step)):
            eta = best_eta(steps, formula)
            yield WrongFormula("", f"{name}, eta {eta:.2f}", partial(formula, eta=eta))


def best_eta(steps: Steps, formula: Formula) -> float:
    """The eta from 0 to 1 under which the steps are likeliest."""

    some = some_steps(steps)

    def likelihood(eta: float) -> float:
        return judge(some, partial(formula, eta=eta))[0]

    best = max(ETAS, key=likelihood)
    for width in 0.2 * 0.5 ** torch.arange(1.0, 10.0):
        near = [best, max(0.0, best - width.item()), min(1.0, best + width.item())]
        best = max(near, key=likelihood)
    return best
