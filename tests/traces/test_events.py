"""Events as columns: how they are told apart and ordered."""

from gpuprof.traces.events import KERNEL, OPERATOR, RANGE, WAIT, Event, Events, apart


def test_host_events_are_by_thread_and_start_and_a_range_before_what_is_inside_it():
    events = Events.of(
        [
            Event("late", OPERATOR, 1, 30, 40),
            Event("inner", OPERATOR, 1, 10, 15),
            Event("kernel", KERNEL, 7, 12, 13, linked=3),
            Event("outer", RANGE, 1, 10, 25),
            Event("wait", WAIT, 7, 11, 12),
            Event("between", RANGE, 1, 10, 20),
            Event("first", OPERATOR, 0, 50, 60),
            Event("inner", OPERATOR, 1, 10, 15, number=4),  # its twin, which came later
            Event("of another thread", OPERATOR, 0, 30, 99),
        ]
    )
    host, device = apart(events)
    assert [(event.name, event.number) for event in host] == [
        ("of another thread", -1), ("first", -1),
        ("outer", -1), ("between", -1), ("inner", -1), ("inner", 4), ("late", -1),
    ]  # fmt: skip
    assert [(event.name, event.linked) for event in device] == [("kernel", 3)]
    assert [len(part) for part in apart(Events.of([]))] == [0, 0]
