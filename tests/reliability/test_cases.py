"""Every case of the fault plan has a test that exists; and no deadline hangs on the wall clock."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = "reliability"
# The cases are numbered as in the plan that this suite was written from: B sounds, C processes, D
# connections and streams, E queue and cache, F start, stop and environment.
CASES: dict[str, tuple[str, ...]] = {
    "B01 what is no sound": (f"{HERE}/test_sounds.py::test_what_is_no_sound_is_refused",),
    "B02 headers that lie": (f"{HERE}/test_sounds.py::test_headers_that_lie_cost_nothing",),
    "B03 hours in a small file": (
        f"{HERE}/test_sounds.py::test_hours_in_a_small_file_are_refused_at_the_limit",
        "tokenizer_proc/test_decoding.py::test_three_hours_pass_through_little_memory",
    ),
    "B04 odd forms": (f"{HERE}/test_sounds.py::test_forms_that_are_none_are_refused",),
    "B05 playlists": (
        f"{HERE}/test_sounds.py::test_nothing_is_opened_that_a_file_names",
        "tokenizer_proc/test_decoding.py::test_limits_are_the_kernels",
    ),
    "B06 uploads at their limit, and slow ones": (
        f"{HERE}/test_sounds.py::test_uploads_up_to_their_limit",
        f"{HERE}/test_sounds.py::test_an_upload_that_drips_is_ended",
    ),
    "B07 silence, the very limit, odd fields": (
        f"{HERE}/test_sounds.py::test_odd_sounds_and_fields_end",
        f"{HERE}/test_sounds.py::test_the_very_limit",
    ),
    "B08 a decoder crashes": (
        f"{HERE}/test_sounds.py::test_a_decoder_that_crashes_fails_its_own_request_alone",
        "tokenizer_proc/test_decoding.py::test_the_worst_that_a_file_can_do_is_a_refusal",
        "tokenizer_proc/test_decoding.py::test_one_that_hangs_is_ended",
    ),
    "C01 worker killed under load": (
        f"{HERE}/test_processes.py::test_a_killed_room_is_replaced_and_harms_only_what_was_in_it",
        f"{HERE}/test_many_deaths.py::test_many_deaths_in_a_row",
        f"{HERE}/test_lives.py::test_a_real_model_comes_back_and_answers_the_same",
    ),
    "C02 worker crashes in prefill, decode, loading": (
        f"{HERE}/test_processes.py::test_a_request_that_ends_a_process_is_told_and_the_process_replaced",
        f"{HERE}/test_lives.py::test_each_way_to_fail_at_the_start_is_found_and_named",
    ),
    "C03 tokenizer killed": (
        f"{HERE}/test_processes.py::test_a_killed_room_is_replaced_and_harms_only_what_was_in_it",
        f"{HERE}/test_many_deaths.py::test_many_deaths_in_a_row",
    ),
    "C04 detokenizer killed in a stream": (
        f"{HERE}/test_processes.py::test_a_killed_room_is_replaced_and_harms_only_what_was_in_it",
    ),
    "C05 frontend killed": (
        f"{HERE}/test_processes.py::test_a_killed_room_is_replaced_and_harms_only_what_was_in_it",
    ),
    "C06 launcher killed": (
        f"{HERE}/test_ends.py::test_the_rooms_die_with_the_launcher_and_the_next_start_works",
        "shared/test_process.py::test_a_room_dies_with_its_launcher",
    ),
    "C07 rooms stopped, shortly and for long": (
        f"{HERE}/test_processes.py::test_rooms_that_stand_still_for_a_moment_lose_nothing",
        f"{HERE}/test_processes.py::test_a_room_that_stands_still_is_found_and_replaced",
    ),
    "C08 endless loop in a step": (
        f"{HERE}/test_processes.py::test_a_request_that_ends_a_process_is_told_and_the_process_replaced",
    ),
    "C09 a step raises once, for one, always": (
        f"{HERE}/test_requests.py::test_a_step_that_fails_once_is_computed_again_and_nobody_notices",
        f"{HERE}/test_requests.py::test_a_planted_fault_fails_its_own_request_alone",
        "gpu_worker/test_recovery.py::test_a_model_that_always_raises_fails_everybody_and_goes_on",
    ),
    "C10 out of memory in prefill, in decode": (
        f"{HERE}/test_requests.py::test_a_planted_fault_fails_its_own_request_alone",
        f"{HERE}/test_requests.py::test_a_step_that_fails_once_is_computed_again_and_nobody_notices",
        "gpu_worker/test_recovery.py::test_a_single_long_prompt_is_cut_into_pieces_that_fit",
    ),
    "C11 GPU lost": (
        f"{HERE}/test_processes.py::test_a_request_that_ends_a_process_is_told_and_the_process_replaced",
        "gpu_worker/test_recovery.py::test_a_lost_gpu_ends_the_process",
    ),
    "C12 poison from a client that tries again": (
        f"{HERE}/test_processes.py::test_a_request_that_kills_is_refused_after_two_deaths",
    ),
    "C13 tokenizer without memory": (
        f"{HERE}/test_lives.py::test_a_tokenizer_without_memory_fails_or_dies_alone",
    ),
    "C14 exits 0, exits in loading, never says hello": (
        f"{HERE}/test_lives.py::test_each_way_to_fail_at_the_start_is_found_and_named",
        f"{HERE}/test_processes.py::test_a_request_that_ends_a_process_is_told_and_the_process_replaced",
    ),
    "C15 one death too many": (
        "e2e/test_deaths.py::test_one_death_too_many_ends_the_service_and_everybody_is_told",
        "shared/launching/test_death_count.py::test_deaths_are_mended_up_to_the_limit",
    ),
    "C16 zombies": (f"{HERE}/test_many_deaths.py::test_two_hundred_short_lives_leave_no_zombie",),
    "D01 disconnects at every point": (
        f"{HERE}/test_requests.py::test_a_client_that_leaves_frees_what_it_had_and_is_counted_once",
        f"{HERE}/test_requests.py::test_a_queue_whose_clients_leave_is_empty_at_once",
    ),
    "D02 a thousand disconnects": (
        "e2e/test_concurrency.py::test_clients_that_leave_take_their_blocks_with_them",
    ),
    "D03 half-close": (
        f"{HERE}/test_requests.py::test_a_client_that_closes_its_sending_side_has_left",
    ),
    "D04 slow reader": (
        "frontend/test_chat_over_http.py::test_a_client_that_reads_nothing_is_let_go",
        "frontend/test_chat_over_http.py::test_leaving_while_a_write_is_stuck_aborts",
    ),
    "D09 error within a stream that wants its usage": (
        f"{HERE}/test_requests.py::test_a_planted_fault_fails_its_own_request_alone",
        "frontend/test_chat_over_http.py::test_a_failure_inside_a_stream",
    ),
    "D12 connection used again": (
        f"{HERE}/test_requests.py::test_a_connection_is_right_after_an_error",
        "frontend/test_lingering.py::test_a_connection_that_stays_open_serves_on_after_an_early_answer",
        "frontend/test_connection.py::test_leaving_with_another_request_behind_a_stream_is_no_error",
    ),
    "E02 a queue whose clients leave": (
        f"{HERE}/test_requests.py::test_a_queue_whose_clients_leave_is_empty_at_once",
    ),
    "E03 deadlines": (
        "frontend/test_admission.py::test_a_place_that_is_not_reached_in_time_is_an_error_that_says_when_to_return",
        "frontend/test_ledger.py::test_deadline",
        "frontend/test_engine_client.py::test_the_sweep_ends_what_is_late_also_while_it_waits",
    ),
    "E04 a small pool": (
        "scheduler/test_scheduler_machine.py::test_every_life_of_the_scheduler_balances_its_books",
        "scheduler/test_preemption.py::test_requests_that_each_fill_the_whole_pool_are_served_one_after_the_other",
    ),
    "E05 what can never fit": (
        "scheduler/test_scheduler.py::test_what_can_never_fit_is_refused",
        "e2e/test_chat.py::test_prompt_longer_than_the_context_is_a_400_also_when_streaming",
    ),
    "E06 preemption changes no answer": (
        "benchmarks/test_formula.py::test_company_chunks_and_preemption_change_no_answer",
        "scheduler/test_preemption.py::test_what_was_said_before_counts_as_output_after",
    ),
    "E07 aborts during preemption, prefill, restart": (
        "scheduler/test_preemption.py::test_an_abort_of_a_reserved_or_preempted_one_gives_everything_back",
        "scheduler/test_scheduler.py::test_a_cut_prompt_aborted_during_the_step_takes_no_token_from_others",
        f"{HERE}/test_processes.py::test_clients_that_leave_during_a_restart_leave_nothing",
    ),
    "E10 a stuck tokenizer": (
        f"{HERE}/test_backpressure.py::test_a_stuck_tokenizer_holds_no_more_than_its_credit",
    ),
    "E11 a stopped worker at a hundred requests a second": (
        f"{HERE}/test_backpressure.py::test_a_worker_that_stands_still_fills_the_queue_and_no_memory",
    ),
    "E12 garbage on the sockets": (
        f"{HERE}/test_frames.py::test_frames_that_are_not_for_it_change_nothing_in_a_room",
        "shared/test_mailbox.py::test_garbage_on_the_socket_neither_gets_through_nor_harms",
    ),
    "F01 signals": (
        "shared/test_process.py::test_only_the_launchers_stop_ends_a_room",
        f"{HERE}/test_ends.py::test_a_signal_lets_every_stream_end",
        "e2e/test_drain.py::test_a_second_signal_ends_everything_at_once",
        "e2e/test_drain.py::test_what_does_not_end_in_time_is_ended",
        f"{HERE}/test_ends.py::test_who_does_not_read_holds_a_drain_to_its_deadline_only",
        f"{HERE}/test_ends.py::test_a_start_that_is_told_to_end_ends_at_once",
    ),
    "F02 many restarts": (f"{HERE}/test_ends.py::test_a_signal_lets_every_stream_end",),
    "F03 starts that cannot work": (
        "e2e/test_chat.py::test_a_port_in_use_is_refused_before_anything_starts",
        "e2e/test_chat.py::test_a_bad_start_says_what_is_wrong_in_one_line",
        f"{HERE}/test_ends.py::test_a_second_server_leaves_the_first_alone",
    ),
    "F06 without a network": (
        "e2e/test_deaths.py::test_starts_answers_and_ends_without_any_network",
    ),
    "F08 the wall clock": (f"{HERE}/test_cases.py::test_no_deadline_hangs_on_the_wall_clock",),
    "F09 systemd": (
        "shared/launching/test_service_manager.py::test_the_watchdog_is_fed_three_times_in_its_time",
        "shared/launching/test_service_manager.py::test_nobody_listens",
        f"{HERE}/test_lives.py::test_the_service_manager_hears_when_it_is_ready_alive_and_ending",
    ),
    "F10 two servers": (f"{HERE}/test_ends.py::test_a_second_server_leaves_the_first_alone",),
    "F11 what violence leaves behind": (
        f"{HERE}/test_ends.py::test_the_rooms_die_with_the_launcher_and_the_next_start_works",
    ),
    "F14 the unit": ("test_deploy.py::test_systemd_understands_the_unit",),
}
ASKED = [
    *(f"B{number:02}" for number in range(1, 9)),
    *(f"C{number:02}" for number in range(1, 17)),
    *("D01", "D02", "D03", "D04", "D09", "D12"),
    *("E02", "E03", "E04", "E05", "E06", "E07", "E10", "E11", "E12"),
    *("F01", "F02", "F03", "F06", "F08", "F09", "F10", "F11", "F14"),
]

# Where the time of day is said, or compared with a file's, and nothing waits for it.
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now"}
SAYS_THE_TIME = {
    "frontend/delivery.py",
    "gpu_worker/linears/cache_space.py",
    "shared/launching/supervisor.py",
}


@cache
def functions_of(file: str) -> frozenset[str]:
    """The names of a test file's functions."""
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def test_every_case_is_in_the_table() -> None:
    assert [name.split()[0] for name in CASES] == ASKED


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_its_tests(case: str) -> None:
    for name in CASES[case]:
        file, _, function = name.partition("::")
        assert function in functions_of(file), name


def test_no_deadline_hangs_on_the_wall_clock() -> None:
    rooms = ("frontend", "tokenizer_proc", "gpu_worker", "scheduler", "shared")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    reading = set()
    for path in [ROOT / "launcher.py", *files]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in WALL_CLOCKS:
                reading.add(str(path.relative_to(ROOT)))
    assert reading == SAYS_THE_TIME
