"""No flag without effect: each has a row with the code that obeys it and the test that sees it.

A flag that is parsed and read by nobody outside the configuration fails here.
"""

import ast
import dataclasses
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from shared.config import ModelConfig, ServerConfig
from shared.launching import flags

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "launcher": ("launcher.py", "shared/launching"),
    "frontend": ("frontend",),
    "tokenizer": ("tokenizer_proc",),
    "detokenizer": ("tokenizer_proc",),
    "worker": ("gpu_worker",),
}


@dataclass(frozen=True)
class Row:
    """What setting one flag changes."""

    value: str  # another than the default, as a command line gives it
    read_in: tuple[str, ...]  # files that read it from their configuration
    seen_by: str  # FILE::TEST, under tests/, that fails when it is not obeyed
    read_as: str = ""  # the property of the configuration that holds it; else its own name


LOADED = "gpu_worker/loaded.py"  # makes the scheduler
LAUNCHER, SUPERVISOR = "launcher.py", "shared/launching/supervisor.py"
LOADING, SIZING = "gpu_worker/loading.py", "gpu_worker/sizing.py"
WORKER, SERVER, TOKENIZER = (
    "gpu_worker/worker.py",
    "frontend/server.py",
    "tokenizer_proc/loading.py",
)
APP, SERVICE = "frontend/app.py", "frontend/service.py"
CHOICE, PROFILING = "gpu_worker/attention/choice.py", "gpu_worker/profiling.py"
LINEARS = "gpu_worker/linears/choice.py"
STARTS = "e2e/test_starts.py"
COUNTS = "e2e/test_process_counts.py"
API_FLAGS = "e2e/test_api_flags.py"

ROWS = {
    # launcher
    "host": Row(
        "::1", (LAUNCHER,),
        "test_launcher.py::test_an_open_server_without_a_key_is_warned_of",
    ),
    "port": Row(
        "1", (LAUNCHER,),
        "e2e/test_chat.py::test_a_port_in_use_is_refused_before_anything_starts",
    ),
    "loglevel": Row("error", (LAUNCHER,), "test_launcher.py::test_a_log_level_hides_what_is_below"),
    "log_format": Row(
        "json", (LAUNCHER,), "test_launcher.py::test_logs_for_machines_are_an_object_a_line"
    ),
    "print_config": Row(
        "true", (LAUNCHER,), "test_launcher.py::test_the_configuration_is_printed_with_its_origins"
    ),
    "run_directory": Row(
        "/x", (LAUNCHER,),
        "shared/launching/test_run_directory.py::test_a_run_directory_is_private_and_held_by_one",
    ),
    "frontend_processes": Row("2", (SUPERVISOR,), f"{COUNTS}::test_a_signal_drains_all_frontends"),
    "detokenizer_processes": Row(
        "2", (SUPERVISOR,),
        f"{COUNTS}::test_many_answers_at_once_are_right_and_both_detokenizers_make_them",
    ),
    "tokenizer_processes": Row(
        "2", (SUPERVISOR,), f"{STARTS}::test_a_model_without_a_chat_template_starts_with_a_warning"
    ),
    "restart_limit": Row(
        "7", (SUPERVISOR,),
        "e2e/test_deaths.py::test_one_death_too_many_ends_the_service_and_everybody_is_told",
    ),
    "drain_timeout": Row(
        "7", (SUPERVISOR,), "e2e/test_drain.py::test_what_does_not_end_in_time_is_ended"
    ),
    "reasoning_field": Row(
        "reasoning", ("frontend/service.py",), f"{API_FLAGS}::test_thoughts_are_where_the_flag_says"
    ),
    # model
    "hf_model": Row(
        "demo", (LOADING, TOKENIZER, "frontend/served_model.py"),
        "e2e/test_chat.py::test_models_are_listed_and_retrieved",
    ),
    "max_encoder_len": Row(
        "7", ("gpu_worker/slot_loading.py",), "gpu_worker/test_slot_loading.py::test_lengths"
    ),
    "max_model_len": Row("7", (SIZING,), "gpu_worker/test_loading.py::test_a_directory_is_loaded"),
    "trust_remote_code": Row(
        "true", (LOADING, TOKENIZER),
        "gpu_worker/test_model_choice.py::test_code_of_the_checkpoint_runs_only_where_it_is_trusted",
    ),
    # frontend
    "api_key": Row(
        "k", (APP,), "frontend/test_keys_over_http.py::test_everything_else_does",
        read_as="api_keys",
    ),
    "served_model_name": Row(
        "a,b", ("frontend/served_model.py",),
        "frontend/test_paths_over_http.py::"
        "test_the_first_name_given_is_the_id_and_the_others_are_aliases",
        read_as="model_aliases",
    ),
    "accept_any_model": Row(
        "true", ("frontend/served_model.py",),
        "frontend/test_paths_over_http.py::test_any_name_where_the_flag_says_so",
    ),
    "cors_origins": Row(
        "*", (APP,),
        "frontend/test_cors_over_http.py::test_any_page_may_call_where_all_are_allowed",
    ),
    "public_metrics": Row(
        "true", (APP,), "frontend/test_keys_over_http.py::test_metrics_may_be_public"
    ),
    "max_audio_seconds": Row(
        "7", ("tokenizer_proc/loading.py",),
        "e2e/test_transcriptions.py::test_what_cannot_be_heard_is_refused"
    ),
    "max_concurrent": Row(
        "7", (SERVER, LOADED), "frontend/test_service_over_http.py::test_too_many"
    ),
    "max_queue": Row(
        "7", (SERVER,),
        "frontend/test_queue_over_http.py::test_a_full_queue_refuses_before_the_body_is_read",
    ),
    "queue_timeout": Row(
        "7", (SERVER,),
        "frontend/test_queue_over_http.py::test_a_place_that_is_not_reached_in_time",
    ),
    "strict_max_tokens": Row(
        "true", (SERVICE,),
        "frontend/test_paths_over_http.py::test_the_flags_of_translation_are_obeyed",
    ),
    "default_completion_max_tokens": Row(
        "7", (SERVICE,),
        "frontend/test_paths_over_http.py::test_the_flags_of_translation_are_obeyed",
    ),
    "max_n": Row(
        "7", (SERVICE,),
        "e2e/test_choices.py::test_more_answers_than_the_server_makes_are_a_400",
    ),
    "request_timeout": Row(
        "7", (SERVER,),
        "frontend/test_engine_client.py::test_the_sweep_ends_what_is_late_also_while_it_waits",
    ),
    "first_token_timeout": Row(
        "7", (SERVER,), "frontend/test_lives.py::test_a_first_token_that_takes_too_long"
    ),
    "upload_timeout": Row(
        "7", (SERVER,), "frontend/test_connection.py::test_a_body_that_does_not_come"
    ),
    "write_timeout": Row(
        "7", ("frontend/routes.py",),
        "frontend/test_chat_over_http.py::test_a_client_that_reads_nothing_is_let_go",
    ),
    "stall_timeout": Row(
        "7", (SERVER, SUPERVISOR),
        "frontend/test_engine_client.py::test_a_worker_that_makes_no_steps_is_stalled",
    ),
    # tokenizer
    "tokenizer_type": Row(
        "LlamaTokenizer", (TOKENIZER,),
        "tokenizer_proc/test_loading.py::test_the_tokenizer_is_of_the_class_that_was_asked_for",
    ),
    "processor_type": Row(
        "LlamaTokenizer", (TOKENIZER,),
        "tokenizer_proc/test_loading.py::test_the_tokenizer_is_of_the_class_that_was_asked_for",
    ),
    "tokenizer_use_fast": Row(
        "false", (TOKENIZER,),
        "tokenizer_proc/test_loading.py::test_a_slow_tokenizer_costs_one_line_of_log",
    ),
    "chat_template": Row(
        "x.jinja", (TOKENIZER,),
        "tokenizer_proc/test_loading.py::test_a_template_of_ones_own_renders_the_prompts",
    ),
    # worker
    "model_type": Row(
        "LlamaForCausalLM", (LOADING,),
        "gpu_worker/test_model_choice.py::test_the_model_is_of_the_class_that_was_asked_for",
    ),
    "architecture_type": Row(
        "decoder", (LOADING,),
        "gpu_worker/test_model_choice.py::test_a_flag_that_contradicts_the_checkpoint_is_refused",
    ),
    "serving_type": Row(
        "chat", (LOADING,),
        "gpu_worker/test_model_choice.py::test_a_flag_that_contradicts_the_checkpoint_is_refused",
    ),
    "allow_pickle_weights": Row(
        "true", (LOADING,),
        "gpu_worker/test_checkpoint.py::test_pickled_weights_are_loaded_where_that_is_allowed",
    ),
    "generation_config": Row("none", (WORKER,), f"{API_FLAGS}::test_the_models_own_sampling"),
    "override_generation_config": Row(
        '{"top_k": 7}', (WORKER,), f"{API_FLAGS}::test_the_flags_come_before_the_models_makers"
    ),
    "torch_dtype": Row(
        "float16", (LOADING,), "gpu_worker/test_loading.py::test_the_dtype_is_what_was_asked"
    ),
    "accelerator_type": Row(
        "cpu", (LOADING,), "gpu_worker/test_loading.py::test_a_device_that_is_not_there_is_refused"
    ),
    "continuous_batching_batch_size": Row(
        "7", (LOADING, SIZING),
        "gpu_worker/test_sizing.py::test_no_more_is_taken_than_the_rows_can_use",
    ),
    "continuous_batching_microsleep": Row(
        "1", (WORKER,),
        "gpu_worker/test_worker_pace.py::test_companions_of_the_first_arrival_share_its_first_step",
    ),
    "max_num_batched_tokens": Row(
        "7", (LOADED, LOADING),
        "gpu_worker/test_worker.py::test_a_prompt_in_chunks_begins_its_text_with_its_first_token",
    ),
    "kv_cache_memory_fraction": Row(
        "0.7", (SIZING,), "gpu_worker/test_sizing.py::test_a_share_is_a_share_of_the_free_memory"
    ),
    "static_cache": Row(
        "true", (SIZING,),
        "gpu_worker/test_sizing.py::test_a_static_cache_is_exactly_the_batch_times_its_length",
    ),
    "static_cache_encoder_max_length": Row(
        "7", ("gpu_worker/slot_loading.py",), "gpu_worker/test_slot_loading.py::test_lengths"
    ),
    "static_cache_decoder_max_length": Row(
        "7", (SIZING,),
        "gpu_worker/test_sizing.py::test_a_static_cache_is_exactly_the_batch_times_its_length",
    ),
    "prefix_caching": Row(
        "false", (LOADED,),
        "scheduler/test_prefix_cache.py::test_nothing_is_kept_without_prefix_caching",
    ),
    "cuda_graphs": Row(
        "false", (LOADING,),
        "gpu_worker/test_cuda_graphs.py::test_a_model_answers_the_same_under_graphs_as_without",
    ),
    "overlap": Row(
        "on", (LOADING,),
        "gpu_worker/test_overlap.py::test_the_flag_says_whether_steps_are_launched_ahead",
    ),
    "cpu_kernels": Row(
        "false", (CHOICE, LINEARS),
        "gpu_worker/test_loading.py::test_without_the_kernels_plain_torch_is_taken",
    ),
    "cpu_kernels_directory": Row(
        "/x", (CHOICE, LINEARS),
        "gpu_worker/test_loading.py::test_cpu_kernels_are_loaded_from_where_the_setting_says",
    ),
    "cpu_threads": Row(
        "7", (LOADING,),
        "gpu_worker/test_loading.py::test_a_step_has_as_many_threads_as_were_asked_for",
    ),
    "hqq": Row(
        "true", (LINEARS,),
        "gpu_worker/test_loading.py::test_a_checkpoint_is_served_with_four_bit_weights",
    ),
    "quantization": Row(
        "int8", (LINEARS,),
        "gpu_worker/test_int8.py::test_no_layer_of_a_model_stays_dense",
    ),
    "torch_compile": Row(
        "true", (LOADING,),
        "gpu_worker/test_compiled.py::test_two_graphs_compute_every_step_as_stock_code_does",
    ),
    "torch_compile_mode": Row(
        "max-autotune", (LOADING,),
        "gpu_worker/test_compiled.py::test_a_mode_is_torchs_own_but_for_graphs",
    ),
    "torch_profiling": Row(
        "true", (PROFILING,),
        "e2e/test_profiling.py::test_a_server_that_ends_reports_what_it_has_recorded",
    ),
    "torch_profiling_steps": Row(
        "7", (PROFILING,),
        "gpu_worker/test_profiling.py::test_only_so_many_steps_are_recorded_and_reported_at_once",
    ),
    "torch_profiling_directory": Row(
        "/x", (PROFILING,),
        "gpu_worker/test_profiling.py::test_every_step_is_in_the_trace_under_its_kind",
    ),
}  # fmt: skip

# `config` is the file that is read before there is a configuration.
READ_WHILE_PARSING = {"config": "shared/launching/test_config_file.py"}

FIELDS = {field.name: field for field in flags.flag_fields()}
MODEL_FLAGS = {field.name for field in dataclasses.fields(ModelConfig)}
VALUES = {name: row.value for name, row in ROWS.items()}


def settings_with(name: str, value: str) -> ServerConfig:
    """The configuration of a start with this flag."""
    return flags.read([f"{flags.names_of(FIELDS[name])[0]}={value}"], {}).config


def rooms_with(name: str) -> list[str]:
    """The rooms whose configuration has the flag; of a model's flag all that have a model."""
    return [
        room.name
        for room in dataclasses.fields(ServerConfig)
        for field in dataclasses.fields(type(getattr(ServerConfig(), room.name)))
        if field.name == ("model" if name in MODEL_FLAGS else name)
    ]


@cache
def names_read_from_configuration(file: str) -> frozenset[str]:
    """Attributes of what is called a configuration, such as `config.model.path`, in one file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    owner = re.compile(
        r"(self\._|settings\.)?config(\.(launcher|frontend|tokenizer|worker|model))?"
    )
    return frozenset(node.attr for node in attributes if owner.fullmatch(ast.unparse(node.value)))


@cache
def functions_of(file: str) -> frozenset[str]:
    """The names of a test file's functions."""
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def test_every_flag_is_in_one_table() -> None:
    names = [*ROWS, *READ_WHILE_PARSING]
    assert sorted(names) == sorted(FIELDS)


@pytest.mark.parametrize("name", ROWS)
def test_somebody_reads_the_flag(name: str) -> None:
    row = ROWS[name]
    for file in row.read_in:
        assert (row.read_as or name) in names_read_from_configuration(file), file


@pytest.mark.parametrize("name", ROWS)
def test_it_is_read_in_every_room_that_is_told_it(name: str) -> None:
    # Which rooms need a flag of the model depends on the flag; the worker needs each.
    rooms = ["worker"] if name in MODEL_FLAGS else rooms_with(name)
    for room in rooms:
        assert any(file.startswith(FOLDERS[room]) for file in ROWS[name].read_in), room


@pytest.mark.parametrize("name", ROWS)
def test_a_test_sees_the_flag(name: str) -> None:
    file, _, function = ROWS[name].seen_by.partition("::")
    assert function in functions_of(file), ROWS[name].seen_by


@pytest.mark.parametrize("name", VALUES)
def test_it_reaches_the_configuration_of_its_rooms(name: str) -> None:
    default, given = ServerConfig(), settings_with(name, VALUES[name])
    rooms = rooms_with(name)
    assert rooms
    for room in rooms:
        assert getattr(given, room) != getattr(default, room), room
    read_as = ROWS[name].read_as if name in ROWS else ""
    if read_as:
        assert getattr(given.frontend, read_as) != getattr(default.frontend, read_as)


@pytest.mark.parametrize("name", VALUES)
def test_its_variables_do_the_same(name: str) -> None:
    given = settings_with(name, VALUES[name])
    for variable in flags.variables(FIELDS[name]):
        assert flags.read([], {variable: VALUES[name]}).config == given, variable
