"""GGUF's packings: the numbers of ggml's own package and of MLX's reader, and language models that say the same packed and unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from loaders.api import ModelRejected
from loaders.archive import pack_folder
from loaders.language.gguf import read_header, read_weights
from loaders.language.gguf_tensors import KINDS, to_mlx
from loaders.language_loader import LanguageLoader, LanguageModel
from tests.support.gguf_files import CHANGES, HALVES, blocks, from_hugging_face, network, unpacked, values, write
from tests.support.language_models import CONFIG, safetensors, tiny_folder, weights

PACKED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K")
PROMPT = "Hello there, wörld"


def as_floats(kind: str, raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What MLX computes with."""
    number = next(n for n, k in KINDS.items() if k.name == kind)
    found = to_mlx("a.weight", raw.reshape(-1), shape, number)
    if "a.scales" not in found:
        return np.array(found["a.weight"].astype(mx.float32))
    bits = found["a.weight"].shape[-1] * 32 // shape[1]
    whole = {n: found[f"a.{n}"].astype(mx.float32) for n in ("scales", "biases")}
    return np.array(mx.dequantize(found["a.weight"], whole["scales"], whole["biases"], group_size=32, bits=bits))


@pytest.mark.parametrize("kind", HALVES)
def test_numbers_are_those_of_ggmls_own_package(kind: str) -> None:
    raw = blocks(kind, 6, 512)
    expected = values(raw, kind)
    # scales of K packings are products that become 16-bit floats, and plain floats become 16 bits
    exact = kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
    spread = float(np.abs(expected).max())
    np.testing.assert_allclose(as_floats(kind, raw, (6, 512)), expected, rtol=0, atol=spread * (1e-6 if exact else 2e-3))


def test_every_packing_is_tested_and_what_can_stay_packed_does() -> None:
    assert {k.name for k in KINDS.values()} == {*HALVES, "F32", "F16", "BF16"}
    for number, kind in KINDS.items():
        assert (kind.values, kind.size) == _sizes(kind.name)
        if kind.name in HALVES:
            found = to_mlx("a.weight", blocks(kind.name, 2, 256).reshape(-1), (2, 256), number)
            assert ("a.scales" in found) == (kind.name in PACKED)


def _sizes(name: str) -> tuple[int, int]:
    from gguf.constants import GGML_QUANT_SIZES

    return GGML_QUANT_SIZES[GGMLQuantizationType[name]]


@pytest.mark.parametrize("kind", ["Q6_K", "Q2_K", "Q8_0"])
def test_numbers_are_those_of_mlxs_reader(tmp_path: Path, kind: str) -> None:
    """A third implementation, in C. What it cannot keep packed it makes into 16-bit floats. (Of Q4_K it gives every second group the
    factors of the one before, up to mlx 0.32.4 at least; the formula is below.)"""
    path = write(tmp_path / "m.gguf", {"a.weight": (blocks(kind, 6, 512), kind)})
    theirs: Any = mx.load(str(path), format="gguf")
    expected = (
        theirs["a.weight"]
        if "a.scales" not in theirs
        else mx.dequantize(theirs["a.weight"], theirs["a.scales"], theirs["a.biases"], group_size=32, bits=8)
    )
    ours = as_floats(kind, blocks(kind, 6, 512), (6, 512))
    np.testing.assert_allclose(ours, np.array(expected.astype(mx.float32)), rtol=0, atol=2e-3 * float(np.abs(ours).max()))


def test_four_bits_by_the_formula() -> None:
    """ggml-quants.c, get_scale_min_k4 and dequantize_row_q4_K, value by value."""
    raw = blocks("Q4_K", 1, 256, seed=4)
    factor, lowest = (float(raw[0, at : at + 2].view(np.float16)[0]) for at in (0, 2))
    q = [int(b) for b in raw[0, 4:16]]
    expected = np.zeros(256)
    for group in range(8):
        scale, minimum = q[group % 4] & 63, q[group % 4 + 4] & 63
        if group > 3:
            scale, minimum = q[group + 4] & 15 | q[group - 4] >> 6 << 4, q[group + 4] >> 4 | q[group] >> 6 << 4
        for i in range(32):
            byte = int(raw[0, 16 + 32 * (group // 2) + i])
            expected[32 * group + i] = factor * scale * (byte >> 4 if group % 2 else byte & 15) - lowest * minimum
    np.testing.assert_allclose(as_floats("Q4_K", raw, (1, 256))[0], expected, atol=2e-3 * np.abs(expected).max())


def test_six_bits_by_the_formula() -> None:
    """ggml-quants.c, dequantize_row_q6_K, value by value: 16 scales, 4 low bits here and 2 high bits there."""
    raw = blocks("Q6_K", 1, 256, seed=4)
    low, high, scales = raw[0, :128], raw[0, 128:192], raw[0, 192:208].view(np.int8)
    factor = float(raw[0, 208:210].view(np.float16)[0])
    expected = np.zeros(256)
    for half in range(2):
        for i in range(32):
            for part in range(4):
                byte, more = int(low[64 * half + i + 32 * (part % 2)]), int(high[32 * half + i])
                q = ((byte >> 4 if part > 1 else byte & 15) | (more >> (2 * part) & 3) << 4) - 32
                expected[128 * half + 32 * part + i] = factor * int(scales[8 * half + 2 * part + i // 16]) * q
    np.testing.assert_allclose(as_floats("Q6_K", raw, (1, 256))[0], expected, rtol=1e-3)


def load(path: Path) -> LanguageModel:
    model = LanguageLoader().load(path, 1)
    assert isinstance(model, LanguageModel)
    return model


def tokens(model: LanguageModel, prompt: str = PROMPT, **more: Any) -> list[int]:
    asked = {"prompt": np.array([prompt], dtype=object), "max_tokens": np.array(12, np.int32), **more}
    return model.run(asked)["tokens"][0].tolist()


def logits(model: LanguageModel, length: int = 5) -> np.ndarray:
    """Of the last tokens of a text of this length."""
    text = np.random.default_rng(length).integers(3, 300, length)
    return np.array(model._network(mx.array(text[None]))[:, -5:].astype(mx.float32))


def same_model(ours: LanguageModel, theirs: LanguageModel) -> None:
    found, expected = logits(ours), logits(theirs)
    assert found.std() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 * float(np.abs(expected).max()))


@pytest.mark.parametrize("kind", HALVES)
def test_a_model_computes_the_same_packed_and_unpacked(tmp_path: Path, kind: str) -> None:
    packed = network(kind)
    model = load(write(tmp_path / "p.gguf", packed))
    same_model(model, load(write(tmp_path / "u.gguf", unpacked(packed))))
    assert tokens(model)


def test_bfloat16(tmp_path: Path) -> None:
    floats = unpacked(network("Q4_1"), "BF16")
    path = write(tmp_path / "b.gguf", floats)
    found = read_weights(path, read_header(path))
    assert found["token_embd.weight"].dtype == mx.bfloat16
    expected = values(floats["token_embd.weight"][0], "BF16")
    np.testing.assert_array_equal(np.array(found["token_embd.weight"].astype(mx.float32)), expected)
    assert tokens(load(path))


def test_a_mixture_as_it_is_published(tmp_path: Path) -> None:
    """Q4_K_M: most in Q4_K, some in Q6_K."""
    mixed = network("Q4_K")
    for name in ("token_embd.weight", "blk.0.attn_v.weight", "blk.0.ffn_down.weight"):
        mixed[name] = network("Q6_K")[name]
    same_model(load(write(tmp_path / "p.gguf", mixed)), load(write(tmp_path / "u.gguf", unpacked(mixed))))


def test_a_text_begins_with_the_token_that_its_author_wants_in_front(tmp_path: Path) -> None:
    weights = network("Q8_0")
    models = {bos: load(write(tmp_path / f"{bos}.gguf", weights, bos=bos)) for bos in (True, False, None)}
    plain, with_it = tokens(models[False]), tokens(models[True])
    assert with_it != plain == tokens(models[None])
    # the token with number 1, as a text of its own
    assert tokens(models[False], f"<|user|>{PROMPT}") == with_it
    # where the text has it already it does not come twice
    assert tokens(models[True], f"<|user|>{PROMPT}") == with_it


def test_a_chat_template_that_writes_the_first_token_gets_no_second_one(tmp_path: Path) -> None:
    weights = network("Q8_0")
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with_it, without = (load(write(tmp_path / f"{bos}.gguf", weights, bos=bos, template=template)) for bos in (True, False))
    assert tokens(with_it) == tokens(without)


def test_a_first_token_that_is_none_of_its_tokens_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", network("Q8_0"), bos=True)
    data = path.read_bytes()
    at = data.index(b"tokenizer.ggml.bos_token_id") + len("tokenizer.ggml.bos_token_id") + 4
    path.write_bytes(data[:at] + (1 << 20).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(ModelRejected, match="none of its tokens"):
        load(path)


# --- Llama 3 ------------------------------------------------------------------------------------

SCALING = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def factors(theta: float = 10000.0, factor: float = 32.0, old: int = 8192) -> np.ndarray:
    """One by one, as Llama 3.1's code has it and llama.cpp's converter writes it down."""
    out = []
    for frequency in 1.0 / (theta ** (np.arange(0, 64, 2) / 64)):
        length = 2 * np.pi / frequency
        if length < old / 4:
            out.append(1.0)
        elif length > old:
            out.append(factor)
        else:
            smooth = (old / length - 1) / 3
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_network_computes_what_it_does_as_a_folder(tmp_path: Path, scaled: bool) -> None:
    """Other names, other order within heads, another way to write down the scaling of positions."""
    floats = weights({**CONFIG, **CHANGES}, seed=3)
    folder = tiny_folder(tmp_path / "folder", **CHANGES, **({"rope_scaling": SCALING} if scaled else {}))
    (folder / "model.safetensors").write_bytes(safetensors(floats))
    pack_folder(folder, tmp_path / "folder.lm")
    gguf = write(tmp_path / "m.gguf", from_hugging_face(floats, factors() if scaled else None))
    plain = write(tmp_path / "n.gguf", from_hugging_face(floats))
    found, expected = logits(load(gguf), 3000), logits(load(tmp_path / "folder.lm"), 3000)
    np.testing.assert_allclose(found, expected, atol=1e-3 * float(np.abs(expected).max()))
    if scaled:
        assert np.abs(found - logits(load(plain), 3000)).max() > 0.01 * float(np.abs(expected).max())


def test_positions_that_are_scaled_otherwise_are_refused(tmp_path: Path) -> None:
    floats = weights({**CONFIG, **CHANGES})
    for name, odd in (("order", factors()[::-1]), ("context", factors(old=4096)), ("few", factors()[:7]), ("infinite", factors() * np.inf)):
        with pytest.raises(ModelRejected, match=r"scales its positions|do not fit"):
            load(write(tmp_path / f"{name}.gguf", from_hugging_face(floats, odd)))
    with pytest.raises(ModelRejected, match="scales its positions"):
        load(write(tmp_path / "y.gguf", from_hugging_face(floats), scaling="yarn"))
    assert tokens(load(write(tmp_path / "n.gguf", from_hugging_face(floats), scaling="none")))


def test_texts_are_cut_as_llama_3_cuts_them(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.gguf", network("Q8_0"), cut="llama-bpe"))
    cuts = [piece for piece, _ in model._tokenizer.pre_tokenizer.pre_tokenize_str("I'M 1234567, (don't)\n\n  wört")]
    assert cuts == ["I", "'M", "Ġ", "123", "456", "7", ",", "Ġ(", "don", "'t", ")ĊĊ", "Ġ", "ĠwÃ¶rt"]
    # its files do not say that a text begins with the first token, and it does
    assert tokens(model, "Hello") == tokens(model, "<|user|>Hello")
    with pytest.raises(ModelRejected, match=r"tokenizer.*is not supported"):
        load(write(tmp_path / "o.gguf", network("Q8_0"), cut="tekken"))
