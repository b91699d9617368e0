"""Which tests judge which files of the package."""

from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lora_np"

AREAS = {
    "_archive.py": "tests/test_archive.py tests/test_atomic_file.py tests/io/test_hostile_npz.py tests/test_io_npz.py",
    "_validation.py": "tests/test_checks.py tests/io/test_hostile_npz.py tests/test_refused_calls.py "
    "tests/test_row_weights.py tests/test_losses.py tests/layers/test_dense.py tests/layers/test_lora.py",
    "run.py": "tests/test_run.py tests/adapters/test_mixed.py tests/models/test_bert.py",
    "sequences.py": "tests/test_sequences.py tests/models/test_bert.py",
    "testing.py": "tests/test_testing.py tests/layers/test_contract.py",
    "text.py": "tests/test_text.py tests/test_text_gguf.py tests/models/test_bert.py",
    "adapters": "tests/adapters tests/test_run.py",
    "adapters/dora adapters/vera adapters/standard": "tests/adapters/test_dora.py tests/adapters/test_vera.py "
    "tests/adapters/test_standard.py tests/adapters/test_contract.py tests/adapters/test_dropout.py "
    "tests/adapters/test_branches.py tests/adapters/test_unneeded_gradients.py",
    "adapters/dylora adapters/rank_": "tests/adapters/test_dylora.py tests/adapters/test_branches.py tests/test_run.py "
    "tests/adapters/test_contract.py",
    "adapters/task_ranks adapters/task_slices": "tests/adapters/test_ranked_tasks.py",
    "adapters/task_groups adapters/task_storage adapters/task_ch": "tests/adapters/test_task_memory.py "
    "tests/adapters/test_multilora.py tests/adapters/test_mixed.py tests/adapters/test_ranked_tasks.py "
    "tests/adapters/test_dropout.py",
    "base": "tests/layers tests/test_weight_loading.py tests/test_io_npz.py tests/test_run.py "
    "tests/adapters/test_contract.py",
    "cli": "tests/cli/test_main.py tests/cli/test_options.py tests/cli/test_texts.py tests/cli/test_generate.py "
    "tests/cli/test_toolbox_adapters.py tests/cli/test_toolbox_convert.py tests/cli/test_toolbox_diff.py "
    "tests/cli/test_toolbox_extract.py tests/cli/test_toolbox_formats.py tests/cli/test_toolbox_inspect.py "
    "tests/cli/test_toolbox_merge.py tests/cli/test_toolbox_output.py tests/cli/test_toolbox_rank.py "
    "tests/cli/test_toolbox_whole.py",
    "cli/_threads": "tests/cli/test_threads.py",
    "cli/completion": "tests/cli/test_completion.py",
    "cli/demo": "tests/cli/test_demo.py tests/cli/test_demo_text.py --deselect "
    "tests/cli/test_demo_text.py::test_gradients_of_upper_blocks",
    "cli/exercises": "tests/test_exercises.py",
    "cli/gradcheck": "tests/cli/test_gradcheck.py",
    "cli/inspect cli/_reports cli/_others cli/_layer_notes cli/_plot": "tests/cli/test_toolbox_inspect.py "
    "tests/cli/test_toolbox_output.py tests/cli/test_toolbox_whole.py",
    "cli/merge cli/_merge_tables": "tests/cli/test_toolbox_merge.py tests/cli/test_toolbox_output.py "
    "tests/cli/test_toolbox_whole.py tests/cli/test_toolbox_formats.py",
    "cli/classify cli/embed cli/generate cli/_texts cli/_decoders": "tests/cli/test_texts.py tests/cli/test_generate.py",
    "cli/_output": "tests/cli/test_toolbox_output.py tests/cli/test_toolbox_merge.py",
    "cli/_text.py cli/_options cli/_streams cli/__init__ cli/verb": "tests/cli/test_main.py "
    "tests/cli/test_options.py tests/cli/test_toolbox_output.py tests/cli/test_toolbox_inspect.py tests/cli/test_texts.py",
    "cli/combine cli/truncate": "tests/cli/test_toolbox_rank.py tests/cli/test_toolbox_output.py "
    "tests/cli/test_toolbox_adapters.py tests/cli/test_toolbox_whole.py",
    "cli/diff": "tests/cli/test_toolbox_diff.py tests/cli/test_toolbox_output.py tests/cli/test_toolbox_whole.py",
    "cli/convert cli/extract": "tests/cli/test_toolbox_convert.py tests/cli/test_toolbox_extract.py "
    "tests/cli/test_toolbox_formats.py tests/cli/test_toolbox_output.py tests/cli/test_toolbox_whole.py",
    "cli/vectors": "tests/conformance/test_check.py",
    "conformance": "tests/conformance/test_check.py tests/conformance/test_vectors.py --deselect "
    "tests/conformance/test_vectors.py::test_generating_them_again_gives_the_same_bytes",
    "data": "tests/data",
    "demo": "tests/cli/test_demo.py",
    "demo/text": "tests/cli/test_demo_text.py --deselect tests/cli/test_demo_text.py::test_gradients_of_upper_blocks",
    "distributed": "tests/test_distributed.py tests/test_distributed_rows.py tests/test_distributed_validation.py "
    "tests/test_defaults.py",
    "exercises": "tests/test_exercises.py",
    "factors": "tests/test_immutable.py tests/test_surgery.py tests/test_adapter_weights.py tests/test_combining.py "
    "tests/test_truncating.py "
    "tests/test_tasks_apart.py tests/test_ranked_tasks_in_models.py tests/adapters/test_ranked_tasks.py "
    "tests/test_adapting.py tests/io/test_peft.py tests/io/test_peft_whole.py tests/io/test_extract.py "
    "tests/io/test_experts.py tests/io/test_dora_by_input.py tests/io/test_round_trips.py",
    "functions": "tests/test_initializers.py tests/test_regularization.py tests/test_numerical.py tests/test_immutable.py "
    "tests/test_truncating.py tests/test_surgery.py",
    "functions/activations.py functions/erf.py functions/fused.py": "tests/test_activations.py tests/test_fused.py "
    "tests/test_operations.py tests/test_immutable.py",
    "functions/losses.py": "tests/test_losses.py tests/test_row_weights.py tests/models/test_next_token.py",
    "graph": "tests/test_graph.py tests/io/test_onnx.py",
    "io": "tests/io tests/test_io_npz.py",
    "io/_onnx io/onnx.py": "tests/io/test_onnx.py tests/io/test_onnx_mixed.py",
    "io/_peft io/peft.py": "tests/io/test_peft.py tests/io/test_peft_whole.py tests/io/test_peft_vera.py "
    "tests/io/test_experts.py tests/io/test_dora_by_input.py tests/io/test_kinds.py tests/io/test_merge_whole.py",
    "io/base_names.py io/pipelines.py io/diffusers.py io/kohya.py": "tests/io/test_base_names.py "
    "tests/io/test_open_clip_names.py tests/io/test_pipelines.py tests/io/test_diffusers.py tests/io/test_kohya.py "
    "tests/io/test_dora_by_input.py tests/io/test_kinds.py",
    "io/extract.py": "tests/io/test_extract.py",
    "io/folders.py": "tests/io/test_folders.py tests/io/test_pipelines.py tests/cli/test_toolbox_merge.py",
    "io/mlx.py": "tests/io/test_mlx.py",
    "io/npz.py": "tests/test_io_npz.py tests/io/test_hostile_npz.py",
    "io/pretrained.py": "tests/test_stored.py tests/io/test_pretrained.py tests/io/test_pretrained_decoders.py "
    "tests/io/test_gguf_llama.py",
    "io/rounding.py": "tests/io/test_rounding.py",
    "io/_gguf io/gguf.py": "tests/io/test_gguf.py tests/io/test_gguf_llama.py tests/test_text_gguf.py "
    "tests/test_stored.py tests/test_immutable.py",
    "io/_patterns.py": "tests/io/test_patterns.py tests/io/test_peft.py",
    "io/_safetensors io/safetensors.py io/_tensor_file.py io/_mapping.py": "tests/io/test_safetensors.py "
    "tests/io/test_stored_whole.py tests/io/test_gguf.py tests/io/test_merge.py tests/test_immutable.py",
    "io/_changes.py io/_checkpoint.py io/_experts.py io/_merging.py io/_pieces.py io/_prefixes.py io/_tied_heads.py "
    "io/_verification.py io/_weight_names.py io/merge.py": "tests/io/test_merge.py tests/io/test_merge_whole.py "
    "tests/io/test_experts.py tests/io/test_dora_by_input.py tests/io/test_stored_whole.py tests/io/test_base_names.py "
    "tests/io/test_open_clip_names.py tests/io/test_kinds.py tests/test_immutable.py",
    "io/_applying.py io/_convolutions.py io/_factors.py io/_flux_names.py io/_holding.py io/_json.py io/_open_clip "
    "io/_recognition.py io/_unet_names.py": "tests/io/test_peft.py tests/io/test_peft_whole.py tests/io/test_kohya.py "
    "tests/io/test_diffusers.py tests/io/test_mlx.py tests/io/test_experts.py tests/io/test_base_names.py "
    "tests/io/test_open_clip_names.py tests/io/test_kinds.py tests/io/test_round_trips.py tests/io/test_dora_by_input.py "
    "tests/io/test_merge.py",
    "io/_model_config.py": "tests/io/test_pretrained.py tests/io/test_pretrained_decoders.py tests/io/test_gguf_llama.py",
    "kernels": "tests/test_kernels.py tests/test_bfloat16.py tests/test_stored.py tests/layers/test_packing.py "
    "tests/layers/test_dense.py tests/adapters/test_task_memory.py",
    "layers": "tests/layers tests/test_sequences.py",
    "layers/attention layers/rotary": "tests/layers/test_attention.py tests/test_sequences.py",
    "layers/dropout": "tests/layers/test_lora.py tests/layers/test_base.py tests/adapters/test_dropout.py",
    "layers/embedding": "tests/layers/test_embedding.py",
    "layers/lora layers/low_rank layers/movable": "tests/layers/test_lora.py tests/layers/test_base.py "
    "tests/layers/test_contract.py tests/adapters/test_dropout.py tests/adapters/test_task_memory.py",
    "layers/normalization": "tests/layers/test_normalization.py tests/layers/test_contract.py",
    "layers/sequential layers/composite": "tests/layers/test_sequential.py tests/layers/test_composite.py "
    "tests/test_io_npz.py",
    "models": "tests/models/test_bert.py tests/models/test_golden_bert.py tests/models/test_decoders.py "
    "tests/models/test_golden_decoders.py",
    "models/adapting.py models/finding.py models/names.py models/parameter_table.py models/tasks.py": "tests/test_model.py "
    "tests/test_adapting.py tests/test_ranked_tasks_in_models.py tests/models/test_tasks.py tests/io/test_peft_whole.py "
    "tests/test_immutable.py",
    "models/generation.py": "tests/models/test_generation.py",
    "models/next_token.py": "tests/models/test_next_token.py",
    "models/replacing.py": "tests/io/test_peft_whole.py",
    "plot": "tests/test_plot.py",
    "sklearn": "tests/sklearn/test_onetask.py tests/sklearn/test_multitask.py tests/sklearn/test_task_ranks.py "
    "tests/sklearn/test_files.py tests/sklearn/test_stopping.py tests/sklearn/test_weights.py "
    "tests/sklearn/test_multilabel.py tests/sklearn/test_transformer.py tests/sklearn/test_sparse.py "
    "tests/sklearn/test_checks.py::test_progress_is_shown_on_a_terminal_to_those_who_want_it tests/test_defaults.py",
    "sklearn/mlp": "tests/sklearn/test_mlp.py",
    "sklearn/sentence_embedder sklearn/text": "tests/sklearn/test_text.py",
    "terminal": "tests/cli/test_table.py tests/cli/test_progress.py",
    "training": "tests/test_training.py tests/test_optimizers.py tests/test_descent.py tests/test_interrupts.py "
    "tests/test_schedules.py tests/test_accumulation.py tests/test_groups.py tests/test_row_weights.py "
    "tests/test_sorted_start.py tests/test_checkpoint.py tests/adapters/test_dylora.py",
    "training/clipping.py": "tests/test_clipping.py",
    "training/groups training/optimizers training/patience training/schedules": "tests/test_groups.py "
    "tests/test_optimizers.py tests/test_schedules.py tests/test_validation.py",
    "training/interrupts": "tests/test_interrupts.py",
    "training/moment": "tests/test_distributed.py tests/test_distributed_validation.py tests/test_checkpoint.py",
    "training/monitor training/validation": "tests/test_validation.py tests/test_training.py tests/test_checkpoint.py",
    "training/nested_dropout training/pairs training/sort": "tests/test_sorted_start.py tests/test_training.py "
    "tests/test_accumulation.py tests/test_interrupts.py tests/adapters/test_dylora.py",
    "training/progress_bar.py": "tests/test_progress_bar.py",
}
"""Tests of files and folders of the package; the longest beginning of a name counts. Others are not mutated."""

LEFT_OUT = (
    "distributed/cluster.py",
    "demo/settings.py",
    "demo/text_settings.py",
    "demo/pictures.py",
    "demo/text_pictures.py",
)
"""Files that are not mutated: a part that runs in processes of Dask, which a copy of a process cannot start; settings of
experiments, of which other numbers are as good; and pictures, which are judged by eye."""


def area_of(file: str) -> str | None:
    """The name of the area of a file, given relative to the package; None if it is not mutated."""
    beginnings = [(word, area) for area in AREAS for word in area.split() if file.startswith(word)]
    return max(beginnings, key=lambda pair: len(pair[0]), default=(None, None))[1]


def files(beginnings: Iterable[str] = ()) -> list[str]:
    """The files that are mutated, relative to the package; if `beginnings` are given, only files that begin so."""
    beginnings = tuple(beginnings) or ("",)
    names = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    return [name for name in names if area_of(name) and name not in LEFT_OUT and name.startswith(beginnings)]
