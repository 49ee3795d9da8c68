"""Finds the tables, the forward process, the sampler and the loss among the names of a file."""

import enum
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from itertools import islice, product
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_doctor import plain_functions
from diffusion_doctor.code_file import TooLong, time_limit
from diffusion_doctor.foreign_code import place_of
from diffusion_doctor.mathematics import check
from diffusion_doctor.plain_functions import NAMES, is_network_name, parameter_names
from diffusion_doctor.schedule_tables import TABLE_NAMES, as_table, named_tables, usual_tables
from diffusion_doctor.subject_building import tables_around, tables_inside

# Names of functions in tutorials and libraries, in small letters and without leading underscores
FUNCTION_NAMES = {
    "step": re.compile(
        r"p_sample|p_sample_ddpm|step|(sample|denoise)_(one_)?(time)?step|sample_prev_timestep|"
        r"(reverse|backward|denoising|sampling|p|take_denoising)_(step|sample)|step_backward|"
        r"(remove|predict)_noise|sample_p|p_x\w+|un_?noise\w*|"
        r"denoise_at_t|reverse_diffusion|reverse|backward|p_theta|denoise"
    ),
    "sampler": re.compile(
        r"p_sample_loop|(ddpm_|ddim_)?(sample|sampling|sampler)(_ddpm|_ddim)?|"
        r"(generate|sample)(_new)?_(images?|samples?|digits?|imgs?|loop|all)|generate|inference|"
        r"(reverse|backward)_(diffusion|process)\w*|reverse_diffusion|denoise_loop|ddpm|ddim|"
        r"sample_plot_image"
    ),
    "forward": re.compile(
        r"q_sample|q_xt(_given)?(_x0?)?|q|(add|apply|inject)_noise|noise_(images?|imgs?|x|data|input)|"
        r"(perform_)?(forward_)?(diffusion|noising)(_process)?|"
        r"forward_(process|noise|step|sample)\w*|forward_diffusion\w*|noise_batch|"
        r"(diffuse|perturb|corrupt|noisify|noising)\w*|get_noisy\w*|diffusion_forward|sample_q"
    ),
    "loss": re.compile(
        r"p_losses|p_loss|loss|(get|compute|calc|calculate|train|training|diffusion)_loss(es)?|"
        r"loss_fn|loss_function|training_losses"
    ),
    "times": re.compile(r"(sample|get|draw|random)_(random_)?(timesteps?|times?|steps?|ts?)"),
}
# Other names of samplers, tried after those; and what such names are not
SAMPLER_LIKE = re.compile(r"sampl|generat|infer|denois")
NO_SAMPLER = re.compile(
    r"forward|noise_|_noise|time|batch|prior|plot|save|show|vis|train|grid|loss|embed|sched|"
    r"step|index|weight|init|get_|interpol|gradual|progressive|traj|inter"
)
# Values for the arguments of a class, by their names. Those with True replace defaults too.
SIZES: list[tuple[str, Any, bool]] = [
    (r"(im|img|image)_?(size|sz)|img_dim|resolution|image_side", 16, True),
    (r"device", torch.device("cpu"), True),
    (
        r"(n|num|noise|max|total|diffusion|train)?_?(num_)?(time|train_time)?_?steps?|n_?T|T|t_range|max_t|T_max",
        1000,
        False,
    ),
    (r"beta_?(start|min|low|1|0|s)|(min|start|low)_beta|b_?0|beta_one|start", 1e-4, False),
    (r"beta_?(end|max|high|T|t|2)|(max|end|high)_beta|b_?T|end", 0.02, False),
    (r"\w*channels?|c_in|c_out|ch|img_depth", 1, False),
    (r"(image|img|input|sample|data|latent|x)_?(shape|dims?)", (1, 16, 16), False),
    (r"size|h|w|height|width", 16, False),
    (r"criterion|loss_fn|loss_func", nn.MSELoss(), False),
    (r"loss_type", "l2", False),
    (r"lr|learning_rate", 1e-3, False),
    (r"(beta_)?schedule(_type|_name)?|noise_schedule", "linear", False),
    (r"drop_prob|dropout|eta", 0.0, False),
    (r"n_class(es)?|num_class(es)?", 10, False),
]
MEMBERS = "EPSILON", "FIXED_SMALL", "MSE"  # of enumerations, those of DDPM
TEXTS = (  # for arguments of these names, whatever their capitals, - and _
    (r"var", ("fixedsmall", "fixedlarge", "small", "large", "posterior")),
    (r"loss", ("mse", "l2", "noisepred")),
    (r"sched|beta", ("linear",)),
    (r"mean|pred|objective|param|target|type", ("epsilon", "eps", "noise", "prednoise")),
)
MOST_TEXTS = 100  # choices of texts that a class is tried with
UNNAMED = "made by"  # begins the names of what no name of the file means
CONFIGS = "config", "cfg", "conf", "args", "hparams", "opt", "opts", "params", "hp", "configs"
TABLE_FUNCTIONS = re.compile(
    r"(\w*_)?(betas?|schedules?|noise_schedule|diffusion_(params|constants|terms))(_\w+)?"
)
TABLE_HOLDERS = re.compile(
    r"\w*(sched(ule)?s?|tables?|consts?|constants|buffers|params|terms|dict)"
)
BETAS = torch.linspace(1e-4, 0.02, 1000)
SHAPES = (1, 16, 16), (3, 16, 16), (64,)
BATCHES = 32, 40
MOST_PIXELS = 60_000  # of a batch that a sampler draws
SECONDS = 8.0  # for each trial
HOLDERS = re.compile(r"\w*(diffusion|ddpm|ddim|scheduler|schedule|process|sampler)\w*")


class FirstCall(BaseException):
    """A trial ends at the network's first call."""


class Placeholder(nn.Module):
    """A network for trials: its output is its input, or it ends the trial."""

    is_placeholder = True

    def __init__(self, ends_trial: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.ends_trial = ends_trial
        self.shape: tuple[int, ...] | None = None
        self.in_channels = self.channels = self.out_dim = 1
        self.image_size = self.img_size = self.sample_size = 16
        self.self_condition = self.random_or_learned_sinusoidal_cond = False

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """What it was shown. Raises ValueError where labels or masks are of another number."""
        x, _ = plain_functions.images_and_times(arguments, named)
        for each in (*arguments, *named.values()):
            if isinstance(each, Tensor) and each.ndim > 0:
                check(len(each) in (1, len(x)), f"{len(x)} images have {len(each)} values")
        self.shape = tuple(x.shape)
        if self.ends_trial:
            raise FirstCall
        return x * self.weight


@dataclass
class Holder:
    """A file's own level, or an object of one of its classes, with its functions by role."""

    name: str  # "" for the file's own level
    value: Any
    roles: dict[str, list[str]] = field(default_factory=dict)

    def function(self, name: str) -> Callable:
        """One of its functions."""
        return self.value[name] if isinstance(self.value, dict) else getattr(self.value, name)

    def expression(self, name: str) -> str:
        """How a person names a function of it."""
        return f"{self.name}.{name}" if self.name else name


@dataclass
class Adapter:
    """What was found in a file, by argument of examine, and how it is named."""

    values: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] = SHAPES[0]
    batch: int = BATCHES[0]

    def add(self, role: str, value: Any, name: str) -> None:
        """Takes a value for a role."""
        self.values[role] = value
        self.names[role] = name
        self.places[role] = place_of(value, name)

    def assumed(self) -> list[str]:
        """What it takes each thing to be, a line each."""
        lines = [f"{role}: {self.places[role]}" for role in self.names]
        return [*lines, f"images: {' × '.join(map(str, self.shape))}"]


def adapt(
    names: dict[str, Any], chosen: dict[str, str] | None = None, given: dict[str, Any] | None = None
) -> Adapter:
    """The adapter of what a module has defined. Raises ValueError where nothing is found.

    chosen: by argument of examine the names that a person wants, such as "Diffusion.sample".
    given: by argument of examine what is known already.
    """
    own = own_names(names)
    holders = [Holder("", own), *objects_of(own, names)]
    for holder in holders:
        holder.roles = roles_of(holder)
    holders.sort(key=worth, reverse=True)
    adapter = Adapter()
    for role, expression in (chosen or {}).items():
        adapter.add(role, evaluate(expression, holders, names), expression)
    for role, value in (given or {}).items():
        adapter.add(role, value, getattr(value, "__name__", role))
    with quiet():
        made = made_tables(own)
        find_table(adapter, own)
        find_forward(adapter, holders, made)
        find_sampler(adapter, holders, made)
        find_loss(adapter, holders, made)
        find_times(adapter, holders)
        find_network(adapter, own)
    used = [each for each in holders if is_used(adapter, each)]
    for holder in (*used, *holders) if "schedule" not in adapter.values else ():
        if "schedule" in adapter.values:
            break
        for name, table in [*named_tables_of(holder).items()][:1]:
            adapter.add("schedule", table, holder.expression(name))
    if "schedule" not in adapter.values and made is None and takes_tables(adapter):
        made = Holder(f"{UNNAMED} linear betas", {"betas": usual_tables()["betas"]})
    if "schedule" not in adapter.values and made is not None:
        key, table = table_of(made.value)
        adapter.add("schedule", table, f"{made.name} {key}".strip())
    check(
        bool(adapter.values),
        "it defines no table of betas, no forward process, no sampler, no loss and no network on "
        "its own level: name them, such as --sampler NAME",
    )
    return adapter


def own_names(names: dict[str, Any]) -> dict[str, Any]:
    """The names that are the code's own: without libraries and what a notebook adds."""
    own = {}
    for name, value in names.items():
        is_library = is_of_library(value)
        is_object = not inspect.isroutine(value) and not inspect.isclass(value)
        if not name.startswith("_") and not inspect.ismodule(value):
            if is_object or not is_library:
                own[name] = value
    return own


def is_of_library(value: Any) -> bool:
    """Whether a function or class is of an installed library, or of Python's."""
    module = getattr(value, "__module__", None) or ""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or module.split(".")[0] in sys.stdlib_module_names - {"__main__"}


def objects_of(own: dict[str, Any], names: dict[str, Any]) -> Iterator[Holder]:
    """The objects of the code's own classes: those that it has made, and others made here."""
    classes = {name: value for name, value in own.items() if inspect.isclass(value)}
    made = set()
    for name, value in own.items():
        if type(value) in classes.values() and looks_like_diffusion(type(value)):
            made.add(type(value))
            yield Holder(name, value)
    for name, value in classes.items():
        if value not in made and looks_like_diffusion(value):
            with quiet():
                instance = construct(value, names)
            if instance is not None:
                yield Holder(name, instance)


def looks_like_diffusion(kind: type) -> bool:
    """Whether a class has a function or a name as those of diffusion codes."""
    functions = [name for name in names_inside(kind) if not hasattr(nn.Module, name)]
    functions += ["forward"] if "forward" in vars(kind) else []
    by_name = any(role_of_function(name) for name in functions)
    is_named = bool(HOLDERS.fullmatch(kind.__name__.lower()))
    is_unfit = issubclass(kind, enum.Enum) or inspect.isabstract(kind)
    return not is_unfit and (by_name or (is_named and "forward" in functions))


def role_of_function(name: str) -> str | None:
    """The role that a function has by its name."""
    plain = snake_case(name)
    role = next((r for r, names in FUNCTION_NAMES.items() if names.fullmatch(plain)), None)
    if role is None and SAMPLER_LIKE.search(plain) and not NO_SAMPLER.search(plain):
        return "sampler"
    return role


def names_inside(kind: type) -> list[str]:
    """The names of a class's functions, inherited ones included but for those of its libraries."""
    own = [each for each in kind.__mro__ if not is_of_library(each)]
    return [*dict.fromkeys(n for each in own for n in vars(each) if not n.startswith("__"))]


class Config:
    """Any configuration: its attributes and entries are usual values, or configurations again."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return next((value for pattern, value, _ in SIZES if re.fullmatch(pattern, name)), Config())

    def __getitem__(self, name: Any) -> Any:
        if not isinstance(name, str):
            raise IndexError(name)  # so that iterating ends
        return getattr(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        """The usual value of an entry, else this default."""
        value = getattr(self, name)
        return default if isinstance(value, Config) else value


def construct(kind: type, names: dict[str, Any], depth: int = 0) -> Any:
    """An object of a class, with usual values for its arguments; None where that fails."""
    if inspect.isabstract(kind):
        concrete = sorted(kind.__subclasses__(), key=lambda each: "Linear" not in each.__name__)
        kind = next((each for each in concrete if not inspect.isabstract(each)), kind)
    try:
        parameters = [*inspect.signature(kind).parameters.values()]
    except (TypeError, ValueError):
        return None
    parameters = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    has_times = any(each.name in NAMES["T"] for each in parameters)
    ranges = [(1e-4, 0.02), BETAS] if has_times else [BETAS, (1e-4, 0.02)]
    end = perf_counter() + SECONDS
    for betas in (*ranges, BETAS.double(), BETAS.double().numpy()):
        values = {each.name: usual_value(each, names, betas, depth) for each in parameters}
        values = {name: v for name, v in values.items() if v is not inspect.Parameter.empty}
        values = unknown_values(kind, parameters, values) | values
        free = [each for each in parameters if is_text_free(values.get(each.name))]
        for texts in texts_of(kind, free):
            try:
                with time_limit(max(0.01, end - perf_counter())):
                    instance = kind(**values | texts)
            except (Exception, TooLong):  # of any kind, in code that others wrote
                continue
            return instance.eval() if isinstance(instance, nn.Module) else instance
    return None


def unknown_values(
    kind: type, parameters: list[inspect.Parameter], values: dict[str, Any]
) -> dict[str, Any]:
    """For required arguments that nothing is known about: a network where one may be missing.

    That is the first without a plain type; the others are 0, False, or None.
    """
    unknown = [p for p in parameters if p.default is p.empty and p.name not in values]
    plain = {p.name: p.annotation(0) for p in unknown if p.annotation in (int, float, bool)}
    found = dict.fromkeys([p.name for p in unknown], None) | plain
    has_network = any(isinstance(value, Placeholder) for value in values.values())
    for each in unknown if not has_network else ():
        if each.annotation in (each.empty, nn.Module) and not may_be_text(each.name):
            found[each.name] = Placeholder()
            break
    return found


def is_text_free(value: Any) -> bool:
    """Whether an argument with this value may be given a text instead."""
    return value is None or isinstance(value, str)


def may_be_text(name: str) -> bool:
    """Whether an argument of this name is often a text."""
    return any(re.search(pattern, name) for pattern, _ in TEXTS)


def texts_of(kind: type, parameters: list[inspect.Parameter]) -> Iterator[dict[str, str]]:
    """Texts for a class's arguments: its defaults, then what its own code compares them with."""
    functions = [inspect.getattr_static(kind, name, None) for name in ["__init__", *vars(kind)]]
    constants: list[Any] = []
    for each in functions:
        constants += getattr(getattr(each, "__code__", None), "co_consts", ())
    constants += [text for each in constants if isinstance(each, tuple) for text in each]
    texts = [each for each in constants if isinstance(each, str)]
    choices: dict[str, list] = {}
    for each in parameters:
        is_text = isinstance(each.default, str)
        if is_text or each.default is each.empty:
            usual = next((usual for p, usual in TEXTS if re.search(p, each.name)), ())
            plain = {re.sub(r"[-_ ]", "", text.lower()): text for text in texts}
            known = [plain[text] for text in usual if text in plain]
            if known:
                choices[each.name] = [None, *known] if is_text else [*known, None]
    for chosen in islice(product(*choices.values()), MOST_TEXTS):
        yield {name: text for name, text in zip(choices, chosen) if text is not None}


def usual_value(
    parameter: inspect.Parameter, names: dict[str, Any], betas: Any, depth: int = 0
) -> Any:
    """What a parameter of a class or of a function that makes tables is given.

    It is inspect's empty where its default will do, or where nothing is known.
    """
    name = parameter.name
    is_required = parameter.default is parameter.empty
    if name == "betas" and isinstance(parameter.default, list):
        return betas
    if not is_required:
        fitting = (v for pattern, v, replaces in SIZES if replaces and re.fullmatch(pattern, name))
        return next(fitting, parameter.empty)
    kind = parameter.annotation
    if kind in (list, "list[float]", list[float]) and name.startswith(("beta", "alpha")):
        return (1 - BETAS if name.startswith("alpha") else BETAS).tolist()
    classes = {each: value for each, value in names.items() if inspect.isclass(value)}
    for value in classes.values():
        if issubclass(value, enum.Enum) and snake_case(value.__name__) == name:
            return next((m for m in value if m.name in MEMBERS), next(iter(value)))
    if kind not in classes.values() or is_of_library(kind):
        plain = name.replace("_", "")
        kind = next((value for each, value in classes.items() if each.lower() == plain), None)
    if kind is not None and depth < 2 and not is_network_name(name):
        return construct(kind, names, depth + 1)
    if name in ("betas", "beta", "beta_range"):
        return betas
    own = names.get(name)
    if isinstance(own, nn.Module) or (name in CONFIGS and own is not None):
        return own
    for pattern, value, _ in SIZES:
        if re.fullmatch(pattern, name):
            return value
    if name in CONFIGS:
        return Config()
    return Placeholder() if is_network_name(name) else parameter.empty


def snake_case(name: str) -> str:
    """ModelMeanType as model_mean_type."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).strip("_").lower()


def roles_of(holder: Holder) -> dict[str, list[str]]:
    """Names of a holder's functions by role, in the order in which they are tried."""
    if isinstance(holder.value, dict):
        names = [name for name, value in holder.value.items() if inspect.isfunction(value)]
    else:
        names = names_inside(type(holder.value))
        names = [each for each in names if inspect.isroutine(getattr(holder.value, each, None))]
        names = [each for each in names if not hasattr(nn.Module, each) or each == "forward"]
    roles: dict[str, list[str]] = {role: [] for role in FUNCTION_NAMES}
    for name in names:
        role = role_of_call(holder) if name == "forward" else role_of_function(name)
        if role is not None:
            roles[role].append(name)
    step_like = [name for name in roles["step"] if not is_step(holder.function(name))]
    roles["step"] = [name for name in roles["step"] if name not in step_like]
    roles["sampler"] += step_like
    order = {"p_sample_loop": -2, "q_sample": -2, "sample": -1, "p_sample": -1}
    exact = FUNCTION_NAMES["sampler"]

    def rank(name: str) -> tuple[int, bool]:
        return order.get(name, 0), not exact.fullmatch(snake_case(name))

    return {role: sorted(found, key=rank) for role, found in roles.items()}


def role_of_call(holder: Holder) -> str | None:
    """What a module of diffusion does when it is called: by its class and its arguments."""
    if isinstance(holder.value, dict) or not named_tables_of(holder):
        return None
    parameters = parameter_names(holder.value.forward) or []
    kind = type(holder.value).__name__.lower()
    has_time = any(name in NAMES["t"] for name in parameters)
    if has_time:
        return "forward"
    if "sampl" in kind or not {"x_T", "xT"}.isdisjoint(parameters):
        return "sampler"
    return "loss"


def is_step(function: Callable) -> bool:
    """Whether a function takes an image and a time."""
    parameters = parameter_names(function) or []
    has_time = any(name in NAMES["t"] | NAMES["index"] for name in parameters)
    return has_time and any(name in NAMES["state"] for name in parameters)


def named_tables_of(holder: Holder) -> dict[str, Tensor]:
    """The tables of a holder by their usual names."""
    if not isinstance(holder.value, dict):
        return tables_inside(holder.value)
    return named_tables(SimpleNamespace(**holder.value))


def worth(holder: Holder) -> tuple[int, int]:
    """How much of a diffusion code a holder has."""
    found = sum(bool(each) for each in holder.roles.values())
    return found, bool(named_tables_of(holder))


def evaluate(expression: str, holders: list[Holder], names: dict[str, Any]) -> Any:
    """What a person's name means; of a class the object that was made here."""
    objects = {each.name: each.value for each in holders if each.name}
    try:
        return eval(expression, names | objects)
    except NameError as error:
        known = ", ".join(each for each in own_names(names))[:300]
        raise ValueError(f"there is no {error.name or expression}; its names: {known}") from None
    except AttributeError as error:
        raise ValueError(f"{expression}: {error}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """What the code prints is not shown inside."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), torch.random.fork_rng([]):
        yield


@contextmanager
def unchanged(value: Any) -> Iterator[None]:
    """Afterwards an object has the attributes that it had."""
    attributes = getattr(value, "__dict__", None)
    saved = dict(attributes or {})
    try:
        yield
    finally:
        if attributes is not None:
            attributes.clear()
            attributes.update(saved)


def works(call: Callable) -> bool:
    """Whether a trial ends well or at the network's first call."""
    try:
        with time_limit(SECONDS):
            return bool(call())
    except FirstCall:
        return True
    except (Exception, TooLong, SystemExit):  # of any kind, in code that others wrote
        return False


def with_objects(function: Callable, holders: list[Holder], made: Holder | None) -> Callable:
    """The function, with objects for parameters such as diffusion or scheduler, and with tables.

    made: what a function of the file has made for parameters such as schedule.
    """
    parameters = required_parameters(function)
    tables = usual_tables() | tables_around(function)
    values: dict[str, Any] = {}
    objects = [each for each in holders if each.name]
    for name in parameters:
        fitting = [each for each in objects if HOLDERS.fullmatch(name.lower())]
        if fitting and not is_network_name(name):
            values[name] = fitting[0].value
        elif made is not None and TABLE_HOLDERS.fullmatch(name.lower()):
            values[name] = made.value
        elif name in tables:
            values[name] = tables[name]
    return partial(function, **values) if values else function


def with_unknown(function: Callable, tables: dict[str, Any]) -> Iterator[Callable]:
    """The function, then with None for the required parameters whose names mean nothing."""
    yield function
    names = [name for name in required_parameters(function) if name not in tables]
    unknown = [name for name in names if plain_functions.role_of(name, NAMES) is None]
    if unknown:
        yield partial(function, **dict.fromkeys(unknown))


def is_used(adapter: Adapter, holder: Holder) -> bool:
    """Whether a function that was found is one of this object."""
    return any(name.startswith(f"{holder.name}.") for name in adapter.names.values())


def takes_tables(adapter: Adapter) -> bool:
    """Whether a function that was found is handed tables."""
    functions = [value for value in adapter.values.values() if isinstance(value, partial)]
    return any(name in usual_tables() for each in functions for name in each.keywords)


def required_parameters(function: Callable) -> list[str]:
    """The names of parameters without a default; none of a builtin, which does not say them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [each.name for each in parameters if each.default is each.empty]


def made_tables(own: dict[str, Any]) -> Holder | None:
    """What a function that makes a schedule returns: the first dict of tables, else a table."""
    found = []
    for name, function in own.items():
        if inspect.isfunction(function) and TABLE_FUNCTIONS.fullmatch(name.lower()):
            parameters = inspect.signature(function).parameters.values()
            values = {each.name: usual_value(each, own, BETAS) for each in parameters}
            values = {k: v for k, v in values.items() if v is not inspect.Parameter.empty}
            try:
                with time_limit(SECONDS):
                    result = function(**values)
            except (Exception, TooLong):  # of any kind, in code that others wrote
                continue
            if table_of(result) is not None:
                found.append(Holder(f"{UNNAMED} {name}", result))
    return min(found, key=lambda each: not isinstance(each.value, dict), default=None)


def table_of(result: Any) -> tuple[str, Tensor] | None:
    """The table that says most of what a function returned, and its name in a dict or "".

    None where there is no schedule.
    """
    if isinstance(result, dict):
        named = named_tables(SimpleNamespace(**{str(k): v for k, v in result.items()}))
        return next(((name, named[name]) for name in TABLE_NAMES if name in named), None)
    if isinstance(result, (tuple, list)) and any(as_table(each) is not None for each in result):
        result = next(each for each in result if as_table(each) is not None)
    table = as_table(result)
    is_share = table is not None and bool((table >= 0).all() and (table <= 1).all())
    return ("", table) if is_share else None


def find_table(adapter: Adapter, own: dict[str, Any]) -> None:
    """Takes a table of the file's own level as the schedule."""
    tables = named_tables_of(Holder("", own))
    if "schedule" not in adapter.values and tables:
        name = next(iter(tables))
        adapter.add("schedule", tables[name], name)


def find_forward(adapter: Adapter, holders: list[Holder], made: Holder | None) -> None:
    """Takes the first forward process that a trial can call, and the shape that it accepts."""
    for holder, name in candidates(adapter, holders, "forward"):
        function = with_objects(holder.function(name), holders, made)
        tables = named_tables_of(holder)
        forward = plain_functions.plain_forward(function, tables)
        for shape in SHAPES:
            x0 = torch.randn(3, *shape)

            def trial(
                x0: Tensor = x0, forward: Callable = forward, function: Callable = function
            ) -> bool:
                result = forward(x0, torch.tensor([1, 2, 3]), torch.randn_like(x0))
                result = result[0] if isinstance(result, (tuple, list)) else result
                return result.shape == x0.shape and not calls_network(function)

            if works(trial):
                adapter.shape = shape
                adapter.add("forward", function, holder.expression(name))
                return


def calls_network(function: Callable) -> bool:
    """Whether a function has called the network of its object, or names one."""
    owner, _ = plain_functions.surroundings(function)
    parts = owner.modules() if isinstance(owner, nn.Module) else vars(owner or object).values()
    placeholders = [each for each in parts if isinstance(each, Placeholder)]
    return any(each.shape for each in placeholders) or plain_functions.asks_network(function)


def number_of_times(function: Callable) -> int:
    """The length of the first table around a function, or 1000."""
    tables = tables_around(function)
    return next((len(tables[name]) for name in TABLE_NAMES if name in tables), 1000)


def candidates(adapter: Adapter, holders: list[Holder], role: str) -> Iterator[tuple[Holder, str]]:
    """The functions of a role, unless a person has named one."""
    if role not in adapter.values:
        for holder in holders:
            for name in holder.roles[role]:
                yield holder, name


def find_sampler(adapter: Adapter, holders: list[Holder], made: Holder | None) -> None:
    """Takes the first loop, else the first step, that calls the network in a trial."""
    if "step" in adapter.values or "sampler" in adapter.values:
        return
    for role in ("sampler", "step"):
        for holder, name in candidates(adapter, holders, role):
            function = with_objects(holder.function(name), holders, made)
            tables = named_tables_of(holder)
            T = number_of_times(function)
            wrap = (
                plain_functions.plain_sampler if role == "sampler" else plain_functions.plain_step
            )
            for each in with_unknown(function, tables):
                with unchanged(holder.value):
                    calls_network = try_sampler(adapter, wrap(each, tables, T))
                if calls_network:
                    adapter.add(role, each, holder.expression(name))
                    return


def try_sampler(adapter: Adapter, sampler: Callable) -> bool:
    """Whether a sampler calls a network; the adapter's shape and batch become those it draws."""
    shapes = [adapter.shape, *(each for each in SHAPES if each != adapter.shape)]
    for shape in shapes:
        for batch in BATCHES:
            network = Placeholder(ends_trial=True)
            if works(partial(sampler, network, (batch, *shape))) and network.shape is not None:
                adapter.shape = network.shape[1:]
                pixels = torch.Size(adapter.shape).numel()
                is_large = batch * pixels > MOST_PIXELS
                adapter.batch = max(2, MOST_PIXELS // pixels) if is_large else batch
                return True
    return False


def find_loss(adapter: Adapter, holders: list[Holder], made: Holder | None) -> None:
    """Takes the first loss that a trial can call."""
    for holder, name in candidates(adapter, holders, "loss"):
        function = with_objects(holder.function(name), holders, made)
        loss = plain_functions.plain_loss(function, number_of_times(function))
        network = Placeholder()

        def trial(loss: Callable = loss, network: nn.Module = network) -> bool:
            value = loss(network, torch.rand(4, *adapter.shape))
            return torch.as_tensor(value).numel() in (1, 4) and network.shape is not None

        if works(trial):
            adapter.add("loss", function, holder.expression(name))
            return


def find_times(adapter: Adapter, holders: list[Holder]) -> None:
    """Takes the first function of a number n alone that returns n times."""
    for holder, name in candidates(adapter, holders, "times"):
        function = holder.function(name)

        def trial(function: Callable = function) -> bool:
            return torch.as_tensor(function(5)).numel() == 5

        if len(required_parameters(function)) == 1 and works(trial):
            adapter.add("times", function, holder.expression(name))
            return


def find_network(adapter: Adapter, own: dict[str, Any]) -> None:
    """Takes a network that the file has made and that a trial can call."""
    if "network" in adapter.values:
        return
    for name, value in own.items():
        if isinstance(value, nn.Module) and is_network_name(name):
            network = plain_functions.plain_network(value)

            def trial(network: Callable = network) -> bool:
                x = torch.zeros(2, *adapter.shape)
                return network(x, torch.ones(2, dtype=torch.long)).shape[2:] == x.shape[2:]

            if works(trial):
                adapter.add("network", value, name)
                return
