"""Networks as ONNX: one file that runs without this project, and says all that sampling needs.

Inputs: xt (N, C, H, W), t (N,) from 1 to T and, where the network takes them, label (N,), s (N,)
and condition (N, K, H, W). Outputs: output (N, C, H, W), which is what the network predicts, and,
where it is learned, exponent, that of the steps' variance. docs/onnx.md lists the metadata.
"""

import copy
import json
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_ddpm import catalogue
from mnist_ddpm.data.labels import always_told, label_names
from mnist_ddpm.data.pictures import margin
from mnist_ddpm.datasets import DATASETS
from mnist_ddpm.ddpm import Schedule, check, noise_source, q_sample
from mnist_ddpm.machine.extras import import_extra
from mnist_ddpm.machine.files import first_line, replacing
from mnist_ddpm.methods import conditioning, learned_variance, predictions
from mnist_ddpm.methods.predictions import Conversion
from mnist_ddpm.training.recipe import Recipe

PACKAGES = "onnx", "onnxscript", "onnxruntime"  # the extra "export"
KEY, FORMAT = "mnist_ddpm", 1  # of the metadata, and the version of what it says
OPSET = 18
OUTPUTS = "output", "exponent"
FACTORS = "x0_from_xt", "x0_from_output"
PROVIDER = "CPUExecutionProvider"
# How far ONNX Runtime's outputs may be from PyTorch's float32, in the largest of them, or in 1
BOUNDS = {"float32": 1e-4, "float16": 1e-2}
LARGEST = 2**31 - 2**24  # bytes of weights in one file


def packages() -> list:
    """The modules of PACKAGES. Raises ValueError where one is missing, or does not work."""
    return import_extra("export", *PACKAGES)


def sampling_tables(schedule: Schedule, conversion: Conversion) -> dict[str, list[float]]:
    """The schedule's tables, and two of factors: x0_hat is x0_from_xt x_t + x0_from_output output.

    Each is over t = 0 … T; at t = 0, x0_hat is x_t.
    """
    factors = predictions.x0_factors(schedule, conversion)
    found = {"signal": schedule.a, "noise": schedule.b, **dict(zip(FACTORS, factors))}
    return {name: table.tolist() for name, table in found.items()}


def metadata(schedule: Schedule, recipe: Recipe, precision: str, draw: dict) -> dict:
    """What the file says beside the network. It names no folder of the machine."""
    classes = recipe.classes
    names = label_names(recipe) if recipe.attributes else [str(label) for label in range(classes)]
    return {
        "format": FORMAT, "shape": recipe.shape, "data_range": (-1, 1),
        "dataset": recipe.dataset if recipe.dataset in DATASETS else None,
        "margin": margin(recipe), "precision": precision, "T": recipe.T,
        "schedule": recipe.schedule, "prediction": recipe.prediction,
        **sampling_tables(schedule, catalogue.conversion_of(recipe)),
        "learned_variance": catalogue.learns_variance(recipe), "classes": classes,
        "unknown_label": classes if classes and not always_told(recipe) else None,
        "labels": names, "condition": recipe.condition if recipe.conditional else None,
        "tells_steps": catalogue.tells_steps(recipe), "draw": draw,
    }  # fmt: skip


class Graph(nn.Module):
    """A network with the inputs and outputs of the file, which are float32 in any precision."""

    def __init__(self, network: nn.Module, schedule: Schedule, recipe: Recipe, dtype: torch.dtype):
        super().__init__()
        self.network, self.dtype = copy.deepcopy(network).to(dtype).eval(), dtype
        self.learned = catalogue.learns_variance(recipe)
        scale, t = catalogue.conversion_of(recipe).scale, torch.arange(schedule.T + 1)
        self.register_buffer("scale", scale and scale(schedule, t).float())

    def forward(
        self, xt: Tensor, t: Tensor, label: Tensor | None = None, condition: Tensor | None = None,
        s: Tensor | None = None,
    ):  # fmt: skip
        seen = xt if self.scale is None else self.scale[t].view(-1, 1, 1, 1) * xt
        seen = seen if condition is None else torch.cat([seen, condition], dim=1)
        told = {"labels": label, "s": s}
        told = {name: value for name, value in told.items() if value is not None}
        output = self.network(seen.to(self.dtype), t, **told).float()
        return learned_variance.split_output(output, xt.shape[1]) if self.learned else output


def example_inputs(schedule: Schedule, recipe: Recipe) -> list[dict[str, Tensor]]:
    """Inputs to try a file with: four images, then one. Their times go from T to 1."""
    batches, condition = [], catalogue.condition_of(recipe)
    for n in (4, 1):
        draw_noise = noise_source(0, range(n), recipe.shape)
        x0 = draw_noise().clamp(-1, 1)
        t = torch.linspace(schedule.T, 1, 4).long()[:n]
        inputs = {"xt": q_sample(schedule, x0, t, draw_noise()), "t": t}
        if recipe.classes:  # the first is unknown
            inputs["label"] = (torch.arange(n) - 1) % (recipe.classes + 1)
        if catalogue.tells_steps(recipe):
            inputs["s"] = torch.linspace(schedule.T // 2, 0, 4).long()[:n]
        if condition:
            inputs["condition"] = condition(x0)
        batches.append(inputs)
    return batches


@torch.no_grad()
def pytorch_outputs(
    network: nn.Module, schedule: Schedule, recipe: Recipe, inputs: dict[str, Tensor]
) -> tuple[Tensor, ...]:
    """What PyTorch says of these inputs, by the pieces that samplers use."""
    xt, asked = inputs["xt"], network
    if recipe.classes:
        asked = partial(asked, labels=inputs["label"])
    if catalogue.tells_steps(recipe):
        asked = partial(asked, s=inputs["s"])
    if recipe.conditional:
        asked = conditioning.with_condition(asked, inputs["condition"])
    output = predictions.network_output(
        asked, catalogue.conversion_of(recipe), schedule, xt, inputs["t"]
    )
    learned = catalogue.learns_variance(recipe)
    return learned_variance.split_output(output, xt.shape[1]) if learned else (output,)


def export_graph(graph: Graph, inputs: dict[str, Tensor]):
    """The graph as ONNX's ModelProto, for any number of images.

    Names of files and lines of code, which the exporter leaves in it, are taken out. Raises
    ValueError for a network that it cannot express.
    """
    shapes = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
    names = OUTPUTS[: 1 + graph.learned]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what PyTorch calls in itself
            program = torch.onnx.export(
                graph, kwargs=inputs, output_names=names, dynamic_shapes=shapes,
                opset_version=OPSET, dynamo=True, verbose=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"PyTorch cannot export this network ({first_line(error)})") from error
    model = program.model_proto
    del model.graph.value_info[:]
    ends = *model.graph.input, *model.graph.output
    for each in (model, model.graph, *model.graph.node, *model.graph.initializer, *ends):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")
    for end in ends:
        end.type.tensor_type.shape.dim[0].dim_param = "N"
    return model


def largest_difference(
    content: bytes, network: nn.Module, schedule: Schedule, recipe: Recipe
) -> float:
    """How far a file's outputs are from the network's: the most, as BOUNDS counts.

    Raises ValueError where ONNX Runtime cannot run it.
    """
    *_, runtime = packages()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    names, worst = OUTPUTS[: 1 + catalogue.learns_variance(recipe)], []
    for inputs in example_inputs(schedule, recipe):
        wanted = pytorch_outputs(network, schedule, recipe, inputs)
        given = {name: value.numpy() for name, value in inputs.items()}
        try:
            session = runtime.InferenceSession(content, options, providers=[PROVIDER])
            found = session.run(names, given)
        except Exception as error:  # of many kinds
            raise ValueError(f"ONNX Runtime cannot run it ({first_line(error)})") from error
        for value, there in zip(wanted, map(torch.from_numpy, found)):
            worst.append((there - value).abs().max() / value.abs().max().clamp(min=1))
    return torch.stack(worst).max().item()  # NaN where there is one


def save_onnx(
    path: str | Path, network: nn.Module, schedule: Schedule, recipe: Recipe,
    precision: str = "float32", draw: dict | None = None,
) -> float:  # fmt: skip
    """Writes a network as ONNX, where ONNX Runtime says of it what PyTorch does.

    network: on the processor, in float32. precision: float32 or float16, of weights and
    computation. draw: advice how to draw. Returns how far the two differ, as BOUNDS counts. Raises
    ValueError, and leaves no file, where that is more than the bound, and for what cannot be
    exported; OSError where the file cannot be written.
    """
    onnx, *_ = packages()
    dtype, bound = getattr(torch, precision), BOUNDS[precision]
    size = sum(weight.numel() for weight in network.state_dict().values()) * dtype.itemsize
    check(size <= LARGEST, f"its weights are {size:,} bytes: one ONNX file holds 2 GB")
    model = export_graph(
        Graph(network, schedule, recipe, dtype), example_inputs(schedule, recipe)[0]
    )
    about = metadata(schedule, recipe, precision, draw or {})
    onnx.helper.set_model_props(model, {KEY: json.dumps(about, allow_nan=False)})
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(model.SerializeToString())
        worst = largest_difference(temporary.read_bytes(), network, schedule, recipe)
        problem = f"ONNX Runtime and PyTorch differ by {worst:.1e}, more than {bound:g}"
        advice = ": take float32" if precision == "float16" else ""
        check(worst <= bound, f"{problem}{advice}")
    return worst
