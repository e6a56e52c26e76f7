"""Model repositories in the layout of the real ones, with CLIP's own vocabulary and small random weights.

``openai/clip-vit-base-patch32`` is as on the hub: ``main`` holds pickled weights, and the hub's bot proposes
``model.safetensors`` in a pull request. The ``made/`` repositories are those that a rule for unknown models has to tell
apart.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hub_server import CONVERSION_TITLE, Repository, commit_id
from safetensors.torch import save as save_safetensors
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

B32 = "openai/clip-vit-base-patch32"
B32_MAIN = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
B32_CONVERSION = "c237dc49a33fc61debc9276459120b7eac67e7ef"
FUSION_BENCH = "tanganke/clip-vit-base-patch32_eurosat"
FUSION_BENCH_MAIN = "7c114f53697b7acca1147a0d1e8b7c769979b57b"

TEXT_WIDTH, VISION_WIDTH, PROJECTION = 32, 48, 16
"""512, 768 and 512 in the real model; the numbers of blocks, heads, patches and tokens are the real ones."""

_MERGES_HEAD = "#version: 0.2 - Trained by `huggingface/tokenizers`"
_PLACEHOLDER = b"never to be read: weights of another framework"


def open_clip_folder() -> Path:
    """The folder of the installed ``open_clip``, which cannot be imported without torchvision.

    `make install` puts the wheel into a folder of its own, so that nothing takes it for a usable package.
    """
    beside = Path(sys.prefix) / "open_clip_torch" / "open_clip"
    if beside.is_dir():
        return beside
    found = importlib.util.find_spec("open_clip")
    if found is not None and found.origin is not None:
        return Path(found.origin).parent
    raise FileNotFoundError(
        "CLIP's vocabulary comes from the wheel of open_clip_torch: run `make install`, or `pip install --no-deps "
        f"--target {beside.parent} open_clip_torch`"
    )


def _byte_characters() -> list[str]:
    """A printable character for each byte, in the order of GPT-2's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]


def _old_form(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json as `tokenizers` wrote it in 2022: merges are text, and some fields are not there yet."""
    tokenizer["added_tokens"][0]["normalized"] = True
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    del tokenizer["model"]["byte_fallback"], tokenizer["model"]["ignore_merges"]
    del tokenizer["decoder"]["use_regex"], tokenizer["pre_tokenizer"]["pretokenizers"][1]["use_regex"]
    return tokenizer


@cache
def tokenizer_files() -> dict[str, bytes]:
    """``vocab.json``, ``merges.txt`` and ``tokenizer.json`` from the vocabulary that CLIP's authors published."""
    packed = (open_clip_folder() / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    characters = _byte_characters()
    tokens = characters + [f"{character}</w>" for character in characters]
    tokens += ["".join(merge.split()) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges])
    fast = _old_form(json.loads(tokenizer.backend_tokenizer.to_str()))
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")).encode(),
        "merges.txt": "\n".join([_MERGES_HEAD, *merges, ""]).encode(),
        "tokenizer.json": json.dumps(fast, ensure_ascii=False, indent=2).encode(),
    }


def _added_token(content: str, **more: str) -> dict[str, object]:
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, **more}


def _tokenizer_settings() -> dict[str, bytes]:
    start, end = "<|startoftext|>", "<|endoftext|>"
    settings = {
        "unk_token": _added_token(end, __type="AddedToken"),
        "bos_token": _added_token(start, __type="AddedToken"),
        "eos_token": _added_token(end, __type="AddedToken"),
        "pad_token": end,
        "add_prefix_space": False,
        "errors": "replace",
        "do_lower_case": True,
        "model_max_length": 77,
        "name_or_path": "./clip_ViT_B_32/",
    }
    special = {
        "bos_token": _added_token(start),
        "eos_token": _added_token(end),
        "unk_token": _added_token(end),
        "pad_token": end,
    }
    return {
        "tokenizer_config.json": json.dumps(settings).encode(),
        "special_tokens_map.json": json.dumps(special).encode(),
    }


def _preprocessor() -> bytes:
    """The form before transformers 4.26: sizes are numbers, and the type is that of a feature extractor."""
    settings = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    return json.dumps(settings, indent=2).encode() + b"\n"


def _tower(kind: str, width: int, heads: int, **more: Any) -> dict[str, Any]:
    """One tower's part of a config.json of transformers 4.16, with the generation settings that it came with."""
    return {
        "_name_or_path": "",
        "add_cross_attention": False,
        "architectures": None,
        "attention_dropout": 0.0,
        "bad_words_ids": None,
        "bos_token_id": None,
        "chunk_size_feed_forward": 0,
        "cross_attention_hidden_size": None,
        "decoder_start_token_id": None,
        "diversity_penalty": 0.0,
        "do_sample": False,
        "dropout": 0.0,
        "early_stopping": False,
        "eos_token_id": None,
        "hidden_act": "quick_gelu",
        "hidden_size": width,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4 * width,
        "is_decoder": False,
        "is_encoder_decoder": False,
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "layer_norm_eps": 1e-05,
        "length_penalty": 1.0,
        "max_length": 20,
        "min_length": 0,
        "model_type": kind,
        "num_attention_heads": heads,
        "num_beams": 1,
        "num_hidden_layers": 12,
        "num_return_sequences": 1,
        "output_attentions": False,
        "output_hidden_states": False,
        "pad_token_id": None,
        "projection_dim": PROJECTION,
        "pruned_heads": {},
        "repetition_penalty": 1.0,
        "return_dict": True,
        "temperature": 1.0,
        "tie_encoder_decoder": False,
        "tie_word_embeddings": True,
        "top_k": 50,
        "top_p": 1.0,
        "torch_dtype": None,
        "torchscript": False,
        "transformers_version": "4.16.0.dev0",
        "use_bfloat16": False,
        **more,
    }


@cache
def old_config() -> bytes:
    text = _tower("clip_text_model", TEXT_WIDTH, 8, vocab_size=49408, max_position_embeddings=77)
    text |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = {
        "_name_or_path": B32,
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": PROJECTION,
        "text_config": text,
        "text_config_dict": None,
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": _tower("clip_vision_model", VISION_WIDTH, 12, image_size=224, patch_size=32),
        "vision_config_dict": None,
    }
    return json.dumps(config, indent=2).encode() + b"\n"


@cache
def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """400 tensors: all of a CLIP, and the two ``position_ids`` that files of that time still hold."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(**json.loads(old_config())))
    held = {name: value.detach().clone() for name, value in model.state_dict().items()}
    held["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    held["vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    return held


@cache
def pickled() -> bytes:
    stream = io.BytesIO()
    torch.save(weights(), stream)
    return stream.getvalue()


@cache
def converted(seed: int = 0) -> bytes:
    return save_safetensors(weights(seed), metadata={"format": "pt"})


def _settings(*, fast_tokenizer: bool = True) -> dict[str, bytes]:
    tokenizer = dict(tokenizer_files())
    if not fast_tokenizer:
        del tokenizer["tokenizer.json"]
    return {
        ".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n",
        "README.md": b"---\ntags:\n- vision\n---\n\n# Model Card: CLIP\n",
        "config.json": old_config(),
        "preprocessor_config.json": _preprocessor(),
        **tokenizer,
        **_tokenizer_settings(),
    }


def clip_vit_base_patch32() -> Repository:
    """The real file list of ``main``, and the bot's conversion beside it."""
    repository = Repository(B32)
    initial = commit_id(f"{B32} initial")
    repository.commit("main", initial, {".gitattributes": b""}, author="system", title="initial commit")
    files = _settings() | {
        "flax_model.msgpack": _PLACEHOLDER,
        "pytorch_model.bin": pickled(),
        "tf_model.h5": _PLACEHOLDER,
    }
    repository.commit("main", B32_MAIN, files, author="patrickvonplaten", title="Fix tokenizer", parent=initial)
    repository.pull_request(21, B32_CONVERSION, {"model.safetensors": converted()})
    return repository


def _pickled_only(name: str, *, fast_tokenizer: bool = False) -> Repository:
    repository = Repository(name)
    old, new = commit_id(f"{name} old"), commit_id(f"{name} main")
    files = _settings(fast_tokenizer=fast_tokenizer) | {"pytorch_model.bin": pickled()}
    repository.commit("main", old, files, author="made", title="initial commit")
    card = {"README.md": b"# A model that is in no table\n"}
    repository.commit("main", new, card, author="made", title="A card", parent=old)
    return repository


def made_models() -> list[Repository]:
    """Models that no table knows: the cases that the rule for conversions has to tell apart."""
    by_bot = _pickled_only("made/by-bot")
    by_bot.pull_request(1, commit_id("by-bot"), {"model.safetensors": converted()})

    # Someone else proposes other weights under the bot's title, before the bot's own.
    by_impostor = _pickled_only("made/by-impostor")
    by_impostor.pull_request(1, commit_id("impostor"), {"model.safetensors": converted(1)}, author="SFconvertb0t")

    beside_impostor = _pickled_only("made/beside-impostor")
    beside_impostor.pull_request(1, commit_id("beside"), {"model.safetensors": converted(1)}, author="someone")
    beside_impostor.pull_request(2, commit_id("beside-bot"), {"model.safetensors": converted()})

    closed = _pickled_only("made/closed")
    closed.pull_request(1, commit_id("closed"), {"model.safetensors": converted()}, status="closed")

    older = _pickled_only("made/older-parent")
    parent = older.history("main")[1].id
    older.pull_request(1, commit_id("older"), {"model.safetensors": converted(1)}, parent=parent)

    # The bot opened it; someone pushed another commit on top.
    pushed = _pickled_only("made/pushed-on-top")
    pushed.pull_request(1, commit_id("pushed"), {"model.safetensors": converted()})
    pushed.commit(
        "refs/pr/1",
        commit_id("on-top"),
        {"model.safetensors": converted(1)},
        author="someone",
        title="Update model.safetensors",
        parent=commit_id("pushed"),
    )

    # The bot opened it; someone put a commit in place of the bot's own, on the same parent.
    replaced = _pickled_only("made/replaced")
    replaced.pull_request(1, commit_id("replaced"), {"model.safetensors": converted()})
    replaced.commit(
        "refs/pr/1",
        commit_id("in-its-place"),
        {"model.safetensors": converted(1)},
        author="someone",
        title=CONVERSION_TITLE,
        parent=replaced.refs["main"],
    )
    nothing = _pickled_only("made/pickled-only")
    safe = Repository("made/safetensors")
    files = _settings() | {"model.safetensors": converted()}
    safe.commit("main", commit_id("safe"), files, author="made", title="initial commit")
    gated = Repository("made/gated", gated=True)
    gated.commit("main", commit_id("gated"), files, author="made", title="initial commit")
    return [by_bot, by_impostor, beside_impostor, closed, older, pushed, replaced, nothing, safe, gated]


def fusion_bench() -> Repository:
    """A published image tower: CLIPVisionModel, neither tokenizer nor processor."""
    repository = Repository(FUSION_BENCH)
    tower = json.loads(old_config())["vision_config"]
    tower |= {"architectures": ["CLIPVisionModel"], "_name_or_path": B32, "torch_dtype": "float32"}
    held = {name: value for name, value in weights(2).items() if name.startswith("vision_model.")}
    del held["vision_model.embeddings.position_ids"]
    files = {
        ".gitattributes": b"",
        "README.md": b"---\nbase_model:\n- openai/clip-vit-base-patch32\n---\n",
        "config.json": json.dumps(tower, indent=2).encode(),
        "model.safetensors": save_safetensors(held, metadata={"format": "pt"}),
    }
    repository.commit("main", FUSION_BENCH_MAIN, files, author="tanganke", title="Upload model")
    return repository


def model_repositories() -> list[Repository]:
    return [clip_vit_base_patch32(), fusion_bench(), *made_models()]
