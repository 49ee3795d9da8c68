"""Anybody's functions as those of a Subject: arguments are found by the names of parameters."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_doctor.mathematics import check

# By role, names that parameters have in tutorials and libraries
NAMES: dict[str, set[str]] = {
    "network": set(
        "network model net unet u_net denoiser denoise_fn denoise eps_model "
        "noise_predictor score_model nn_model eps_theta predictor noise_pred_net "
        "score_net model_fn eps_net epsilon_model".split()
    ),
    "shape": set("shape sample_shape img_shape x_shape image_shape".split()),
    "n": set(
        "n n_samples num_samples n_sample batch_size batchsize batch bs num_images n_images "
        "number count nsamples num b sample_num n_sample_images num_imgs".split()
    ),
    "channels": set(
        "channels n_channels in_channels num_channels image_channels img_channels nc ch "
        "c_in".split()
    ),
    "image_size": set(
        "image_size img_size imgsize size resolution h w height width im_size".split()
    ),
    "x0": set(
        "x0 x_0 x_start x image images img imgs original_samples clean data batch_x "
        "input inputs x_clean samples original".split()
    ),
    "t": set("t timestep timesteps time times ts step steps sigma sigmas tau noise_level".split()),
    "index": set("t_index t_idx time_index step_index step_idx idx index i".split()),
    "noise": set("noise eps epsilon e z noises eta x_noise".split()),
    "state": set(
        "x xt x_t x_noisy sample img image images latents latent x_prev z_t z zt x_i".split()
    ),
    "prediction": set(
        "noise_pred pred_noise predicted_noise model_output eps epsilon eps_pred e_t eps_theta "
        "epsilon_theta eps_hat noise_hat e_hat epsilon_pred predicted_eps noise".split()
    ),
    "start": set(
        "x xt x_t xT x_T latents noise z img x_init noise_data init_noise noisy "
        "initial_noise".split()
    ),
    "device": {"device"},
    "labels": set("labels label y c cond classes class_labels context class_label".split()),
    "scale": set("scale w cfg_scale guidance_scale guidance guide_w s weight cfg strength".split()),
    "strength": set(
        "guidance_scale cfg_scale guide_w guidance guidance_weight guidance_strength cfg_weight "
        "cfg".split()
    ),
    "T": set(
        "T timesteps timestep n_steps num_steps num_timesteps n_T noise_steps max_t n_timesteps "
        "total_steps diffusion_steps".split()
    ),
}
# What a function raises that is handed an argument in a form that it does not take
CALL_ERRORS = (
    TypeError,
    RuntimeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)
TIME_FORMS = (  # of the number i for n images
    lambda i, n: torch.full((n,), i),
    lambda i, n: i,
    lambda i, n: torch.tensor(i),
    lambda i, n: torch.full((n, 1), i),
)
NO_NETWORK = set("kwargs args config output outputs out type name path dir id size dim".split())
LABELS = 10  # classes of the labels that a code is handed where it requires some
ATTRIBUTES = "model", "network", "net", "unet", "nn_model", "eps_model", "denoise_fn", "denoiser"


def role_of(name: str, roles: dict[str, Any]) -> str | None:
    """Which of these roles a parameter has, by its name."""
    role = next((role for role in roles if name == role or name in NAMES.get(role, ())), None)
    if role is None and "network" in roles and is_network_name(name):
        return "network"
    return role


def is_network_name(name: str) -> bool:
    """Whether a parameter is named for a network, such as denoise_model."""
    pieces = set(name.lower().split("_"))
    has_piece = not {"model", "net", "network", "unet"}.isdisjoint(pieces)
    return name in NAMES["network"] or (has_piece and NO_NETWORK.isdisjoint(pieces))


def usual_labels(n: int) -> Tensor:
    """Labels (N,) that a code is handed where it requires some: 0, 1, …, 9, 0, 1, …"""
    return torch.arange(n) % LABELS


def images_and_times(arguments: tuple, named: dict[str, Any]) -> tuple[Tensor, Any]:
    """The images and the times among what a network is called with.

    Images are the largest tensor. Times are named as such, or are the first of the others but for
    the usual labels. Raises TypeError where there are none.
    """
    values = {**dict(enumerate(arguments)), **named}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        raise TypeError("the network is called without images")
    x = values.pop(max(tensors, key=lambda name: tensors[name].numel()))
    others = [each for each in values.values() if is_time_like(each, len(x))]
    by_name = [values[name] for name in values if name in NAMES["t"]]
    if not by_name and not others:
        raise TypeError("the network is called without a time")
    return x, (by_name or others)[0]


def is_time_like(value: Any, n: int) -> bool:
    """Whether a value may be the time of n images: one number, or one for each; no usual labels."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor, np.number)):
        return False
    value = torch.as_tensor(value).detach().cpu().flatten()
    are_labels = n > 1 and torch.equal(value, usual_labels(n))
    return value.numel() in (1, n) and not are_labels


def arguments_for(
    function: Callable, roles: dict[str, Any], order: list[str], tables: dict[str, Any]
) -> tuple[list, dict]:
    """Positional and named arguments for a call with these values by role.

    Parameters whose names mean nothing get the values of `order` that are left, in that order.
    tables: values for parameters by their own names. Raises ValueError for a required parameter
    that nothing is known about.
    """
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # of a builtin
        return [roles[role] for role in order], {}
    named = {each.name: role_of(each.name, roles) for each in parameters}
    remaining = [role for role in order if role not in named.values()]
    values: list[Any] = []
    keywords: dict[str, Any] = {}
    has_network = False
    for each in parameters:
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            continue
        role = named[each.name]
        is_required = each.default is each.empty
        if role == "network" and has_network and not is_required:
            continue
        has_network |= role == "network"
        if role in order or (role and is_required):
            value = roles[role]
        elif each.name in tables and is_required:
            value = tables[each.name]
        elif is_required and remaining:
            value = roles[remaining.pop(0)]
        elif is_required:
            name = getattr(function, "__name__", "the function")
            raise ValueError(
                f"{name} needs {each.name}, which no argument is known for: give it a default, or "
                f"wrap it as a function of ({', '.join(order)})"
            )
        else:
            continue
        if each.kind == each.POSITIONAL_ONLY:
            values.append(value)
        else:
            keywords[each.name] = value
    return values, keywords


def plain_forward(function: Callable, tables: dict[str, Any]) -> Callable:
    """A forward process as a function of (x0, t, noise).

    One that draws its noise is handed this noise. It gets t as (N,), else as (N, 1) or
    (N, 1, 1, 1), else image by image as a number.
    """

    def call(x0: Tensor, t: Any, noise: Tensor) -> Any:
        roles = {"x0": x0, "t": t, "noise": noise, "device": torch.device("cpu")}
        values, named = arguments_for(function, roles, ["x0", "t", "noise"], tables)
        with drawn_noise(noise):
            return function(*values, **named)

    def forward(x0: Tensor, t: Tensor, noise: Tensor) -> Any:
        error: Exception | None = None
        for shape in ((-1,), (-1, 1), (-1, *[1] * (x0.ndim - 1))):
            try:
                result = call(x0, t.reshape(shape), noise)
            except CALL_ERRORS as raised:
                error = error or raised
                continue
            if first_tensor(result).shape == x0.shape:
                return result
        try:
            each = [call(x0[k : k + 1], t[k].item(), noise[k : k + 1]) for k in range(len(x0))]
            return torch.cat([first_tensor(result) for result in each])
        except CALL_ERRORS:
            raise error or ValueError("the forward process returns another shape") from None

    return forward


def first_tensor(result: Any) -> Tensor:
    """The tensor that a function returns: alone, first of several, or under a usual name."""
    if isinstance(result, dict):
        names = "sample", "prev_sample", "x_prev", "loss"
        result = next((result[name] for name in names if name in result), result)
    result = getattr(result, "prev_sample", result)
    return result[0] if isinstance(result, (tuple, list)) else result


@contextmanager
def drawn_noise(noise: Tensor) -> Iterator[None]:
    """Inside, torch draws this noise where normal noise of its shape is asked for."""
    saved = torch.randn, torch.randn_like

    def randn(*sizes: Any, **options: Any) -> Tensor:
        shape = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        is_same = tuple(shape or options.get("size", ())) == tuple(noise.shape)
        return noise.clone() if is_same else saved[0](*sizes, **options)

    def randn_like(x: Tensor, **options: Any) -> Tensor:
        return noise.clone() if x.shape == noise.shape else saved[1](x, **options)

    torch.randn, torch.randn_like = randn, randn_like
    try:
        yield
    finally:
        torch.randn, torch.randn_like = saved


def parameter_names(function: Callable) -> list[str] | None:
    """The names of a function's parameters; None for a builtin, which does not say them."""
    try:
        return [*inspect.signature(function).parameters]
    except (TypeError, ValueError):
        return None


def plain_sampler(function: Callable, tables: dict[str, Any], T: int | None) -> Callable:
    """A sampler as a function of (network, shape). Without a parameter for it, the network is
    exchanged where the function looks for it: in its object, or among its module's names.

    A size is a number; where the function fails with that, a tuple.
    """

    def sampler(network: nn.Module, shape: tuple[int, ...]) -> Any:
        n, *sizes_of_image = shape
        labels = usual_labels(n)
        roles = {
            "network": network,
            "shape": shape,
            "n": n,
            "device": torch.device("cpu"),
            "labels": labels,
        }
        sizes = size_roles(function)
        roles["channels"] = sizes_of_image[0]
        roles["strength"] = 1.0
        takes_sigmas = "sigmas" in tables and "sigmas" in (parameter_names(function) or ())
        roles["start"] = torch.randn(shape) * (tables["sigmas"][0] if takes_sigmas else 1)
        if T is not None:
            roles["T"] = T
        possible = [shape if sizes == ["image_size"] else sizes_of_image[-1]]
        possible += [tuple(sizes_of_image), tuple(sizes_of_image[1:])]
        if "image_size" not in sizes:
            possible = [tuple(sizes_of_image), shape] if {"n", "shape"} <= {*sizes} else [None]
        for image_size in possible:
            state = torch.get_rng_state()
            roles["image_size"] = image_size
            if "image_size" not in sizes and image_size is not None:
                roles["shape"] = image_size
            try:
                return call_with_network(function, roles, sizes, tables)
            except CALL_ERRORS:
                if getattr(network, "calls", ()) or image_size in (None, possible[-1]):
                    raise
                torch.set_rng_state(state)

    return sampler


def plain_step(
    function: Callable, tables: dict[str, Any], T: int | None, first_time: int = 0
) -> Callable:
    """A step of a sampler, looped to first_time, 0 or 1, as a function of (network, shape).

    The step is one of (x, t), or of (prediction, t, x) without a network. It gets t as (N,), or
    as a number where it cannot take that.
    """
    names = parameter_names(function) or []
    predictions = [name for name in names if name in NAMES["prediction"] - {"noise"}]
    if not predictions and "noise" in names and not asks_network(function):
        predictions = ["noise"]

    def advance(network: nn.Module, x: Tensor, t: Any, index: int, prediction: Any) -> Tensor:
        roles = {
            "network": network,
            "state": x,
            "t": t,
            "index": index,
            "device": torch.device("cpu"),
        }
        roles |= {"T": T, "shape": tuple(x.shape), "labels": usual_labels(len(x))}
        roles["strength"] = 1.0
        if predictions:
            values = {predictions[0]: prediction}
            order = [role for role in ("state", "t") if role not in values]
            found, named = arguments_for(partial(function, **values), roles, order, tables)
            return first_tensor(function(*found, **named, **values))
        roles["noise"] = torch.randn_like(x)
        return first_tensor(call_with_network(function, roles, ["state", "t"], tables))

    def sampler(network: nn.Module, shape: tuple[int, ...]) -> Tensor:
        check(T is not None, "the number of steps is not known: name a schedule")
        x = torch.randn(shape)
        forms = list(TIME_FORMS)
        for i in reversed(range(first_time, T + first_time)):
            calls = getattr(network, "calls", [])
            before = len(calls)
            prediction = network(x, torch.full((len(x),), i)) if predictions else None
            while True:
                try:
                    following = advance(network, x, forms[0](i, len(x)), i, prediction)
                    check(following.shape == x.shape, f"a step returns {tuple(following.shape)}")
                    break
                except CALL_ERRORS:
                    if i < T - 1 + first_time or len(forms) == 1:
                        raise
                    if not predictions:
                        del calls[before:]
                    del forms[0]
            x = following
        return x

    return sampler


def own_code(function: Callable) -> Any:
    """The code of a function without its decorators; None where it has none."""
    function = function.func if isinstance(function, partial) else function
    plain = inspect.unwrap(getattr(function, "__func__", function))
    return getattr(plain, "__code__", None)


def asks_network(function: Callable) -> bool:
    """Whether a function's own lines name a network."""
    return any(is_network_name(name) for name in getattr(own_code(function), "co_names", ()))


def call_with_network(
    function: Callable, roles: dict[str, Any], order: list[str], tables: dict[str, Any]
) -> Any:
    """What a function returns for these values by role, as in arguments_for.

    The network is its first argument, or is exchanged inside where no parameter is named for one.
    """
    names = parameter_names(function)
    if names is None or any(map(is_network_name, names)):
        values, named = arguments_for(function, roles, ["network", *order], tables)
        return function(*values, **named)
    with exchanged_network(function, roles["network"]):
        values, named = arguments_for(function, roles, order, tables)
        return function(*values, **named)


def size_roles(function: Callable) -> list[str]:
    """How a sampler is told the size of its result: a shape, or numbers."""
    names = parameter_names(function) or []
    by_name = [
        role
        for role in ("shape", "n", "channels", "image_size", "start")
        if any(name in NAMES[role] for name in names)
    ]
    return by_name or ["shape"]


@contextmanager
def exchanged_network(function: Callable, network: nn.Module) -> Iterator[None]:
    """Within it, the networks that a function finds for itself are this one."""
    places = [*network_places(function)]
    check(
        bool(places),
        f"{getattr(function, '__name__', 'the sampler')} takes no network, and none was found "
        "among its module's names: give it a parameter named model",
    )
    saved = [
        (holder, name, holder.get(name) if isinstance(holder, dict) else getattr(holder, name))
        for holder, name in places
    ]
    try:
        for holder, name, _ in saved:
            place_network(holder, name, network)
        yield
    finally:
        for holder, name, value in saved:
            place_network(holder, name, value)


def place_network(holder: Any, name: str, value: Any) -> None:
    """Sets a name of a module or an attribute of an object; None takes a module's name away."""
    if isinstance(holder, dict) and value is None:
        holder.pop(name, None)
    elif isinstance(holder, dict):
        holder[name] = value
    else:
        setattr(holder, name, value)


def surroundings(function: Callable) -> tuple[Any, dict[str, Any]]:
    """The object to which a function is bound, or None, and the names of its module."""
    function = function.func if isinstance(function, partial) else function
    owner = getattr(function, "__self__", None)
    if not hasattr(function, "__code__") and not hasattr(function, "__func__"):
        owner = owner or function  # an object that can be called
        function = type(function).__call__
    plain = inspect.unwrap(getattr(function, "__func__", function))  # without decorators
    return owner, getattr(plain, "__globals__", {})


def network_places(function: Callable) -> Iterator[tuple[Any, str]]:
    """Where a function finds a network: attributes of its object, else names of its module."""
    owner, names = surroundings(function)
    given = function.keywords.values() if isinstance(function, partial) else ()
    for holder in (owner, *given):
        parts = getattr(holder, "_modules", None) or getattr(holder, "__dict__", {})
        for name, value in parts.items():
            if getattr(value, "is_placeholder", False):
                yield holder, name
                return
        attributes = [*ATTRIBUTES, *filter(is_network_name, names_of_parts(holder))]
        for name in attributes if holder is not None else ():
            if isinstance(getattr(holder, name, None), nn.Module):
                yield holder, name
                return
    has_any = False
    for name, value in [*names.items()]:
        if isinstance(value, nn.Module) and not isinstance(value, nn.modules.loss._Loss):
            has_any = True
            yield names, name
    if not has_any and asks_network(function):  # of a file that never made it
        for name in own_code(function).co_names:
            if is_network_name(name) and not hasattr(owner, name) and name not in names:
                yield names, name


def names_of_parts(holder: Any) -> list[str]:
    """The names of the modules inside a module, or of an object's attributes."""
    parts = getattr(holder, "_modules", None) or getattr(holder, "__dict__", {})
    return [*parts]


def plain_network(function: Callable) -> Callable[[Tensor, Tensor], Tensor]:
    """A network as a function of (x, t) to a tensor."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        forward = getattr(function, "forward", function)
        roles = {"x0": x, "t": t, "labels": usual_labels(len(x))}
        values, named = arguments_for(forward, roles, ["x0", "t"], {})
        output = function(*values, **named)
        output = getattr(output, "sample", output)
        return output[0] if isinstance(output, tuple) else output

    return network


def plain_guidance(function: Callable) -> Callable:
    """Guidance as a function of (network, x, t, labels, scale)."""

    def guidance(network, x: Tensor, t: Tensor, labels: Tensor, scale: float) -> Tensor:
        roles = {"network": network, "x0": x, "t": t, "labels": labels, "scale": scale}
        return call_with_network(function, roles, ["x0", "t", "labels", "scale"], {})

    return guidance


def plain_loss(function: Callable, T: int | None) -> Callable:
    """A training loss as a function of (network, x0). Times that it asks for are 0 … T - 1."""

    def loss(network, x0: Tensor) -> Tensor:
        roles = {
            "network": network,
            "x0": x0,
            "device": torch.device("cpu"),
            "labels": usual_labels(len(x0)),
        }
        roles |= {"t": torch.randint(0, T or 1000, (len(x0),)), "noise": torch.randn_like(x0)}
        return first_tensor(call_with_network(function, roles, ["x0"], {}))

    return loss


def as_batch(data: Any) -> Tensor | None:
    """Images as one float or uint8 tensor (N, …): of a tensor, an array, a list, a data loader."""
    if data is None or isinstance(data, Tensor):
        return data
    if not hasattr(data, "shape") and hasattr(data, "__iter__"):
        data = next(iter(data))
        data = data[0] if isinstance(data, (tuple, list)) else data
    return torch.as_tensor(data)
