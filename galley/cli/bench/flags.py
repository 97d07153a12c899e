"""Command lines of `galley bench`: the common parser, and vLLM flags accepted without effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from galley.cli.parser import CommandParser
from galley.errors import ConfigError

#: vLLM bench flags that have no effect here.
_HINTS = "trust_remote_code tokenizer_mode custom_ensure_client_side_data reranker"
_REFUSED = {
    "only text prompts are measured.": """
        enable_multimodal_chat random_mm_base_items_per_request limit_mm_per_prompt
        random_mm_num_mm_items_range_ratio random_mm_limit_mm_per_prompt random_mm_bucket_config
        asr_max_audio_len_sec asr_min_audio_len_sec""",
    "download the data set and name the file with --dataset-path.": """
        hf_subset hf_split hf_name hf_output_len spec_bench_output_len spec_bench_category
        speed_bench_dataset_subset speed_bench_output_len speed_bench_category
        blazedit_min_distance blazedit_max_distance bfcl_categories""",
    "traces are not replayed.": """
        timed_trace_chunk_hash_size timed_trace_sec_multiplier timed_trace_label_timestamp
        timed_trace_label_input_length timed_trace_label_output_length
        timed_trace_label_hash_ids self_timed""",
    "adapters are not measured.": "lora_modules lora_assignment lora_path",
    "only Galley runs offline here.": "hf_max_batch_size hf_enable_torch_compile async_engine",
    "beam search is not measured.": "use_beam_search",
    "use --plot FILE.png.": "plot_timeline timeline_itl_thresholds plot_dataset_stats",
    "probing is not supported.": "probe_request_rate",
    "one prompt a request is sent.": "random_batch_size",
}
_VERDICTS = {name: sentence for sentence, names in _REFUSED.items() for name in names.split()}


@dataclass(frozen=True)
class TokenizerFlags:
    """Tokenizer"""

    tokenizer: str | None = None
    """Directory, .gguf file or hub name of the tokenizer for prompts; default: the
    server's model, if it is found here, else the built-in model's."""
    skip_tokenizer_init: bool = False
    """Use no tokenizer (sharegpt and custom only): prompt lengths are counted in words."""


class BenchParser(CommandParser):
    """A command line of `galley bench`."""

    def refuse(self, option: str, notices: list[str], value: Any = True) -> None:
        name = option.lstrip("-").split(".")[0].replace("-", "_").removeprefix("no_")
        if name in _HINTS.split():
            notices.append(f"{option} is accepted for compatibility with vLLM and has no effect.")
            return
        if name in _VERDICTS:
            raise ConfigError(f"{option} is not supported: {_VERDICTS[name]}", field=name)
        super().refuse(option, notices, value)
