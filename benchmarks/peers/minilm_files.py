"""all-MiniLM-L6-v2 as other engines read it: ONNX for fastembed, GGUF for llama.cpp.

    python minilm_files.py FOLDER    # writes FOLDER-onnx, FOLDER-bf16.gguf and FOLDER-q8_0.gguf

Run with torch, transformers, onnx, onnxscript and gguf.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer


class Hidden(torch.nn.Module):
    """The last hidden state alone, by position of its arguments."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids, attention_mask, token_type_ids)[0]
        return hidden


def write_onnx(model: Any, source: Path, folder: Path) -> None:
    """The graph beside the files of the tokenizer."""
    folder.mkdir(exist_ok=True)
    for file in source.glob("*.json"):
        shutil.copy(file, folder)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=512)}
    torch.onnx.export(
        Hidden(model).eval(),
        tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names),
        folder / "model.onnx",
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_shapes=tuple(dims for _ in names),
        dynamo=True,
        external_data=False,
    )


def write_gguf(model: Any, tokenizer: Any, path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Matrices in the type `kind`, the rest in float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    _add_vocabulary(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue
        values = tensor.float().numpy()
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        matrix = values.ndim == 2 and name.startswith(("encoder.", "embeddings.word"))
        if matrix:
            values = gguf.quants.quantize(values, kind)
        writer.add_tensor(stored, np.ascontiguousarray(values), raw_dtype=kind if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    """WordPiece as llama.cpp has it: the start of a word is marked, not its continuation."""
    special = set(tokenizer.all_special_tokens)
    tokens, kinds = [], []
    for word in sorted(tokenizer.vocab, key=tokenizer.vocab.get):
        kinds.append(gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL)
        if word in special:
            tokens.append(word)
        else:
            tokens.append(word[2:] if word.startswith("##") else "\u2581" + word)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_type_count(2)
    writer.add_bos_token_id(tokenizer.cls_token_id)
    writer.add_eos_token_id(tokenizer.sep_token_id)
    writer.add_sep_token_id(tokenizer.sep_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_mask_token_id(tokenizer.mask_token_id)


def main() -> None:
    source = Path(sys.argv[1])
    model = AutoModel.from_pretrained(source, attn_implementation="eager").eval()
    write_onnx(model, source, source.with_name(f"{source.name}-onnx"))
    tokenizer = AutoTokenizer.from_pretrained(source)
    for kind in ("BF16", "Q8_0"):
        path = source.with_name(f"{source.name}-{kind.lower()}.gguf")
        write_gguf(model, tokenizer, path, gguf.GGMLQuantizationType[kind])


if __name__ == "__main__":
    main()
