"""The loops that people have: each with the figures that it should have."""

import gc
import threading

import pytest
import torch
from loops import IN, OUT, WIDE, flops, metered, net, sgd, train
from torch import nn

import gpuprof
from gpuprof.meter.meter import Meter


def samples_of(meter):
    meter._settle()
    return list(meter._samples)


def step_of(model, optimizer, batch):
    model(batch).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_loop_whose_batches_are_tuples(ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(24, IN), torch.randn(24, OUT)), batch_size=4
    )
    for x, y in loader:
        with meter.step((x, y)):
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    figures = meter.read()

    assert meter.signatures[0].words == f"0 4x{IN}, 1 4x{OUT}"
    assert figures["meter/flops_per_step"] == flops(4)
    assert figures["samples_per_sec"] == 4
    assert "tokens_per_sec" not in figures


def test_a_read_before_the_first_step_says_that_there_was_none(ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    before = meter.read()
    train(meter, model, optimizer, 6)

    assert before == {"meter/counted_signatures": 0, "meter/dropped_steps": 0, "meter/step": 0}
    assert meter.read()["meter/flops_per_step"] == flops(4)


def test_a_loop_whose_optimizer_steps_outside_is_told(ticks, monkeypatch, recwarn):
    monkeypatch.setattr("gpuprof.meter.meter._MOST_PARTS", 5)
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    for _ in range(6):
        x = torch.randn(4, IN)
        with meter.step(x):
            model(x).sum().backward()
        optimizer.step()

    assert meter.number == 0
    assert len(meter._parts) == 1
    assert [str(one.message) for one in recwarn] == [
        "gpuprof: the optimizer steps outside of the meter's step, which so never ends: put it inside",
        "gpuprof: 5 micro-batches and no step of the optimizer that the meter was given, by which a step ends: is it "
        "the one that trains, and does it step inside of the meter's step?",
    ]


def test_without_an_optimizer_every_block_is_a_step(ticks):
    model = net()
    meter = metered(model)
    train(meter, model, sgd(model), steps=5)

    assert meter.read()["meter/step"] == 5
    assert [one.words for one in meter.signatures] == [f"4x{IN}"]


def test_without_a_batch_all_are_alike(ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    for _ in range(5):
        with meter.step():
            step_of(model, optimizer, torch.ones(4, IN))
    figures = meter.read()

    assert figures["meter/flops_per_step"] == flops(4)
    assert "samples_per_sec" not in figures


def test_one_block_around_a_whole_accumulation(ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    for _ in range(5):
        batches = [torch.ones(4, IN) for _ in range(3)]
        with meter.step(batches):
            for batch in batches:
                model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    figures = meter.read()

    assert figures["meter/step"] == 5
    assert figures["meter/flops_per_step"] == 3 * flops(4)
    assert figures["mfu"] == pytest.approx(3 * flops(4) / 1e6)


def test_a_step_that_the_scaler_skips_goes_on_in_the_next(ticks):
    model = net()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    meter = metered(model, optimizer)
    for number in range(6):
        batch = torch.full((4, IN), torch.inf) if number == 4 else torch.ones(4, IN)
        with meter.step(batch):
            scaler.scale(model(batch).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    figures = meter.read()

    assert figures["meter/step"] == 5
    assert [len(one.signatures) for one in samples_of(meter)] == []  # which reading has taken
    assert figures["meter/flops_per_step"] == 2 * flops(4)
    assert figures["mfu"] == pytest.approx(flops(4) / 1e6)


def test_two_optimizers_of_a_gan(ticks):
    """The discriminator steps, then the generator: the first that is given ends the step."""
    torch.manual_seed(0)
    pair = nn.ModuleDict({"generator": nn.Linear(2, IN), "critic": nn.Linear(IN, 1)})
    of_generator, of_critic = sgd(pair["generator"]), sgd(pair["critic"])
    meter = metered(pair, [of_generator, of_critic])
    for _ in range(5):
        noise = torch.ones(4, 2)
        with meter.step({"noise": noise, "for": torch.ones(())}):
            pair["critic"](pair["generator"](noise).detach()).mean().backward()
            of_critic.step()
        with meter.step({"noise": noise}):
            pair["critic"](pair["generator"](noise)).mean().backward()
            of_generator.step()
    figures = meter.read()
    forward, critic = 2 * 4 * (2 * IN + IN), 2 * 4 * IN

    assert figures["meter/step"] == 5
    assert figures["meter/counted_signatures"] == 2
    # the critic's own gradient; then that, that of what it is given, and the generator's own
    assert figures["meter/flops_per_step"] == (forward + critic) + (forward + 2 * critic + 2 * 4 * 2 * IN)
    assert figures["device/step_s"] == 2


def test_an_optimizer_that_runs_the_forward_and_backward_itself(ticks):
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=3, tolerance_grad=0, tolerance_change=0)
    meter, calls = metered(model, optimizer), []
    batch = torch.ones(4, IN)

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        return loss

    for _ in range(5):
        with meter.step(batch):
            optimizer.step(closure)
    figures = meter.read()

    assert len(calls) == 15
    assert figures["meter/step"] == 5
    assert figures["meter/flops_per_step"] == 3 * flops(4)


def test_a_closure_in_the_last_of_several_micro_batches(ticks):
    """As Lightning has it: what the optimizer does is told from what its closure does."""
    model = nn.Sequential(nn.Linear(IN, WIDE, bias=False), nn.Linear(WIDE, OUT, bias=False))
    optimizer = torch.optim.Muon(model.parameters(), lr=1e-3)
    meter, batch = metered(model, optimizer), torch.ones(4, IN)

    def closure():
        loss = model(batch).square().mean()
        loss.backward()
        return loss

    for _ in range(5):
        with meter.step(batch):
            closure()
        with meter.step(batch):
            optimizer.step(closure)
            optimizer.zero_grad()
    figures = meter.read()
    low, high = min(IN, WIDE), max(IN, WIDE)
    muon = sum(5 * (4 * low * low * high + 2 * low**3) for low, high in ((low, high), (OUT, WIDE)))

    assert figures["meter/flops_per_step"] == 2 * flops(4)
    assert figures["hfu"] == pytest.approx((2 * flops(4) + muon) / 2 / 1e6)


def test_the_loop_may_be_left_inside_of_a_block(ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer, steps=1)
    for _ in range(1):
        with meter.step(torch.ones(4, IN)):  # would be counted, and is left in its middle
            loss = model(torch.ones(4, IN)).mean()
            break
    del loss
    assert meter.signatures[0].works == []
    train(meter, model, optimizer, steps=5)
    figures = meter.read()

    assert figures["meter/step"] == 6
    assert figures["meter/flops_per_step"] == flops(4)
    assert figures["meter/dropped_steps"] == 3


def test_a_training_without_a_backward_is_counted_in_the_end(ticks):
    model = net()
    meter = metered(model)
    for _ in range(6):
        with meter.step(torch.ones(4, IN)):
            model(torch.ones(4, IN))

    assert meter.read()["meter/flops_per_step"] == 2 * 4 * (IN * WIDE + WIDE * OUT)


def test_a_loop_in_a_generator(ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)

    def losses():
        for _ in range(5):
            batch = torch.ones(4, IN)
            with meter.step(batch):
                step_of(model, optimizer, batch)
                yield batch

    for _ in losses():
        torch.ones(2, 2) @ torch.ones(2, 2)  # while the block is open, though after the backward
    abandoned = losses()
    next(abandoned)
    del abandoned
    gc.collect()  # which ends its block by GeneratorExit

    assert meter._micro is None
    assert meter.read()["meter/flops_per_step"] == flops(4)
    assert not optimizer._optimizer_step_post_hooks


def test_another_loop_that_runs_meanwhile_is_no_part_of_a_count(ticks):
    begun, over = threading.Event(), threading.Event()

    class Slow(torch.optim.SGD):
        def step(self, closure=None):
            begun.set()
            over.wait()

    other = net()
    thread = threading.Thread(target=step_of, args=(other, Slow(other.parameters()), torch.ones(9, IN)))
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer)

    def in_the_middle(_):
        thread.start()
        begun.wait()

    with meter.step(torch.ones(4, IN)):  # is counted
        hidden = model[:2](torch.ones(4, IN))
        hidden.register_hook(in_the_middle)
        model[2](hidden).mean().backward()
        over.set()
        thread.join()
        optimizer.step()
    train(meter, model, optimizer, steps=2)

    assert meter.read()["meter/flops_per_step"] == flops(4)


def test_loops_in_threads_have_meters_of_their_own(ticks):
    found, together = {}, threading.Barrier(2)

    def loop(samples):
        model = net()
        optimizer = sgd(model)
        meter = metered(model, optimizer)
        for _ in range(8):
            together.wait()
            train(meter, model, optimizer, samples=samples)
        found[samples] = meter.read()["meter/flops_per_step"]

    before = torch.nn.Linear._call_impl, torch.autograd._engine_run_backward
    threads = [threading.Thread(target=loop, args=(samples,)) for samples in (3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {3: flops(3), 5: flops(5)}
    assert before == (torch.nn.Linear._call_impl, torch.autograd._engine_run_backward)


def test_a_block_in_a_block_is_said_and_breaks_nothing(ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer, steps=4)
    with pytest.warns(UserWarning, match="a micro-batch began before the last one had ended"), meter.step(1):
        train(meter, model, optimizer)
    train(meter, model, optimizer, steps=3)
    figures = meter.read()

    assert figures["meter/flops_per_step"] == flops(4)
    assert figures["meter/step"] == 8


def test_a_framework_says_where_a_step_ends():
    model = net()
    meter = metered(model, sgd(model))
    for number in range(8):
        meter.begin()
        meter.given(torch.ones(4, IN))
        model(torch.ones(4, IN)).mean().backward()
        meter.end(last=number % 2 == 1)  # although the optimizer steps nowhere

    assert meter.read()["meter/step"] == 4


def test_evaluation_and_saving_are_no_part_of_a_step(ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer, steps=10)
    before = meter.read()
    for step in range(10):
        train(meter, model, optimizer)
        if step % 5 == 0:
            model.eval()
            with torch.no_grad():
                model(torch.ones(100, IN))
            model.train()
            ticks.now += 1000
    after = meter.read()

    assert after == pytest.approx(before | {"meter/step": 20}, rel=1e-12)


def test_a_resumed_run_goes_on_with_its_number_and_warms_up(ticks):
    model = net()
    optimizer = sgd(model)
    meter = metered(model, optimizer)
    train(meter, model, optimizer, steps=7)
    resumed = metered(model, optimizer)
    resumed.load_state_dict(meter.state_dict())
    train(resumed, model, optimizer, steps=5)
    figures = resumed.read()

    assert figures["meter/step"] == 12
    assert figures["meter/dropped_steps"] == 3
    assert figures["mfu"] == meter.read()["mfu"]


def test_what_is_never_read_is_bounded(ticks, monkeypatch):
    monkeypatch.setattr("gpuprof.meter.meter._MOST_SAMPLES", 20)
    model = net()
    optimizer = sgd(model)
    meter: Meter = gpuprof.Meter(model, optimizer, peak_tflops=1.0)
    train(meter, model, optimizer, steps=150)

    assert len(meter._pending) <= 65
    assert len(meter._samples) == 20
    assert meter.read()["meter/step"] == 150
