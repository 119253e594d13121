"Lesson 07 beyond what it shows: its normalisations against PyTorch's on any shape, and running statistics under any treatment."
import ast, copy, json, pickle
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
import exp.nb_07 as nb
from exp.nb_07 import RunningBatchNorm, conv_layer, set_seed

# --- sixteen bits ---

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('training', [True, False])
def test_running_batch_norm_takes_inputs_of_16_bits(dtype, training):
    set_seed(1)
    x = torch.randn(512, 4, 14, 14)*3 + 1   # 100,352 numbers a channel: more than float16 can count
    layer, wide = RunningBatchNorm(4).train(training), RunningBatchNorm(4).train(training)
    out = layer(x.to(dtype))
    assert out.dtype == dtype and layer.dev.dtype == torch.float32
    torch.testing.assert_close(out.float(), wide(x.to(dtype).float()), atol=.02, rtol=.02)
    torch.testing.assert_close(layer.dev, wide.dev)
    assert layer(x).std().item() == pytest.approx(1 if training else wide(x).std().item(), abs=.05)   # it isn't spoiled for others

def test_running_batch_norm_under_autocast():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), RunningBatchNorm(4)), torch.randn(64, 3, 30, 30)
    with torch.autocast('cpu', torch.float16): out = model(x)
    assert .9 < out.float().std() < 1.1
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())

def test_a_running_batch_norm_in_float16_is_refused():
    for layer in (RunningBatchNorm(2).half(), RunningBatchNorm(2).half().eval()):
        with pytest.raises(ValueError, match='float32 again'): layer(torch.randn(2, 2, 3, 3).half())
    assert RunningBatchNorm(2).double()(torch.randn(2, 2, 3, 3).double()).dtype == torch.float64

# --- the lesson's own layers, which it doesn't export ---

@pytest.fixture(scope='module')
def lesson(root):
    "The classes and functions that lesson 07 defines, by name."
    cells = json.loads((root/'nbs'/'07_batchnorm.ipynb').read_text(encoding='utf-8'))['cells']
    names, space = {'BatchNorm3', 'BatchNorm', 'normalize_over', 'LayerNorm', 'InstanceNorm', 'GroupNorm'}, dict(vars(nb))
    for cell in cells:
        if cell['cell_type'] != 'code': continue
        for node in ast.parse(''.join(cell['source'])).body:
            if getattr(node, 'name', None) in names: exec(compile(ast.Module([node], []), '07_batchnorm', 'exec'), space)
    return space

def check_same(ours, theirs, x, tol=1e-5):
    "Outputs and all gradients of two layers agree on `x`."
    g = torch.randn_like(x)
    def passes(m):
        i = x.clone().requires_grad_()
        o = m(i)
        return o, *(t.flatten() for t in torch.autograd.grad(o, [i, *m.parameters()], g))
    for a, b in zip(passes(ours), passes(theirs)): assert (a - b).abs().max() <= tol*max(1, b.abs().max())

side, several = st.integers(1, 7), st.integers(1, 6)
seeds = st.integers(0, 10_000)
quick = settings(max_examples=40)

@quick
@given(steps=st.lists(st.tuples(several, side, side).filter(lambda s: s[0]*s[1]*s[2] > 1), min_size=1, max_size=6), nf=several, mom=st.floats(0, 1), seed=seeds)
def test_batchnorm_is_pytorchs_in_training_and_evaluation_with_its_running_statistics(lesson, steps, nf, mom, seed):
    set_seed(seed)
    ours, theirs = lesson['BatchNorm'](nf, mom), nn.BatchNorm2d(nf, momentum=mom)
    for n, h, w in steps:
        ours(x := torch.randn(n, nf, h, w)*2 + 1), theirs(x)
        assert (ours.means - theirs.running_mean).abs().max() < 1e-5
        assert (ours.vars - theirs.running_var).abs().max() < 1e-5*max(1, theirs.running_var.max())
    check_same(ours.eval(), theirs.eval(), torch.randn(3, nf, 4, 2))
    check_same(ours.train(), theirs.train(), torch.randn(4, nf, 3, 3))

# Any shape in double precision; in single precision only maps of a few dozen pixels, since two numbers that are nearly equal amplify rounding a hundredfold.
sizes = st.one_of(st.tuples(st.just(torch.float64), st.integers(2, 7), side), st.tuples(st.just(torch.float32), st.integers(5, 9), st.integers(5, 9)))

def data(n, nf, size, seed):
    set_seed(seed)
    dtype, h, w = size
    return torch.randn(n, nf, h, w, dtype=dtype)*3 - 1

@quick
@given(n=several, nf=several, size=sizes, train=st.booleans(), seed=seeds)
def test_layer_norm_is_pytorchs(lesson, n, nf, size, train, seed):
    x = data(n, nf, size, seed)
    check_same(*(m.to(x.dtype).train(train) for m in (lesson['LayerNorm'](*x.shape[1:]), nn.LayerNorm(x.shape[1:]))), x)

@quick
@given(n=several, nf=several, size=sizes, train=st.booleans(), seed=seeds)
def test_instance_norm_is_pytorchs(lesson, n, nf, size, train, seed):
    x = data(n, nf, size, seed)
    check_same(*(m.to(x.dtype).train(train) for m in (lesson['InstanceNorm'](nf), nn.InstanceNorm2d(nf, affine=True))), x)

@quick
@given(n=several, groups=several, per=several, size=sizes, train=st.booleans(), seed=seeds)
def test_group_norm_is_pytorchs(lesson, n, groups, per, size, train, seed):
    x = data(n, groups*per, size, seed)
    check_same(*(m.to(x.dtype).train(train) for m in (lesson['GroupNorm'](groups, groups*per), nn.GroupNorm(groups, groups*per))), x)

@quick
@given(n=several, nf=several, size=sizes, seed=seeds)
def test_group_norm_has_layer_and_instance_norm_as_its_ends(lesson, n, nf, size, seed):
    x = data(n, nf, size, seed)
    for groups, other in ((1, lesson['LayerNorm'](*x.shape[1:])), (nf, lesson['InstanceNorm'](nf))):
        assert torch.allclose(lesson['GroupNorm'](groups, nf).to(x.dtype)(x), other.to(x.dtype)(x), atol=1e-5)

# --- RunningBatchNorm ---

def fed(sizes, nf=3, mom=.1, seed=0, space=(2, 2), dtype=torch.float32, mean=0.):
    "A layer that was trained on batches of these sizes, and the batches."
    set_seed(seed)
    rbn, xs = RunningBatchNorm(nf, mom).to(dtype), [torch.randn(n, nf, *space, dtype=dtype)*2 + 1 + mean for n in sizes]
    for x in xs: rbn(x)
    return rbn, xs

@quick
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), mom=st.floats(0, .9), mean=st.sampled_from([0., 100., -10_000.]), seed=seeds)
def test_statistics_are_those_of_the_definition(sizes, mom, mean, seed):
    rbn, xs = fed(sizes, mom=mom, seed=seed, mean=mean)
    age, weights = 0, []
    for n in reversed(sizes):
        weights.insert(0, torch.full((n*4,), (1 - mom)**(age/2), dtype=torch.float64))
        age += n
    x, w = torch.cat([o.double().transpose(0, 1).flatten(1) for o in xs], 1), torch.cat(weights)
    m = (x*w).sum(1)/w.sum()
    v = ((x - m[:, None])**2*w).sum(1)/w.sum()
    assert torch.allclose(rbn.mean.double(), m, rtol=1e-5, atol=1e-4)
    assert torch.allclose((rbn.dev/rbn.count).double(), v, rtol=1e-2, atol=1e-3)

@pytest.mark.parametrize('space', [(), (5,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize('n', [1, 2, 7])
def test_any_number_of_dimensions_and_items(n, space):
    rbn, _ = fed([4, 1], space=space)
    x = torch.randn(n, 3, *space, requires_grad=True)
    o = rbn(x)
    o.sum().backward()
    assert o.shape == x.shape and o.isfinite().all() and x.grad.isfinite().all()

def test_training_on_single_images_from_the_first_batch_on_stays_finite():
    set_seed(0)
    model = nn.Sequential(conv_layer(1, 4, norm=RunningBatchNorm), conv_layer(4, 4, norm=RunningBatchNorm), nn.Flatten(), nn.Linear(16, 2))
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    for i in range(30):
        F.cross_entropy(model(torch.randn(1, 1, 8, 8)), torch.tensor([i % 2])).backward()
        opt.step()
        opt.zero_grad()
    assert all(t.isfinite().all() for t in model.state_dict().values())

def test_constant_channels_are_no_nan():
    rbn = RunningBatchNorm(2)
    x = torch.ones(2, 2, 3, 3, requires_grad=True)
    for _ in range(3): rbn(x).sum().backward()
    assert rbn(x).isfinite().all() and x.grad.isfinite().all()

def test_large_batches_give_pytorchs_batch_norm():
    set_seed(0)
    rbn = RunningBatchNorm(3)
    for _ in range(3): check_same(rbn, nn.BatchNorm2d(3), torch.randn(400, 3, 2, 2)*3 + 5)

def test_gradients_are_right_in_the_middle_of_a_training():
    rbn, _ = fed([2, 3], dtype=torch.float64)
    state = copy.deepcopy(rbn.state_dict())
    def f(x, mults, adds):
        m = RunningBatchNorm(3).double()
        m.load_state_dict(state)
        return torch.func.functional_call(m, dict(mults=mults, adds=adds), (x,))
    args = [torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(f, [a.requires_grad_() for a in args])

def test_buffers_carry_no_graph_and_stay_the_same_tensors():
    rbn = RunningBatchNorm(3)
    before = {k: id(b) for k, b in rbn.named_buffers()}
    for _ in range(3):
        o = rbn(torch.randn(2, 3, 2, 2, requires_grad=True))
        assert all(b.grad_fn is None and not b.requires_grad for b in rbn.buffers())
    o.sum().backward()
    assert {k: id(b) for k, b in rbn.named_buffers()} == before

def test_two_forwards_before_their_backwards():
    rbn = RunningBatchNorm(3)
    x = torch.randn(2, 3, 2, 2, requires_grad=True)
    (rbn(x).pow(2).sum() + rbn(2*x).pow(3).sum()).backward()
    assert x.grad.isfinite().all()

@pytest.mark.parametrize('twin', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy', 'pickle'])
@pytest.mark.parametrize('when', ['after the forward', 'after the backward'])
def test_a_twin_goes_on_as_the_original_does_and_leaves_it_alone(twin, when):
    rbn, _ = fed([2, 5])
    loss = rbn(torch.randn(2, 3, 2, 2, requires_grad=True)).sum()
    if when == 'after the backward': loss.backward()
    other, x = twin(rbn), torch.randn(3, 3, 2, 2)
    state = copy.deepcopy(rbn.state_dict())
    a = other(x)
    assert all((rbn.state_dict()[k] == v).all() for k, v in state.items())
    assert (a == rbn(x)).all()
    assert all((rbn.state_dict()[k] == v).all() for k, v in other.state_dict().items())

def test_state_dict_round_trip(tmp_path):
    rbn, _ = fed([2, 5, 1])
    torch.save(rbn.state_dict(), tmp_path/'rbn.pt')
    other, x = RunningBatchNorm(3), torch.randn(2, 3, 2, 2)
    other.load_state_dict(torch.load(tmp_path/'rbn.pt', weights_only=True))
    assert (other.eval()(x) == rbn.eval()(x)).all() and (other.train()(x) == rbn.train()(x)).all()

def test_state_of_another_width_is_refused():
    with pytest.raises(RuntimeError, match='size mismatch'): RunningBatchNorm(4).load_state_dict(RunningBatchNorm(3).state_dict())

def test_evaluation_keeps_the_statistics_and_treats_each_item_alone():
    rbn, _ = fed([2, 5])
    state, x = copy.deepcopy(rbn.state_dict()), torch.randn(6, 3, 2, 2)
    whole = rbn.eval()(x)
    assert torch.allclose(whole, torch.cat([rbn(o) for o in x.split(1)]), atol=1e-6)
    assert all((rbn.state_dict()[k] == v).all() for k, v in state.items())

def test_evaluation_before_any_training_takes_mean_0_and_variance_1():
    x = torch.randn(2, 3, 2, 2)
    assert torch.allclose(RunningBatchNorm(3).eval()(x), nn.BatchNorm2d(3).eval()(x))

def test_an_empty_batch_is_an_error_in_training_and_empty_in_evaluation():
    rbn, _ = fed([2])
    with pytest.raises(ValueError, match='empty batch'): rbn(torch.zeros(0, 3, 2, 2))
    assert rbn.eval()(torch.zeros(0, 3, 2, 2)).shape == (0, 3, 2, 2)

@pytest.mark.parametrize('shape', [(2, 4, 3, 3), (3,), (2, 1), ()])
def test_inputs_of_other_channels_are_refused_by_shape(shape):
    with pytest.raises(ValueError, match=r'takes \[n, 3'): RunningBatchNorm(3)(torch.zeros(shape))

@pytest.mark.parametrize('mom', [-.1, 1.1, float('nan')])
def test_a_share_that_is_none_is_refused(mom):
    with pytest.raises(ValueError, match='from 0 to 1'): RunningBatchNorm(3, mom)

def test_a_share_of_one_forgets_and_of_nothing_remembers_all():
    (rbn, xs), (all_, ys) = fed([3, 4], mom=1.), fed([3, 4], mom=0.)
    assert torch.allclose(rbn.mean, xs[-1].mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(all_.mean, torch.cat(ys).mean((0, 2, 3)), atol=1e-6)

# --- conv_layer ---

@pytest.mark.parametrize('norm', [nn.BatchNorm2d, RunningBatchNorm, lambda nf: nn.GroupNorm(2, nf)], ids=['batch', 'running', 'group'])
def test_no_convolution_keeps_a_bias_beside_a_normalisation(norm):
    layer = conv_layer(3, 8, norm=norm)
    assert layer[0].bias is None and layer(torch.randn(4, 3, 9, 9)).shape == (4, 8, 5, 5)
    assert conv_layer(3, 8, bn=False, norm=norm)[0].bias is not None

def test_conv_layer_passes_on_what_belongs_to_the_activation_and_refuses_the_rest():
    assert conv_layer(3, 8, leak=.1, sub=.4, maxv=6.)[1].sub == .4
    with pytest.raises(TypeError, match='lek'): conv_layer(3, 8, lek=.1)
