"""Makes the small ONNX models that the demo ships, from scikit-learn's data sets.

    python tools/make_demo_models.py [FOLDER]

Deterministic: fixed seeds, fixed operator set, no timestamps. The files are committed, so a user needs
neither scikit-learn nor this tool; run it again to check or change them.

Digits classifiers take ``X`` float32 [N, 64] (pixels / 16) and give ``label`` int64 [N] and
``probabilities`` float32 [N, 10] (the SVM's are one-against-rest scores). ``hospital_predict`` takes raw features ``x`` float32 [N, 30] and gives
``label`` int64 [N] (1 is benign) and ``probabilities`` float32 [N, 2]. ``hospital_train`` takes ``weights``
float64 [31], ``x`` float64 [N, 30], ``y`` float64 [N] and gives ``new_weights`` float64 [31]: five steps of
gradient descent on one site's rows. Both contain the standardisation of the features.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from dimnode.demo import data

OPSET = 17
STEPS = 5
LEARNING_RATE = 0.5
L2 = 1e-3
HERE = Path(__file__).resolve().parent.parent / "dimnode" / "demo" / "models"


def convert(model: BaseEstimator, width: int, name: str) -> bytes:
    """ONNX bytes of a fitted classifier with outputs ``label`` and ``probabilities``."""
    made = to_onnx(
        model,
        initial_types=[("X", FloatTensorType([None, width]))],  # pyright: ignore[reportArgumentType]
        options={"zipmap": False},
        target_opset=OPSET,
        name=name,
    )
    assert isinstance(made, onnx.ModelProto)
    return finish(made, name)


def finish(made: onnx.ModelProto, name: str) -> bytes:
    made.graph.name = name
    made.producer_version = ""
    made.doc_string = ""
    for value in (*made.graph.input, *made.graph.output):
        if not value.name.endswith("weights"):
            value.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.checker.check_model(made)
    return made.SerializeToString(deterministic=True)


def digits_models() -> dict[str, bytes]:
    x, y, _, _ = data.digits()
    models = {
        "digits_logreg": LogisticRegression(max_iter=2000),
        "digits_forest": RandomForestClassifier(30, random_state=0, max_depth=8),
        "digits_svm": SVC(),
        "digits_mlp": MLPClassifier((32,), random_state=0, max_iter=800),
    }
    return {name: convert(model.fit(x, y), 64, name) for name, model in models.items()}


def hospital_predict() -> bytes:
    x, y, _, _ = data.cancer()
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x.astype(np.float32), y)
    made = onnx.load_from_string(convert(fitted, 30, "hospital_predict"))
    for node in made.graph.node:
        node.input[:] = ["x" if n == "X" else n for n in node.input]
    made.graph.input[0].name = "x"
    return finish(made, "hospital_predict")


def hospital_train() -> bytes:
    """FedAvg's local update (McMahan et al. 2017) for logistic regression, unrolled."""
    x, _, _, _ = data.cancer()
    graph = Graph()
    mean, scale = graph.constant("mean", x.mean(axis=0)), graph.constant("scale", x.std(axis=0))
    z = graph.node("Div", graph.node("Sub", "x", mean), scale)
    rows = graph.node("Cast", graph.node("Shape", "y"), to=TensorProto.DOUBLE)
    w, b = graph.slice("weights", 0, 30), graph.slice("weights", 30, 31)
    for _ in range(STEPS):
        p = graph.node("Sigmoid", graph.node("Add", graph.node("MatMul", z, w), b))
        error = graph.node("Sub", p, "y")
        # error x z, not Transpose(z) x error: onnxruntime 1.32's extended optimisations get the latter wrong.
        slope = graph.node("Add", graph.node("Div", graph.node("MatMul", error, z), rows), graph.node("Mul", w, graph.constant("l2", L2)))
        drift = graph.node("Div", graph.node("ReduceSum", error, keepdims=1), rows)
        w = graph.node("Sub", w, graph.node("Mul", slope, graph.constant("rate", LEARNING_RATE)))
        b = graph.node("Sub", b, graph.node("Mul", drift, graph.constant("rate", LEARNING_RATE)))
    graph.nodes.append(helper.make_node("Concat", [w, b], ["new_weights"], axis=0))
    return graph.model()


class Graph:
    """Just enough to write an ONNX graph as expressions."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: NDArray[np.float64] | float) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype=np.float64), name)
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def slice(self, name: str, start: int, end: int) -> str:
        for n in (start, end):
            self.constants[f"i{n}"] = numpy_helper.from_array(np.array([n], dtype=np.int64), f"i{n}")
        return self.node("Slice", name, f"i{start}", f"i{end}")

    def model(self) -> bytes:
        def tensor(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape)

        graph = helper.make_graph(
            self.nodes,
            "hospital_train",
            [tensor("weights", [31]), tensor("x", ["N", 30]), tensor("y", ["N"])],
            [tensor("new_weights", [31])],
            list(self.constants.values()),
        )
        return finish(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8), "hospital_train")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    files = {**digits_models(), "hospital_predict": hospital_predict(), "hospital_train": hospital_train()}
    for name, content in files.items():
        (folder / f"{name}.onnx").write_bytes(content)
        print(f"{name}.onnx: {len(content)} bytes")
    print(f"{sum(map(len, files.values()))} bytes in all")


if __name__ == "__main__":
    main()
