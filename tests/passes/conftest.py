import pytest
from as_before import as_before

from gpuprof import profiler


@pytest.fixture(autouse=True)
def all_is_as_before():
    """Whatever a test of the passes profiles is as before afterwards, and so is the process."""
    run_passes = profiler.run_passes

    def checked(workload, **options):
        mine = None if workload.owned else workload.model  # nobody minds what becomes of a model made for the run
        with as_before(mine, None if workload.owned else workload.optimizer):
            return run_passes(workload, **options)

    with pytest.MonkeyPatch.context() as patch, as_before(drawn=False):
        patch.setattr(profiler, "run_passes", checked)
        yield
