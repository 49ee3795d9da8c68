"""Networks as ONNX: one file that runs without this project, with all that sampling needs.

Inputs: xt (N, C, H, W), t (N,) from 1 to T and, where the network takes them, label (N,), s (N,)
and condition (N, K, H, W). Outputs: output (N, C, H, W), the predicted value, and, where the
variance is learned, its exponent. docs/onnx.md lists the metadata.
"""

import copy
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_ddpm import catalogue
from mnist_ddpm.data.labels import label_names, needs_labels
from mnist_ddpm.data.pictures import margin
from mnist_ddpm.datasets import is_own
from mnist_ddpm.ddpm import Schedule, check, noise_source, q_sample
from mnist_ddpm.machine.files import replacing
from mnist_ddpm.machine.process import import_extra
from mnist_ddpm.machine.text import first_line
from mnist_ddpm.methods import learned_variance, predictions
from mnist_ddpm.methods.predictions import Conversion
from mnist_ddpm.recipe import Recipe

PACKAGES = "onnx", "onnxscript", "onnxruntime"  # the extra "export"
KEY = "mnist_ddpm"  # of the metadata
FORMAT = 1  # the metadata's version
OPSET = 18
OUTPUTS = "output", "exponent"
FACTORS = "x0_from_xt", "x0_from_output"
PROVIDER = "CPUExecutionProvider"
# The largest difference from PyTorch's float32 outputs, relative to the largest of them, or to 1
BOUNDS = {"float32": 1e-4, "float16": 1e-2}
LARGEST = 2**31 - 2**24  # bytes of weights in one file


def packages() -> list:
    """The modules of PACKAGES. Raises ValueError where one is missing, or does not work."""
    return import_extra("export", *PACKAGES)


def sampling_tables(schedule: Schedule, conversion: Conversion) -> dict[str, list[float]]:
    """a, b and the factors in x0_hat = x0_from_xt x_t + x0_from_output output, over t = 0 … T."""
    factors = dict(zip(FACTORS, predictions.x0_factors(schedule, conversion)))
    tables = {"signal": schedule.a, "noise": schedule.b, **factors}
    return {name: table.tolist() for name, table in tables.items()}


def metadata(schedule: Schedule, recipe: Recipe, precision: str, draw: dict) -> dict:
    """The file's metadata, which names no folder of this machine."""
    classes = recipe.classes
    return {
        "format": FORMAT,
        "shape": recipe.shape,
        "data_range": (-1, 1),
        "dataset": None if is_own(recipe.dataset) else recipe.dataset,
        "margin": margin(recipe),
        "precision": precision,
        "T": recipe.T,
        "schedule": recipe.schedule,
        "prediction": recipe.prediction,
        **sampling_tables(schedule, catalogue.conversion_of(recipe)),
        "learned_variance": catalogue.learns_variance(recipe),
        "classes": classes,
        "unknown_label": classes if classes and not needs_labels(recipe) else None,
        "labels": label_names(recipe),
        "condition": recipe.condition if recipe.conditional else None,
        "tells_steps": catalogue.takes_next_time(recipe),
        "draw": draw,
    }


class Graph(nn.Module):
    """A network with the inputs and outputs of the file, which are float32 in any precision."""

    def __init__(self, network: nn.Module, schedule: Schedule, recipe: Recipe, dtype: torch.dtype):
        super().__init__()
        self.network = copy.deepcopy(network).to(dtype).eval()
        self.dtype = dtype
        self.outputs = OUTPUTS[: 1 + catalogue.learns_variance(recipe)]
        scale = catalogue.conversion_of(recipe).scale
        scales = scale and scale(schedule, torch.arange(schedule.T + 1)).float()
        self.register_buffer("scales", scales)

    def forward(self, xt: Tensor, t: Tensor, label=None, condition=None, s=None) -> tuple:
        x = xt if self.scales is None else self.scales[t].view(-1, 1, 1, 1) * xt
        x = x if condition is None else torch.cat([x, condition], dim=1)
        options = {"labels": label, "s": s}
        options = {name: value for name, value in options.items() if value is not None}
        output = self.network(x.to(self.dtype), t, **options).float()
        if len(self.outputs) == 1:
            return (output,)
        return learned_variance.split_output(output, xt.shape[1])


def example_inputs(schedule: Schedule, recipe: Recipe) -> list[dict[str, Tensor]]:
    """Inputs of four images, then of one, with times from T to 1."""
    batches = []
    compute_condition = catalogue.condition_function(recipe)
    for n in (4, 1):
        draw_noise = noise_source(0, range(n), recipe.shape)
        x0 = draw_noise().clamp(-1, 1)
        t = torch.linspace(schedule.T, 1, 4).long()[:n]
        inputs = {"xt": q_sample(schedule, x0, t, draw_noise()), "t": t}
        if recipe.classes:  # the first is unknown
            inputs["label"] = (torch.arange(n) - 1) % (recipe.classes + 1)
        if catalogue.takes_next_time(recipe):
            inputs["s"] = torch.linspace(schedule.T // 2, 0, 4).long()[:n]
        if compute_condition:
            inputs["condition"] = compute_condition(x0)
        batches.append(inputs)
    return batches


def export_graph(graph: Graph, inputs: dict[str, Tensor]):
    """The graph as ONNX's ModelProto, for any number of images.

    Without the file names and lines of code that the exporter adds. Raises ValueError for a network
    that cannot be exported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about PyTorch's own code
            program = torch.onnx.export(
                graph,
                kwargs=inputs,
                output_names=graph.outputs,
                dynamic_shapes={name: {0: torch.export.Dim.DYNAMIC} for name in inputs},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"PyTorch cannot export this network ({first_line(error)})") from error
    model = program.model_proto
    del model.graph.value_info[:]
    ends = *model.graph.input, *model.graph.output
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer, *ends):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for end in ends:
        end.type.tensor_type.shape.dim[0].dim_param = "N"
    return model


@torch.no_grad()
def largest_difference(content: bytes, graph: Graph, batches: list[dict[str, Tensor]]) -> float:
    """The largest difference between a file's outputs and the graph's, measured as in BOUNDS.

    Raises ValueError where ONNX Runtime cannot run it.
    """
    *_, runtime = packages()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    differences = []
    for inputs in batches:
        arrays = {name: value.numpy() for name, value in inputs.items()}
        try:
            session = runtime.InferenceSession(content, options, providers=[PROVIDER])
            outputs = session.run(graph.outputs, arrays)
        except Exception as error:  # of many kinds
            raise ValueError(f"ONNX Runtime cannot run it ({first_line(error)})") from error
        for expected, output in zip(graph(**inputs), outputs):
            difference = (torch.from_numpy(output) - expected).abs().max()
            differences.append(difference / expected.abs().max().clamp(min=1))
    return torch.stack(differences).max().item()  # NaN where there is one


def save_onnx(
    path: str | Path,
    network: nn.Module,
    schedule: Schedule,
    recipe: Recipe,
    precision: str = "float32",
    draw: dict | None = None,
) -> float:
    """Writes a network as ONNX; returns the largest difference of its outputs from PyTorch's.

    network: on the CPU, in float32. precision: float32 or float16, of weights and computation.
    draw: sampling defaults. Raises ValueError, and leaves no file, where the difference is above
    its bound or the network cannot be exported, OSError where the file cannot be written.
    """
    onnx, *_ = packages()
    dtype = getattr(torch, precision)
    size = sum(weight.numel() for weight in network.state_dict().values()) * dtype.itemsize
    check(size <= LARGEST, f"its weights are {size:,} bytes: one ONNX file holds 2 GB")
    inputs = example_inputs(schedule, recipe)
    model = export_graph(Graph(network, schedule, recipe, dtype), inputs[0])
    facts = json.dumps(metadata(schedule, recipe, precision, draw or {}), allow_nan=False)
    onnx.helper.set_model_props(model, {KEY: facts})
    reference = Graph(network, schedule, recipe, torch.float32)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(model.SerializeToString())
        difference = largest_difference(temporary.read_bytes(), reference, inputs)
        advice = ": take float32" if precision == "float16" else ""
        bound = f"more than {BOUNDS[precision]:g}{advice}"
        is_close = difference <= BOUNDS[precision]
        check(is_close, f"ONNX Runtime and PyTorch differ by {difference:.1e}, {bound}")
    return difference
