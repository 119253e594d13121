"Lesson 11's Muon beyond what it shows: matrices of any shape against a singular value decomposition and the paper's own rounds, awkward gradients, state, groups, and devices' memory formats."
import math
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from exp.nb_11 import AmpCallback, DataBunch, Dataset, Learner, XResNet, adam_opt, get_dls, muon_opt, orthogonalize, set_seed

def as_published(g, rounds=5):
    "The rounds as the paper writes them: on the matrix itself."
    x = (g.T if g.shape[0] > g.shape[1] else g).double()
    x = x/x.norm()
    for _ in range(rounds):
        a = x@x.T
        x = 3.4445*x + (-4.7750*a + 2.0315*a@a)@x
    return x.T if g.shape[0] > g.shape[1] else x

shapes = st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**31))

@settings(max_examples=60)
@given(shapes, st.floats(-12, 12))
def test_orthogonalize_is_the_published_iteration_at_any_scale(shape, scale):
    m, n, seed = shape
    g = torch.randn(m, n, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(orthogonalize(g*10**scale).double(), as_published(g), atol=5e-3)

@settings(max_examples=40)
@given(shapes, st.integers(0, 4))
def test_directions_stay_and_lengths_become_about_one(shape, rank):
    m, n, seed = shape
    rng = torch.Generator().manual_seed(seed)
    g = torch.randn(m, n, generator=rng) if not rank else torch.randn(m, rank, generator=rng)@torch.randn(rank, n, generator=rng)
    u, s, v = torch.linalg.svd(g.double(), full_matrices=False)
    inner = u.T@orthogonalize(g).double()@v.T
    seen, none = s > 5e-3*g.norm(), s < 1e-6*g.norm()
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 5e-3
    assert (inner.diagonal()[seen] > .67).all() and (inner.diagonal()[seen] < 1.22).all() and (inner.diagonal()[none].abs() < 5e-3).all()

def test_kinds_of_numbers_stay_and_nothing_changes_in_place():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        g = torch.randn(5, 7).to(dtype)
        before = g.clone()
        assert orthogonalize(g).dtype == dtype and torch.equal(g, before)

def problem(n=64):
    set_seed(0)
    x, y = torch.randn(n, 3, 16, 16), torch.randint(0, 3, (n,))
    ds = Dataset(x + y[:, None, None, None].float(), y)
    return DataBunch(*get_dls(ds, ds, 16))

def small(): return XResNet.create(1, [1, 1], c_out=3)

def test_memory_formats_give_the_same_steps():
    results = []
    for fmt in (torch.contiguous_format, torch.channels_last):
        set_seed(1)
        model = small().to(memory_format=fmt)
        opt = muon_opt(mom=.9, wd=.01)(model.parameters(), lr=.05)
        for _ in range(3):
            F.cross_entropy(model(torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=fmt)), torch.arange(8) % 3).backward()
            opt.step(), opt.zero_grad()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*results, atol=2e-4)

@pytest.mark.skipif(not hasattr(torch.optim, 'Muon'), reason='this PyTorch has no Muon')
@pytest.mark.parametrize('rows', [6, 40])
def test_pytorchs_own_takes_the_same_steps(rows):
    "It has matrices only, and computes its rounds in bfloat16."
    set_seed(6)
    conv = nn.Conv2d(3, rows, 3, bias=False)
    flat = nn.Parameter(conv.weight.detach().flatten(1).clone())
    ours, theirs = muon_opt(mom=.9, wd=.1)([conv.weight], lr=.05), torch.optim.Muon([flat], lr=.05, momentum=.9, weight_decay=.1)
    start = flat.detach().clone()
    for _ in range(10):
        g = torch.randn_like(flat)
        conv.weight.grad, flat.grad = g.view_as(conv.weight), g
        ours.step(), theirs.step()
    way, other = conv.weight.detach().flatten(1) - start, flat.detach() - start
    assert (way - other).norm() < .01*other.norm()

def test_what_is_no_convolution_takes_adams_steps():
    set_seed(2)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    twin = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    twin.load_state_dict(model.state_dict())
    kw = dict(mom=.9, sqr_mom=.95, eps=1e-6, wd=.1)
    ours, adam = muon_opt(adam_share=.5, **kw)(model.parameters(), lr=.02), adam_opt(**kw)(twin.parameters(), lr=.01)
    for i in range(20):
        x, y = torch.randn(16, 6), torch.randint(0, 2, (16,))
        for m, o in ((model, ours), (twin, adam)):
            F.cross_entropy(m(x), y).backward()
            o.step(), o.zero_grad()
    for a, b in zip(model.parameters(), twin.parameters()): assert torch.allclose(a, b, atol=1e-6)

def test_without_a_gradient_or_with_one_of_zeros_a_weight_only_decays():
    conv, idle = nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(2, 3, 3, bias=False)
    before, still = conv.weight.detach().clone(), idle.weight.detach().clone()
    opt = muon_opt(wd=.1)([conv.weight, idle.weight], lr=.5)
    conv.weight.grad = torch.zeros_like(conv.weight)
    opt.step()
    assert torch.allclose(conv.weight, before*.95) and torch.equal(idle.weight, still)

def test_state_goes_on_where_it_stood():
    def steps(model, opt, seeds):
        for i in seeds:
            F.cross_entropy(model(torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(i))), torch.arange(8) % 3).backward()
            opt.step(), opt.zero_grad()
    set_seed(4)
    a, b = small(), small()
    b.load_state_dict(a.state_dict())
    first, second = muon_opt(wd=.01)(a.parameters(), lr=.05), muon_opt(wd=.01)(b.parameters(), lr=.05)
    steps(a, first, range(6))
    steps(b, second, range(3))
    third = muon_opt(wd=.01)(b.parameters(), lr=.9)
    third.load_state_dict(second.state_dict())
    steps(b, third, range(3, 6))
    for p, q in zip(a.parameters(), b.parameters()): assert torch.equal(p, q)

def test_it_learns_with_groups_of_rates_and_in_mixed_precision():
    for cbs in ([], [AmpCallback()]):
        data = problem()
        set_seed(5)
        model = small()
        params = list(model.parameters())
        learn = Learner(model, data, F.cross_entropy, muon_opt(), lr=[.02, .05], splitter=lambda m: [params[:6], params[6:]], cbs=cbs)
        learn.logger = str
        before = learn.validate()['loss']
        learn.fit(3)
        after = learn.validate()['loss']
        assert math.isfinite(after) and after < before

def test_a_misspelt_name_is_an_error():
    with pytest.raises(TypeError, match='adam_share'): muon_opt(adams_share=.1)
    with pytest.raises(TypeError, match='sqr_mom'): muon_opt(mom_sqr=.9)
    with pytest.raises(ValueError, match='mom=2'): muon_opt(mom=2)
    assert [h['wd'] for h in muon_opt(wd=[0., .1])([[p] for p in (torch.zeros(2), torch.zeros(3))], lr=.1).hypers] == [0., .1]
    with pytest.raises(ValueError, match='takes a matrix'): orthogonalize(torch.zeros(2, 3, 4))
