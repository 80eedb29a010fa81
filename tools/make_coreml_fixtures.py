"""Makes the CoreML fixtures of the tests: models by coremltools, answers by torch, scikit-learn and numpy.

    pip install coremltools "torch>=2.13" && python tools/make_coreml_fixtures.py [FOLDER]

coremltools converts on Linux but runs models on macOS only, so the answers come from where the models came from. Each
``NAME.coreml`` (an archive of a .mlpackage, or an .mlmodel) has a ``NAME.npz`` with ``in.*`` and ``out.*`` arrays.
"""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
# By name: it is not installed everywhere, and where it is, its types do not tell what it takes and gives.
ct: Any = import_module("coremltools")
import torch  # noqa: E402

from loaders.archive import pack_folder  # noqa: E402

mb: Any = import_module("coremltools.converters.mil").Builder

HERE = Path(__file__).parents[1] / "tests" / "fixtures" / "coreml"
Arrays = dict[str, Any]


def save(model: Any, path: Path) -> None:
    package = path.with_suffix(".mlpackage")
    model.save(str(package))
    pack_folder(package, path)
    shutil.rmtree(package)


def keep(path: Path, inputs: Arrays, outputs: Arrays) -> None:
    np.savez_compressed(
        path.with_suffix(".npz"), **{f"in.{k}": v for k, v in inputs.items()}, **{f"out.{k}": v for k, v in outputs.items()}
    )


def named(inputs: Arrays, main: Callable[..., Any]) -> Callable[..., Any]:
    """The builder takes the names of inputs from the function's own."""
    scope: dict[str, Any] = {"main": main}
    names = ", ".join(inputs)
    exec(f"def function({names}):\n    return main({names})", scope)
    return scope["function"]


def program(path: Path, inputs: Arrays, main: Callable[..., Any], answers: Arrays, target: str = "iOS17") -> None:
    """A program of MIL operators as they are, without coremltools' optimisations."""
    wanted = getattr(ct.target, target)
    types = {"float32": "fp32", "int32": "int32"}
    specs = [mb.TensorSpec(shape=v.shape, dtype=getattr(ct.converters.mil.mil.types, types[v.dtype.name])) for v in inputs.values()]
    made = mb.program(input_specs=specs, opset_version=wanted)(named(inputs, main))
    model = ct.convert(
        made, convert_to="mlprogram", minimum_deployment_target=wanted, compute_precision=ct.precision.FLOAT32, skip_model_load=True,
        pass_pipeline=ct.PassPipeline.EMPTY,
    )  # fmt: skip
    save(model, path)
    keep(path, inputs, answers)


def converted(path: Path, module: torch.nn.Module, inputs: Arrays, precision: str = "FLOAT32", free: bool = False) -> Any:
    """A traced torch module, converted as its users do. ``free``: the first axis may be 1 to 64."""
    tensors = [torch.from_numpy(v) for v in inputs.values()]
    kinds = [
        ct.TensorType(n, shape=(ct.RangeDim(1, 64, 1), *v.shape[1:]) if free else v.shape, dtype=v.dtype.type) for n, v in inputs.items()
    ]
    with torch.no_grad():
        found = module.eval()(*tensors)
        found = found if isinstance(found, tuple) else (found,)
        model = ct.convert(
            torch.jit.trace(module, tuple(tensors)), inputs=kinds, outputs=[ct.TensorType(f"y{i}") for i in range(len(found))],
            convert_to="mlprogram", minimum_deployment_target=ct.target.iOS17, compute_precision=getattr(ct.precision, precision),
            skip_model_load=True,
        )  # fmt: skip
    save(model, path)
    keep(path, inputs, {f"y{i}": v.numpy() for i, v in enumerate(found)})
    return model


# --- torch ---------------------------------------------------------------------------------------


def mlp() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(30, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2), torch.nn.Softmax(dim=1))


def cnn() -> torch.nn.Module:
    n = torch.nn
    return n.Sequential(
        n.Conv2d(1, 8, 3, padding=1), n.BatchNorm2d(8), n.ReLU(), n.MaxPool2d(2), n.Conv2d(8, 8, 3, stride=2, groups=2), n.SiLU(),
        n.Upsample(scale_factor=2), n.ConvTranspose2d(8, 4, 2, stride=2), n.AvgPool2d(2), n.GELU(), n.Flatten(), n.Linear(144, 10),
    )  # fmt: skip


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(40, 16)
        self.norm = torch.nn.LayerNorm(16)
        self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)
        self.wide, self.narrow = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.norm(self.embed(tokens))
        q, k, v = (p.reshape(2, 6, 4, 4).transpose(1, 2) for p in self.qkv(x).chunk(3, dim=-1))
        x = x + self.out(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 6, 16))
        x = x + self.narrow(torch.nn.functional.gelu(self.wide(self.norm(x))))
        return x, x.mean(dim=1) / x.norm(dim=(1, 2), keepdim=False)[:, None]


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = torch.nn.LSTM(5, 6, bidirectional=True)
        self.one = torch.nn.LSTM(12, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y, _ = self.both(x)
        y, (h, c) = self.one(y)
        return y, h, c


# --- trees and linear models ---------------------------------------------------------------------


def tree_nodes(builder: Any, tree: Any, number: int, classes: bool, share: float) -> None:
    t = tree.tree_
    for i in range(t.node_count):
        if t.children_left[i] < 0:
            value = t.value[i][0]
            value = value / value.sum() if classes else value
            builder.add_leaf_node(number, i, {k: float(v) * share for k, v in enumerate(value)})
        else:
            builder.add_branch_node(
                number,
                i,
                int(t.feature[i]),
                float(t.threshold[i]),
                "BranchOnValueLessThanEqual",
                int(t.children_left[i]),
                int(t.children_right[i]),
            )


def trees(folder: Path, x: Any, target: Any) -> None:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    ensembles: Any = import_module("coremltools.models.tree_ensemble")
    forest = RandomForestClassifier(6, max_depth=4, random_state=0).fit(x, target)
    builder = ensembles.TreeEnsembleClassifier([("x", ct.models.datatypes.Array(4))], ["setosa", "versicolor", "virginica"], [("class", ct.models.datatypes.String()), ("p", ct.models.datatypes.Dictionary(ct.models.datatypes.String()))])  # fmt: skip
    builder.set_default_prediction_value([0.0, 0.0, 0.0])
    for number, tree in enumerate(forest.estimators_):
        tree_nodes(builder, tree, number, True, 1 / 6)
    (folder / "forest.coreml").write_bytes(builder.spec.SerializeToString())
    p = forest.predict_proba(x)
    keep(
        folder / "forest.coreml",
        {"x": x},
        {"p": p.astype(np.float32), "class": np.array(["setosa", "versicolor", "virginica"])[p.argmax(1)]},
    )
    y = (x[:, 0] * 2 - x[:, 2]).astype(np.float64)
    forest = RandomForestRegressor(5, max_depth=5, random_state=0).fit(x, y)
    builder = ensembles.TreeEnsembleRegressor([("x", ct.models.datatypes.Array(4))], "y")
    builder.set_default_prediction_value(0.0)
    for number, tree in enumerate(forest.estimators_):
        tree_nodes(builder, tree, number, False, 1 / 5)
    (folder / "forest_regressor.coreml").write_bytes(builder.spec.SerializeToString())
    keep(folder / "forest_regressor.coreml", {"x": x}, {"y": forest.predict(x).astype(np.float32)[:, None]})


def array_feature(feature: Any, name: str, width: int) -> None:
    feature.name = name
    feature.type.multiArrayType.shape.append(width)
    feature.type.multiArrayType.dataType = 65568


def linear(folder: Path, x: Any, target: Any) -> None:
    from sklearn.linear_model import LinearRegression, LogisticRegression

    y = x @ np.array([1.0, -2.0, 0.5, 3.0]) + 0.25
    fitted = LinearRegression().fit(x, y)
    spec = ct.proto.Model_pb2.Model(specificationVersion=1)
    array_feature(spec.description.input.add(), "x", 4)
    spec.description.output.add().name = "y"
    spec.description.output[0].type.doubleType.MergeFromString(b"")
    spec.glmRegressor.weights.add().value.extend(fitted.coef_.tolist())
    spec.glmRegressor.offset.append(float(fitted.intercept_))
    (folder / "linear.coreml").write_bytes(spec.SerializeToString())
    keep(folder / "linear.coreml", {"x": x}, {"y": fitted.predict(x).astype(np.float32)[:, None]})
    two = (target > 0).astype(int)
    logistic = LogisticRegression().fit(x, two)
    spec = ct.proto.Model_pb2.Model(specificationVersion=1)
    array_feature(spec.description.input.add(), "x", 4)
    label, scores = spec.description.output.add(), spec.description.output.add()
    label.name, scores.name = "class", "p"
    label.type.int64Type.MergeFromString(b"")
    scores.type.dictionaryType.int64KeyType.MergeFromString(b"")
    spec.glmClassifier.weights.add().value.extend(logistic.coef_[0].tolist())
    spec.glmClassifier.offset.append(float(logistic.intercept_[0]))
    spec.glmClassifier.int64ClassLabels.vector.extend([0, 1])
    (folder / "logistic.coreml").write_bytes(spec.SerializeToString())
    p = logistic.predict_proba(x).astype(np.float32)
    keep(folder / "logistic.coreml", {"x": x}, {"p": p, "class": p.argmax(1)})


# --- operators -----------------------------------------------------------------------------------


def operator_cases(x: Any, y: Any, i: Any) -> dict[str, tuple[Callable[..., Any], Any]]:
    """name -> (MIL, numpy's answer). x float32 [2, 3, 4] in -2..2, y the same and above 0.5, i int32 [2, 3] in 0..2."""
    f = np.float32
    erf = torch.special.erf
    t = torch.from_numpy
    return {
        "abs": (lambda x, y, i: mb.abs(x=x), np.abs(x)),
        "argsort": (lambda x, y, i: mb.argsort(x=x, axis=2), np.argsort(-x, 2).astype(np.int32)),
        "band_part": (lambda x, y, i: mb.band_part(x=x, lower=1, upper=0), np.tril(np.triu(x, -1))),
        "cast": (lambda x, y, i: mb.cast(x=x, dtype="int32"), x.astype(np.int32)),
        "clip": (lambda x, y, i: mb.clip(x=x, alpha=f(-1), beta=f(0.5)), np.clip(x, -1, 0.5)),
        "concat": (lambda x, y, i: mb.concat(values=[x, y], axis=1), np.concatenate([x, y], 1)),
        "cumsum": (lambda x, y, i: mb.cumsum(x=x, axis=1, exclusive=True), np.cumsum(x, 1) - x),
        "einsum": (lambda x, y, i: mb.einsum(values=[x, mb.transpose(x=y, perm=[2, 1, 0])], equation="abc,cbe->abe"), np.einsum("abc,cbe->abe", x, y.transpose(2, 1, 0))),
        "elu": (lambda x, y, i: mb.elu(x=x, alpha=f(1)), np.where(x > 0, x, np.exp(x) - 1)),
        "equal": (lambda x, y, i: mb.cast(x=mb.equal(x=i, y=np.int32(1)), dtype="int32"), (i == 1).astype(np.int32)),
        "erf": (lambda x, y, i: mb.erf(x=x), erf(t(x)).numpy()),
        "exp2": (lambda x, y, i: mb.exp2(x=x), np.exp2(x)),
        "expand_dims": (lambda x, y, i: mb.expand_dims(x=x, axes=[1, -1]), x[:, None, :, :, None]),
        "fill_like": (lambda x, y, i: mb.add(x=x, y=mb.fill_like(ref_tensor=x, value=f(2))), x + 2),
        "floor_div": (lambda x, y, i: mb.floor_div(x=x, y=y), np.floor(x / y)),
        "floor_div_int": (lambda x, y, i: mb.floor_div(x=mb.sub(x=i, y=np.int32(2)), y=np.int32(3)), (i - 2) // 3),
        "gather": (lambda x, y, i: mb.gather(x=x, indices=np.array([1, 0], np.int32), axis=2), x[:, :, [1, 0]]),
        "gather_along_axis": (lambda x, y, i: mb.gather_along_axis(x=mb.reduce_sum(x=x, axes=[2]), indices=i, axis=1), np.take_along_axis(x.sum(2), i, 1)),
        "gather_nd": (lambda x, y, i: mb.gather_nd(x=x, indices=np.array([[1, 2], [0, 1]], np.int32)), x[[1, 0], [2, 1]]),
        "gelu_tanh": (lambda x, y, i: mb.gelu(x=x, mode="TANH_APPROXIMATION"), torch.nn.functional.gelu(t(x), approximate="tanh").numpy()),
        "greater": (lambda x, y, i: mb.cast(x=mb.greater(x=x, y=y), dtype="fp32"), (x > y).astype(f)),
        "inverse": (lambda x, y, i: mb.inverse(x=y, epsilon=f(0.5)), 1 / (y + f(0.5))),
        "l2_norm": (lambda x, y, i: mb.l2_norm(x=mb.expand_dims(x=x, axes=[0]), epsilon=f(1e-6)), (x / np.sqrt((x * x).sum() + 1e-6))[None]),
        "layer_norm": (lambda x, y, i: mb.layer_norm(x=x, axes=[1, 2], gamma=np.full((3, 4), 2, f), beta=np.full((3, 4), 1, f), epsilon=f(1e-5)), (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5) * 2 + 1),
        "leaky_relu": (lambda x, y, i: mb.leaky_relu(x=x, alpha=f(0.1)), np.where(x > 0, x, x * f(0.1))),
        "linear_activation": (lambda x, y, i: mb.linear_activation(x=x, alpha=f(2), beta=f(1)), 2 * x + 1),
        "log": (lambda x, y, i: mb.log(x=y, epsilon=f(0.25)), np.log(y + f(0.25))),
        "logical": (lambda x, y, i: mb.cast(x=mb.logical_and(x=mb.greater(x=x, y=f(0)), y=mb.logical_not(x=mb.greater(x=y, y=f(1)))), dtype="int32"), ((x > 0) & ~(y > 1)).astype(np.int32)),
        "matmul": (lambda x, y, i: mb.matmul(x=x, y=y, transpose_y=True), x @ y.transpose(0, 2, 1)),
        "maximum": (lambda x, y, i: mb.maximum(x=x, y=y), np.maximum(x, y)),
        "mod": (lambda x, y, i: mb.mod(x=x, y=y), np.mod(x, y)),
        "not_equal": (lambda x, y, i: mb.cast(x=mb.not_equal(x=i, y=np.int32(1)), dtype="int32"), (i != 1).astype(np.int32)),
        "one_hot": (lambda x, y, i: mb.one_hot(indices=i, one_hot_vector_size=3, axis=-1, on_value=f(5), off_value=f(-1)), np.where(np.eye(3)[i] > 0, f(5), f(-1))),
        "pad_constant": (lambda x, y, i: mb.pad(x=x, pad=[1, 2], mode="constant", constant_val=f(7)), np.pad(x, ((0, 0), (0, 0), (1, 2)), constant_values=7)),
        "pad_reflect": (lambda x, y, i: mb.pad(x=x, pad=[1, 2], mode="reflect"), np.pad(x, ((0, 0), (0, 0), (1, 2)), mode="reflect")),
        "pow": (lambda x, y, i: mb.pow(x=y, y=f(1.5)), y ** f(1.5)),
        "real_div": (lambda x, y, i: mb.real_div(x=x, y=y), x / y),
        "reduce_argmax": (lambda x, y, i: mb.reduce_argmax(x=x, axis=1, keep_dims=False), x.argmax(1).astype(np.int32)),
        "reduce_l2_norm": (lambda x, y, i: mb.reduce_l2_norm(x=x, axes=[2], keep_dims=True), np.sqrt((x * x).sum(2, keepdims=True))),
        "reduce_log_sum_exp": (lambda x, y, i: mb.reduce_log_sum_exp(x=x, axes=[-1]), np.log(np.exp(x).sum(-1))),
        "reduce_max": (lambda x, y, i: mb.reduce_max(x=x, axes=[0, 2]), x.max((0, 2))),
        "reduce_mean_int_axes": (lambda x, y, i: mb.reduce_mean(x=x, axes=[-2], keep_dims=True), x.mean(-2, keepdims=True)),
        "reduce_prod": (lambda x, y, i: mb.reduce_prod(x=x, axes=[1]), x.prod(1)),
        "reduce_sum": (lambda x, y, i: mb.reduce_sum(x=x, axes=[1]), x.sum(1)),
        "relu6": (lambda x, y, i: mb.relu6(x=mb.mul(x=x, y=f(5))), np.clip(x * 5, 0, 6)),
        "reshape": (lambda x, y, i: mb.reshape(x=x, shape=[2, -1]), x.reshape(2, -1)),
        "reverse": (lambda x, y, i: mb.reverse(x=x, axes=[1]), x[:, ::-1]),
        "rsqrt": (lambda x, y, i: mb.rsqrt(x=y, epsilon=f(1e-12)), 1 / np.sqrt(y)),
        "scaled_tanh": (lambda x, y, i: mb.scaled_tanh(x=x, alpha=f(2), beta=f(0.5)), 2 * np.tanh(x * f(0.5))),
        "select": (lambda x, y, i: mb.select(cond=mb.greater(x=x, y=f(0)), a=x, b=y), np.where(x > 0, x, y)),
        "shape": (lambda x, y, i: mb.shape(x=x), np.array(x.shape, np.int32)),
        "sigmoid_hard": (lambda x, y, i: mb.sigmoid_hard(x=x, alpha=f(0.3), beta=f(0.5)), np.clip(f(0.3) * x + f(0.5), 0, 1)),
        "silu": (lambda x, y, i: mb.silu(x=x), x / (1 + np.exp(-x))),
        "slice_by_index": (lambda x, y, i: mb.slice_by_index(x=x, begin=[0, 1, 0], end=[0, 0, 4], stride=[1, 1, 2], begin_mask=[True, False, False], end_mask=[True, False, False], squeeze_mask=[False, True, False]), x[:, 1, ::2]),
        "slice_backwards": (lambda x, y, i: mb.slice_by_index(x=x, begin=[0, 0, 3], end=[2, 3, 0], stride=[1, 1, -1], end_mask=[False, False, True]), x[:, :, ::-1]),
        "slice_by_size": (lambda x, y, i: mb.slice_by_size(x=x, begin=[0, 1, 1], size=[2, -1, 2]), x[:, 1:, 1:3]),
        "softmax": (lambda x, y, i: mb.softmax(x=x, axis=1), np.exp(x) / np.exp(x).sum(1, keepdims=True)),
        "softplus": (lambda x, y, i: mb.softplus(x=x), np.log1p(np.exp(x))),
        "split": (lambda x, y, i: mb.sub(x=mb.split(x=x, num_splits=2, axis=2)[1], y=mb.split(x=y, split_sizes=[2, 2], axis=2)[0]), x[:, :, 2:] - y[:, :, :2]),
        "square": (lambda x, y, i: mb.square(x=x), x * x),
        "squeeze": (lambda x, y, i: mb.squeeze(x=mb.expand_dims(x=x, axes=[1]), axes=[1]), x),
        "stack": (lambda x, y, i: mb.stack(values=[x, y], axis=-1), np.stack([x, y], -1)),
        "threshold": (lambda x, y, i: mb.threshold(x=x, alpha=f(0.5)), np.maximum(x, f(0.5))),
        "tile": (lambda x, y, i: mb.tile(x=x, reps=[1, 2, 1]), np.tile(x, (1, 2, 1))),
        "topk": (lambda x, y, i: mb.add(x=mb.topk(x=x, k=2, axis=2)[0], y=mb.cast(x=mb.topk(x=x, k=2, axis=2)[1], dtype="fp32")), np.sort(x, 2)[:, :, ::-1][:, :, :2] + np.argsort(-x, 2)[:, :, :2].astype(f)),
        "transpose": (lambda x, y, i: mb.transpose(x=x, perm=[2, 0, -2]), x.transpose(2, 0, 1)),
        "acos": (lambda x, y, i: mb.acos(x=mb.mul(x=x, y=f(0.4))), np.arccos(x * f(0.4))),
        "asin": (lambda x, y, i: mb.asin(x=mb.mul(x=x, y=f(0.4))), np.arcsin(x * f(0.4))),
        "atanh": (lambda x, y, i: mb.atanh(x=mb.mul(x=x, y=f(0.4))), np.arctanh(x * f(0.4))),
        "ceil": (lambda x, y, i: mb.ceil(x=x), np.ceil(x)),
        "clamped_relu": (lambda x, y, i: mb.clamped_relu(x=x, alpha=f(0.1), beta=f(1)), np.minimum(np.where(x > 0, x, x * f(0.1)), 1)),
        "cosh": (lambda x, y, i: mb.cosh(x=x), np.cosh(x)),
        "exp": (lambda x, y, i: mb.exp(x=x), np.exp(x)),
        "fill": (lambda x, y, i: mb.add(x=x, y=mb.fill(shape=mb.shape(x=x), value=f(3))), x + 3),
        "flatten2d": (lambda x, y, i: mb.flatten2d(x=x, axis=2), x.reshape(6, 4)),
        "floor": (lambda x, y, i: mb.floor(x=x), np.floor(x)),
        "less": (lambda x, y, i: mb.cast(x=mb.less(x=x, y=y), dtype="int32"), (x < y).astype(np.int32)),
        "less_equal": (lambda x, y, i: mb.cast(x=mb.less_equal(x=i, y=np.int32(1)), dtype="int32"), (i <= 1).astype(np.int32)),
        "logical_or": (lambda x, y, i: mb.cast(x=mb.logical_or(x=mb.greater(x=x, y=f(1)), y=mb.logical_xor(x=mb.less(x=x, y=f(0)), y=mb.greater(x=y, y=f(1)))), dtype="int32"), ((x > 1) | ((x < 0) ^ (y > 1))).astype(np.int32)),
        "minimum": (lambda x, y, i: mb.minimum(x=x, y=y), np.minimum(x, y)),
        "non_zero": (lambda x, y, i: mb.reduce_sum(x=mb.non_zero(x=mb.cast(x=mb.greater(x=x, y=f(0)), dtype="int32")), axes=[0]), np.argwhere(x > 0).sum(0).astype(np.int32)),
        "quantize": (lambda x, y, i: mb.dequantize(input=mb.quantize(input=x, scale=f(0.1), zero_point=np.int8(3), output_dtype="int8"), scale=f(0.1), zero_point=np.int8(3)), (np.clip(np.round(x / f(0.1)) + 3, -128, 127) - 3).astype(f) * f(0.1)),
        "range_1d": (lambda x, y, i: mb.range_1d(start=np.int32(1), end=mb.add(x=mb.gather(x=mb.shape(x=x), indices=np.int32(2), axis=0), y=np.int32(3)), step=np.int32(2)), np.arange(1, 7, 2).astype(np.int32)),
        "reduce_argmin": (lambda x, y, i: mb.reduce_argmin(x=x, axis=2, keep_dims=True), x.argmin(2)[..., None].astype(np.int32)),
        "reduce_l1_norm": (lambda x, y, i: mb.reduce_l1_norm(x=x, axes=[1]), np.abs(x).sum(1)),
        "reduce_log_sum": (lambda x, y, i: mb.reduce_log_sum(x=y, axes=[1]), np.log(y.sum(1))),
        "reduce_min": (lambda x, y, i: mb.reduce_min(x=x, axes=[1]), x.min(1)),
        "reduce_sum_square": (lambda x, y, i: mb.reduce_sum_square(x=x, axes=[1]), (x * x).sum(1)),
        "round": (lambda x, y, i: mb.round(x=x), np.round(x)),
        "sigmoid": (lambda x, y, i: mb.sigmoid(x=x), 1 / (1 + np.exp(-x))),
        "sign": (lambda x, y, i: mb.sign(x=x), np.sign(x)),
        "sinh": (lambda x, y, i: mb.sinh(x=x), np.sinh(x)),
        "softsign": (lambda x, y, i: mb.softsign(x=x), x / (1 + np.abs(x))),
        "sqrt": (lambda x, y, i: mb.sqrt(x=y), np.sqrt(y)),
        "tan": (lambda x, y, i: mb.tan(x=mb.mul(x=x, y=f(0.5))), np.tan(x * f(0.5))),
        "thresholded_relu": (lambda x, y, i: mb.thresholded_relu(x=x, alpha=f(0.75)), np.where(x > 0.75, x, 0)),
        "trigonometry": (lambda x, y, i: mb.add(x=mb.sin(x=x), y=mb.mul(x=mb.cos(x=x), y=mb.tanh(x=mb.atan(x=x)))), np.sin(x) + np.cos(x) * np.tanh(np.arctan(x))),
    }  # fmt: skip


def image_cases(z: Any) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Operators on images z float32 [1, 4, 6, 6], answered by torch."""
    f, n, t = np.float32, torch.nn.functional, torch.from_numpy(z)
    w = np.random.default_rng(5).normal(size=(6, 2, 3, 3)).astype(f)
    b = np.arange(6, dtype=f)
    v = np.random.default_rng(6).normal(size=(4, 3, 3, 3)).astype(f)
    return {
        "conv": (lambda z: mb.conv(x=z, weight=w, bias=b, groups=2, pad_type="custom", pad=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2]), n.conv2d(n.pad(t, (2, 1, 1, 0)), torch.from_numpy(w), torch.from_numpy(b), stride=(2, 1), dilation=(1, 2), groups=2)),
        "conv_same": (lambda z: mb.conv(x=z, weight=w, groups=2, pad_type="same"), n.conv2d(t, torch.from_numpy(w), padding=1, groups=2)),
        "conv_transpose": (lambda z: mb.conv_transpose(x=z, weight=v, pad_type="custom", pad=[1, 1, 0, 0], strides=[2, 1]), n.conv_transpose2d(t, torch.from_numpy(v), stride=(2, 1), padding=(1, 0))),
        "max_pool": (lambda z: mb.max_pool(x=z, kernel_sizes=[3, 2], strides=[2, 2], pad_type="custom", pad=[1, 1, 0, 0]), n.max_pool2d(t, (3, 2), (2, 2), (1, 0))),
        "avg_pool": (lambda z: mb.avg_pool(x=z, kernel_sizes=[3, 3], strides=[1, 1], pad_type="custom", pad=[1, 1, 1, 1], exclude_padding_from_average=True), n.avg_pool2d(t, 3, 1, 1, count_include_pad=False)),
        "batch_norm": (lambda z: mb.batch_norm(x=z, mean=np.ones(4, f), variance=np.full(4, 4, f), gamma=np.full(4, 2, f), beta=np.full(4, 3, f), epsilon=f(1e-5)), n.batch_norm(t, torch.ones(4), torch.full((4,), 4.0), torch.full((4,), 2.0), torch.full((4,), 3.0), eps=1e-5)),
        "instance_norm": (lambda z: mb.instance_norm(x=z, epsilon=f(1e-5)), n.instance_norm(t, eps=1e-5)),
        "local_response_norm": (lambda z: mb.local_response_norm(x=z, size=3, alpha=f(1e-2), beta=f(0.75), k=f(1)), n.local_response_norm(t, 3, 1e-2, 0.75, 1)),
        "upsample_nearest": (lambda z: mb.upsample_nearest_neighbor(x=z, scale_factor_height=2, scale_factor_width=3), n.interpolate(t, scale_factor=(2, 3), mode="nearest")),
        "upsample_bilinear": (lambda z: mb.upsample_bilinear(x=z, scale_factor_height=2, scale_factor_width=2, align_corners=True), n.interpolate(t, scale_factor=2, mode="bilinear", align_corners=True)),
        "upsample_bilinear_half": (lambda z: mb.upsample_bilinear(x=z, scale_factor_height=2, scale_factor_width=2, align_corners=False), n.interpolate(t, scale_factor=2, mode="bilinear", align_corners=False)),
        "pixel_shuffle": (lambda z: mb.pixel_shuffle(x=z, upscale_factor=2), n.pixel_shuffle(t, 2)),
        "depth_to_space": (lambda z: mb.depth_to_space(x=z, block_size=2), t.reshape(1, 2, 2, 1, 6, 6).permute(0, 3, 4, 1, 5, 2).reshape(1, 1, 12, 12)),
        "resize_bilinear": (lambda z: mb.resize_bilinear(x=z, target_size_height=9, target_size_width=4, sampling_mode="STRICT_ALIGN_CORNERS"), n.interpolate(t, size=(9, 4), mode="bilinear", align_corners=True)),
        "resize_half": (lambda z: mb.resize_bilinear(x=z, target_size_height=9, target_size_width=4, sampling_mode="UNALIGN_CORNERS"), n.interpolate(t, size=(9, 4), mode="bilinear", align_corners=False)),
        "resize_nearest": (lambda z: mb.resize_nearest_neighbor(x=z, target_size_height=12, target_size_width=3), n.interpolate(t, size=(12, 3), mode="nearest")),
        "prelu": (lambda z: mb.prelu(x=z, alpha=np.array([0.1, 0.2, 0.3, 0.4], f)), n.prelu(t, torch.tensor([0.1, 0.2, 0.3, 0.4]))),
        "space_to_depth": (lambda z: mb.space_to_depth(x=z, block_size=2), t.reshape(1, 4, 3, 2, 3, 2).permute(0, 3, 5, 1, 2, 4).reshape(1, 16, 3, 3)),
    }  # fmt: skip


def operators(folder: Path) -> None:
    rng = np.random.default_rng(3)
    x = rng.uniform(-2, 2, (2, 3, 4)).astype(np.float32)
    y = rng.uniform(0.5, 2, (2, 3, 4)).astype(np.float32)
    i = rng.integers(0, 3, (2, 3)).astype(np.int32)
    cases = operator_cases(x, y, i)

    def main(x: Any, y: Any, i: Any) -> Any:
        return tuple(mb.identity(x=build(x, y, i), name=f"{name}_") for name, (build, _) in cases.items())

    program(folder / "operators.coreml", {"x": x, "y": y, "i": i}, main, {f"{n}_": np.asarray(a) for n, (_, a) in cases.items()})
    z = rng.normal(size=(1, 4, 6, 6)).astype(np.float32)
    images = image_cases(z)

    def image_main(z: Any) -> Any:
        return tuple(mb.identity(x=build(z), name=f"{name}_") for name, (build, _) in images.items())

    program(folder / "images.coreml", {"z": z}, image_main, {f"{n}_": a.numpy() for n, (_, a) in images.items()})
    q, k, v = (rng.normal(size=(1, 2, n, 8)).astype(np.float32) for n in (3, 5, 5))
    mask = rng.normal(size=(3, 5)).astype(np.float32)
    tq, tk, tv, tmask = map(torch.from_numpy, (q, k, v, mask))
    attended = torch.nn.functional.scaled_dot_product_attention(tq, tk, tv, tmask).numpy()
    program(
        folder / "attention.coreml", {"q": q, "k": k, "v": v},
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask, name="y"), {"y": attended}, "iOS18",
    )  # fmt: skip
    program(folder / "unknown.coreml", {"z": z}, lambda z: mb.crop(x=z, crop_height=[1, 1], crop_width=[1, 1]), {})


def compressed(folder: Path, model: Any, inputs: Arrays) -> None:
    """The MLP with palettised, quantised and sparse weights; answers by numpy are not there: compared loosely with the plain one."""
    opt: Any = import_module("coremltools.optimize.coreml")

    plain = dict(np.load(folder / "mlp.npz"))
    for name, config, change in (
        ("palettised", opt.OpPalettizerConfig(mode="uniform", nbits=6, weight_threshold=0), opt.palettize_weights),
        ("quantised", opt.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0), opt.linear_quantize_weights),
        ("sparse", opt.OpThresholdPrunerConfig(threshold=0.005, minimum_sparsity_percentile=0.0, weight_threshold=0), opt.prune_weights),
    ):
        save(change(model, opt.OptimizationConfig(global_config=config)), folder / f"{name}.coreml")
        keep(folder / f"{name}.coreml", inputs, {"y0": plain["out.y0"]})


def classifier(folder: Path, network: Any, inputs: Arrays) -> None:
    """A network with labels: CoreML gives the likeliest one and a dictionary, which is a tensor here."""
    row = {"x": inputs["x"][:1]}
    with torch.no_grad():
        p = network(torch.from_numpy(row["x"])).numpy()
        model = ct.convert(
            torch.jit.trace(network, torch.from_numpy(row["x"])), inputs=[ct.TensorType("x", shape=(1, 30))],
            classifier_config=ct.ClassifierConfig(["benign", "malignant"]), convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17, compute_precision=ct.precision.FLOAT32, skip_model_load=True,
        )  # fmt: skip
    save(model, folder / "classifier.coreml")
    outputs = {o.name: o.type.WhichOneof("Type") for o in model.get_spec().description.output}
    label = next(n for n, kind in outputs.items() if kind == "stringType")
    scores = next(n for n, kind in outputs.items() if kind == "dictionaryType")
    keep(folder / "classifier.coreml", row, {label: np.array(["benign", "malignant"][int(p.argmax())]), scores: p[0]})


def blocks(folder: Path, network: Any, inputs: Arrays) -> None:
    """Four bits in blocks of ten columns, and half-precision constants that are cast (older and newer forms)."""
    opt: Any = import_module("coremltools.optimize.coreml")

    w = np.random.default_rng(4).normal(size=(8, 30)).astype(np.float16)

    def cast(x: Any) -> Any:
        return mb.linear(x=x, weight=mb.constexpr_cast(source_val=w, output_dtype="fp32"), name="y")

    program(folder / "cast.coreml", inputs, cast, {"y": inputs["x"] @ w.astype(np.float32).T}, "iOS16")
    with torch.no_grad():
        model = ct.convert(
            torch.jit.trace(network, torch.from_numpy(inputs["x"])), inputs=[ct.TensorType("x", shape=(5, 30))],
            outputs=[ct.TensorType("y0")], convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32, skip_model_load=True,
        )  # fmt: skip
    config = opt.OpLinearQuantizerConfig(mode="linear", dtype="int4", granularity="per_block", block_size=10, weight_threshold=0)
    save(opt.linear_quantize_weights(model, opt.OptimizationConfig(global_config=config)), folder / "blocks.coreml")
    keep(folder / "blocks.coreml", inputs, {"y0": np.load(folder / "mlp.npz")["out.y0"]})


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    rows = {"x": rng.normal(size=(5, 30)).astype(np.float32)}
    network = mlp()
    converted(folder / "mlp_half.coreml", network, rows, "FLOAT16")
    converted(folder / "mlp_rows.coreml", network, rows, free=True)
    compressed(folder, converted(folder / "mlp.coreml", network, rows), rows)
    classifier(folder, network, rows)
    blocks(folder, network, rows)
    converted(folder / "cnn.coreml", cnn(), {"x": rng.normal(size=(2, 1, 14, 14)).astype(np.float32)})
    converted(folder / "encoder.coreml", Encoder(), {"tokens": rng.integers(0, 40, (2, 6)).astype(np.int32)})
    converted(folder / "recurrent.coreml", Recurrent(), {"x": rng.normal(size=(7, 2, 5)).astype(np.float32)})
    from sklearn.datasets import load_iris

    x, target = load_iris(return_X_y=True)
    trees(folder, x.astype(np.float32), target)
    linear(folder, x.astype(np.float32), target)
    operators(folder)
    for path in sorted(folder.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
