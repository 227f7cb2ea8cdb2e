"""The jobs of the harness's own tests, among those a loading process can be asked to do."""

from __future__ import annotations

from harness.load.child import JOBS

_NAMES = {
    "idle_jobs": (
        "count", "echo", "pid", "leave_a_temporary_file", "fail", "crash", "end_in_a_phase", "hang",
        "hang_with_a_child", "hang_deaf", "environment", "kill_itself", "say_and_hang",
        "say_and_hang_deaf",
        "say_and_hang_with_a_daemon", "is_asserting", "limit_of_files", "fill_the_disk",
        "print_without_end",
    ),
    "jobs": (
        "plant", "verify_with_fault", "count_devices", "backends_alive", "written_by_an_import",
        "load_eight_with_five_alive", "record_a_module", "record_copies",
    ),
    "parameter_jobs": ("plant",),
    "digest_jobs": ("verify_by_digests", "verify_twice_by_digests"),
    "copy_faults": ("verify_with_fault",),
    "hooks": ("strict", "lenient"),
    "slice_jobs": ("verify_with_fault_on_host_1",),
    "engine_jobs": ("ask_an_engine",),
    "ray_jobs": ("verify_with_fault",),
    "own_faults": ("verify_with_own_fault",),
}  # fmt: skip

for _module, _names in _NAMES.items():
    JOBS.update(
        {f"tests.support.{_module}:{name}": f"tests.support.{_module}:{name}" for name in _names}
    )
