"Lesson 07a beyond what it shows: any architecture, what must not change, and layers that can't be helped."
import copy, math, warnings
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
import exp.nb_07a as nb
from exp.nb_07a import find_modules, get_batch, is_lin_layer, layer_stats, lsuv, lsuv_module, set_seed

ACTS = [nn.ReLU, nn.Tanh, nn.SiLU, nn.Sigmoid, lambda: nb.GeneralRelu(.1, .4, 3.)]

@pytest.fixture(autouse=True)
def warnings_are_errors():
    set_seed(0)
    with warnings.catch_warnings(action='error'): yield

def convs(act=nn.ReLU, depth=3, nf=6):
    layers = [l for i in range(depth) for l in (nn.Conv2d(nf if i else 1, nf, 3, padding=1), act())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(nf*4, 5))

def hooks(model): return sum(len(m._forward_hooks) for m in model.modules())

@settings(max_examples=25)
@given(act=st.sampled_from(ACTS), depth=st.integers(1, 6), nf=st.integers(2, 8), scale=st.sampled_from([1e-3, 1., 50.]), seed=st.integers(0, 1000))
def test_every_layer_is_within_tolerance_when_all_are_measured_together(act, depth, nf, scale, seed):
    set_seed(seed)
    model, xb = convs(act, depth, nf), torch.randn(32, 1, 6, 6)
    with torch.no_grad():
        for p in model.parameters(): p.mul_(scale)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')    # a narrow ReLU network can die on its way; then it has to say so
        result = lsuv(model, xb)
    stats = layer_stats(model, xb)
    good = ((stats['mean'].abs() <= .02) & ((stats['std'] - 1).abs() <= .02)).to_dict()
    assert list(stats.index) == list(result.index)
    assert all(good[name] for name, ok in result.ok.items() if ok)
    if act is not nn.ReLU: assert result.ok.all()

@pytest.mark.parametrize('which', [0, 1, -1])
def test_a_layer_whose_outputs_are_not_finite_is_named_and_nothing_changes(which):
    model = convs()
    layer = find_modules(model, is_lin_layer)[which]
    with torch.no_grad(): layer.weight.view(-1)[0] = math.nan
    before, name = copy.deepcopy(model.state_dict()), next(k for k, m in model.named_modules() if m is layer)
    with pytest.raises(ValueError, match=f'outputs of {name}.*nothing was changed'): lsuv(model, torch.randn(16, 1, 6, 6))
    assert all(torch.equal(v.nan_to_num(7), before[k].nan_to_num(7)) for k, v in model.state_dict().items())

def test_a_second_time_changes_nothing():
    set_seed(0)
    model, xb = convs(), torch.randn(32, 1, 6, 6)
    lsuv(model, xb)
    state = copy.deepcopy(model.state_dict())
    lsuv(model, xb)
    assert all((state[k] == v).all() for k, v in model.state_dict().items())

def test_parameters_stay_the_objects_that_an_optimizer_holds():
    model = convs()
    before = [(id(p), p.requires_grad) for p in model.parameters()]
    lsuv(model, torch.randn(32, 1, 6, 6))
    assert [(id(p), p.requires_grad) for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())

def test_modes_and_running_statistics_and_random_numbers_stay_as_they_were():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(.5), nn.Conv2d(4, 4, 3)).train()
    model[1].eval()
    modes, buffers = [m.training for m in model.modules()], copy.deepcopy(list(model.buffers()))
    xb = torch.randn(8, 1, 9, 9)
    state = torch.get_rng_state()
    assert lsuv(model, xb).ok.all()
    assert (torch.get_rng_state() == state).all()
    assert [m.training for m in model.modules()] == modes
    assert all((a == b).all() for a, b in zip(model.buffers(), buffers))
    assert hooks(model) == 0

class FailsLater(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.calls = nn.Linear(4, 4), nn.Linear(4, 4), 0
    def forward(self, x):
        self.calls += 1
        if self.calls > 3: raise KeyboardInterrupt
        return self.b(self.a(x))

def test_an_interrupt_leaves_no_hook_and_no_mode_behind():
    model = FailsLater().train()
    model.b.eval()
    with pytest.raises(KeyboardInterrupt): lsuv(model, torch.randn(8, 4))
    assert hooks(model) == 0 and model.training and model.a.training and not model.b.training
    assert torch.is_grad_enabled()

class Backwards(nn.Module):
    "Defines its layers in another order than it uses them in."
    def __init__(self):
        super().__init__()
        self.last, self.middle, self.first = nn.Linear(5, 3), nn.Linear(5, 5), nn.Linear(4, 5)
    def forward(self, x): return self.last(self.middle(self.first(x).tanh()).tanh())

def test_layers_are_taken_in_the_order_of_their_use():
    model = Backwards()
    result = lsuv(model, torch.randn(64, 4))
    assert list(result.index) == ['first', 'middle', 'last'] == list(layer_stats(model, torch.randn(64, 4)).index)
    assert result.ok.all()

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 6)
    def forward(self, x): return self.l(self.l(x).relu())

def test_a_layer_used_twice_is_measured_over_both_uses():
    set_seed(0)
    model, xb = Twice(), torch.randn(64, 6)
    result = lsuv(model, xb, max_iter=100)
    first = model.l(xb)
    both = torch.cat([first, model.l(first.relu())]).detach()
    assert result['mean'].item() == pytest.approx(both.mean().item(), abs=1e-5)
    assert result['std'].item() == pytest.approx(both.std(correction=0).item(), abs=1e-5)
    assert result.ok.all()

def says(match): return pytest.warns(UserWarning, match=match)

def test_a_dead_layer_is_named():
    model = convs()
    nn.init.zeros_(model[2].weight)
    with says('2 gives the same for every item'): result = lsuv(model, torch.randn(32, 1, 6, 6))
    assert not result.ok['2'] and result.ok['0']

def test_a_batch_of_equal_images_is_named_for_every_layer():
    with says('every item'): result = lsuv(convs(), torch.ones(4, 1, 6, 6))
    assert not result.ok.any()

def test_a_single_image_is_enough_to_scale_with():
    assert lsuv(convs(), torch.randn(1, 1, 6, 6)).ok.iloc[:3].all()

def test_a_layer_without_bias_is_scaled_and_named():
    model, xb = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 30, bias=False)), torch.randn(64, 4)
    nn.init.uniform_(model[2].weight, .1, 1)    # after a ReLU its mean is above zero
    with says('2 has no bias'): result = lsuv(model, xb)
    assert abs(result['std']['2'] - 1) <= .02

def test_an_unused_layer_is_named_and_left_alone():
    class OneOf(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)
        def forward(self, x): return self.used(x)
    model = OneOf()
    before = model.spare.weight.clone()
    with says('spare is not used'): result = lsuv(model, torch.randn(16, 4))
    assert list(result.index) == ['used'] and (model.spare.weight == before).all()

def test_corrections_that_do_not_work_come_to_an_end_and_are_named():
    class Stubborn(nn.Linear):
        def forward(self, x): return nn.functional.linear(x, self.weight/self.weight.norm())
    model, xb = Stubborn(4, 6), torch.randn(64, 4)*7
    with says('stays at'): result = lsuv(model, xb, max_iter=3)
    assert not result.ok.any()
    assert lsuv_module(Stubborn(4, 6), xb, max_iter=2)[1] != pytest.approx(1, abs=.02)

@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_an_error_before_weights_are_spoilt(bad):
    model = convs()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='not finite'): lsuv(model, torch.full((2, 1, 6, 6), bad))
    assert all((state[k] == v).all() for k, v in model.state_dict().items())

def test_modules_without_weight_and_bias_are_refused_by_name():
    with pytest.raises(TypeError, match='ReLU lacks'): lsuv(convs(), torch.randn(2, 1, 6, 6), lambda m: isinstance(m, nn.ReLU))
    with pytest.raises(TypeError, match='gives a tuple'): layer_stats(nn.LSTM(3, 3), torch.randn(2, 4, 3), lambda m: True)

def test_no_layer_at_all_is_an_error():
    with pytest.raises(ValueError, match='no layer that fits'): lsuv(nn.Sequential(nn.ReLU()), torch.randn(2, 3))

def test_lsuv_module_needs_no_global_model():
    layer = nn.Linear(4, 8)
    mean, std = lsuv_module(layer, torch.randn(64, 4))
    assert abs(mean) < 1e-3 and abs(std - 1) < 1e-3
    with pytest.raises(ValueError, match='no use of this Linear'): lsuv_module(nn.Linear(4, 8), torch.randn(64, 4), layer)

def test_double_precision():
    assert lsuv(convs().double(), torch.randn(16, 1, 6, 6, dtype=torch.float64)).ok.all()

# --- find_modules, get_batch ---

def test_find_modules_goes_down_until_something_fits():
    inner = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU()))
    model = nn.ModuleList([inner, nn.ConvTranspose2d(1, 1, 1), nn.Linear(1, 1)])
    assert [type(m).__name__ for m in find_modules(model, is_lin_layer)] == ['Linear', 'Conv1d', 'ConvTranspose2d', 'Linear']
    assert find_modules(model, lambda m: isinstance(m, nn.Sequential)) == [inner]
    assert find_modules(inner[0], is_lin_layer) == [inner[0]]
    assert find_modules(model, lambda m: False) == []

def loader(n=10): return [(torch.arange(n*4.).view(n, 4), torch.zeros(n, dtype=torch.long))]

class Doubles(nb.Callback):
    def begin_batch(self): self.run.xb, self.run.extra = self.run.xb*2, 'left behind'

class Fails(nb.Callback):
    def begin_batch(self): raise OSError('no such batch')

def a_run(*cbs):
    data = nb.DataBunch(loader(), loader(), 2)
    return nb.get_runner(nn.Linear(4, 2), data, cbs=list(cbs))

@pytest.mark.parametrize('after_a_fit', [False, True])
def test_get_batch_goes_through_the_callbacks_and_leaves_the_run_as_it_was(after_a_fit):
    learn, run = a_run(nb.CudaCallback('cpu'), Doubles(), nb.ParamScheduler('lr', nb.sched_no(.1, .1)), nb.AvgStatsCallback())
    run.logger = lambda line: None
    if after_a_fit: run.fit(1, learn)
    run.__dict__.pop('extra', None)
    before = dict(vars(run))
    xb, yb = get_batch(loader(), run)
    assert (xb == loader()[0][0]*2).all() and yb.shape == (10,)
    assert vars(run) == before

def test_get_batch_leaves_the_run_as_it_was_after_an_error_too():
    learn, run = a_run(Doubles(), Fails())
    before = dict(vars(run))
    with pytest.raises(OSError): get_batch(loader(), run)
    with pytest.raises(ValueError, match='no batch'): get_batch([], run)
    assert vars(run) == before

def test_get_batch_in_the_middle_of_a_fit_does_not_disturb_it():
    class Looks(nb.Callback):
        _order = 5
        def after_pred(self): self.shape = get_batch(loader(7), self.run)[0].shape
        def after_loss(self): assert self.run.xb.shape == (10, 4)
    learn, run = a_run(Looks())
    run.fit(1, learn)
    assert run.looks.shape == (7, 4)

def test_a_batch_can_be_had_through_a_finder():
    batch = torch.randn(4, 3), torch.zeros(4)
    xb, yb = get_batch([batch], nb.Runner(nb.LR_Find()))
    assert torch.equal(xb, batch[0]) and torch.equal(yb, batch[1])
