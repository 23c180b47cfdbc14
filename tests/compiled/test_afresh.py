"""Compiling once more beside the code that is there: that stays, and nothing of the other does."""

from types import FunctionType

import pytest
import torch
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list as entries

from gpuprof.compiled.afresh import compiled_afresh


class Backend:
    """Runs graphs as they are, and notes how many it was given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs, **_):
        self.graphs += 1
        return graph.forward


def again(backend):
    return lambda graph, inputs, **rest: backend(graph, inputs, **rest)


def sine(x, times):
    return x.sin() * times


@pytest.fixture
def compiled():
    function = FunctionType(sine.__code__.replace(), globals())  # code that nothing was compiled of
    backend = Backend()
    return torch.compile(function, backend=backend, dynamic=False), function.__code__, backend


X = torch.ones(3)


def test_code_that_is_there_stays_and_is_not_called(compiled):
    function, code, backend = compiled
    function(X, 2)
    with compiled_afresh(again):
        assert function(X, 2).equal(X.sin() * 2)
        function(X, 2)
    assert backend.graphs == 2
    function(X, 2)
    assert backend.graphs == 2
    assert [entry.backend.compiler_fn for entry in entries(code) if entry.backend is not None] == [backend]


def test_what_is_dropped_counts_in_no_limit(compiled):
    function, _, backend = compiled
    function(X, 0)
    for _ in range(20):
        with compiled_afresh(again):
            function(X, 0)
    before = backend.graphs
    for times in range(1, torch._dynamo.config.recompile_limit):
        function(X, times)
    assert backend.graphs == before + torch._dynamo.config.recompile_limit - 1  # none is refused


def test_limits_that_are_reached_do_not_hinder(compiled):
    function, _, backend = compiled
    for times in range(torch._dynamo.config.recompile_limit):
        function(X, times)
    before = backend.graphs
    with compiled_afresh(again):
        function(X, 0)
    assert backend.graphs == before + 1


def test_where_nothing_was_nothing_is_left(compiled):
    function, code, _ = compiled
    limits = torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit
    callback, names = torch._dynamo.eval_frame._callback_from_stance, {*globals()}
    with pytest.raises(AttributeError), compiled_afresh(again):
        function(X, 2).nothing()
    assert entries(code) == []
    assert (torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit) == limits
    assert torch._dynamo.eval_frame._callback_from_stance is callback
    assert {*globals()} <= names


def test_equal_backends_have_one_that_is_theirs():
    class Equal(Backend):
        def __eq__(self, other):
            return isinstance(other, Equal)

        __hash__ = None

    def function(x):
        return x + 1

    made = []

    def backend_for(backend):
        made.append(backend)
        return again(backend)

    first, second = torch.compile(function, backend=Equal()), torch.compile(function, backend=Equal())
    with compiled_afresh(backend_for):
        first(X)
        second(X)
    assert [backend.compiler_fn.graphs for backend in made] == [1]


def test_a_backend_may_be_left_alone_and_each_frame_is_told(compiled):
    function, code, backend = compiled
    function(X, 2)
    frames = []
    with compiled_afresh(lambda _: None, frames.append):
        function(X, 2)
        function(X, 3)
    assert backend.graphs == 2
    assert frames == []
    with compiled_afresh(again, lambda frame: frames.append((frame.f_code, frame.f_locals["times"]))):
        function(X, 3)
    assert frames == [(code, 3)]


def test_nothing_that_is_not_compiled_is_touched(compiled):
    function, _, backend = compiled
    with torch.compiler.set_stance("force_eager"), compiled_afresh(again):
        function(X, 2)
    assert backend.graphs == 0
