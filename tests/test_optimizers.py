"Lesson 09's optimizers: against PyTorch's on random input, and what a user may do to them."
import copy, io, math, pickle

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn, optim
from torch.utils._python_dispatch import TorchDispatchMode

import exp.nb_09 as nb
from exp.nb_09 import (AverageGrad, Optimizer, Stat, StatefulOptimizer, StepCount, adam_opt, adam_step, adamw_opt, l2_reg, lamb_opt, momentum_step, sgd_mom_opt, sgd_opt,
                       sgd_step, weight_decay)

MAKERS = {'sgd': sgd_opt, 'momentum': sgd_mom_opt, 'adam': adam_opt(), 'adam, l2': adam_opt(l2_reg, wd=.1), 'adamw': adamw_opt(), 'lamb': lamb_opt(wd=.1)}
SHAPES = [(3, 4), (5,), (), (2, 1, 2), (0,)]


def params(shapes=SHAPES, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g).to(dtype).requires_grad_() for s in shapes]


def give_grads(ps, seed, missing=()):
    g = torch.Generator().manual_seed(seed)
    for i, p in enumerate(ps):
        grad = torch.randn(p.shape, generator=g).to(p.dtype)
        p.grad = None if i in missing else grad


def walk(opt, ps, seeds, missing=lambda s: ()):
    for s in seeds:
        give_grads(ps, s, missing(s))
        opt.step()
    return [p.detach().clone() for p in ps]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True): assert torch.equal(x, y)


def same(a, b):
    "Whether two states are the same, bit for bit."
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else type(a) is type(b) and a == b


any_maker = pytest.mark.parametrize('make', MAKERS.values(), ids=MAKERS)

# Against PyTorch's

PEERS = {
    'sgd': lambda lr, mom, sqr_mom, eps, wd: (lambda ps: sgd_opt(ps, lr=lr, wd=wd), lambda ps: optim.SGD(ps, lr=lr, weight_decay=wd)),
    'sgd, l2': lambda lr, mom, sqr_mom, eps, wd: (lambda ps: Optimizer(ps, [sgd_step, l2_reg], lr=lr, wd=wd), lambda ps: optim.SGD(ps, lr=lr, weight_decay=wd)),
    'momentum, l2': lambda lr, mom, sqr_mom, eps, wd: (lambda ps: StatefulOptimizer(ps, [momentum_step, l2_reg], AverageGrad(), lr=lr, mom=mom, wd=wd),
                                                       lambda ps: optim.SGD(ps, lr=lr, momentum=mom, weight_decay=wd)),
    'adam, l2': lambda lr, mom, sqr_mom, eps, wd: (lambda ps: adam_opt(l2_reg, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)(ps, lr=lr),
                                                   lambda ps: optim.Adam(ps, lr=lr, betas=(mom, sqr_mom), eps=eps, weight_decay=wd)),
    'adamw': lambda lr, mom, sqr_mom, eps, wd: (lambda ps: adamw_opt(mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)(ps, lr=lr),
                                                lambda ps: optim.AdamW(ps, lr=lr, betas=(mom, sqr_mom), eps=eps, weight_decay=wd)),
}

@pytest.mark.parametrize('name', PEERS)
@settings(max_examples=15)
@given(lr=st.floats(1e-4, .1), mom=st.floats(0, .99), sqr_mom=st.floats(0, .999), eps=st.floats(1e-8, 1e-2), wd=st.floats(0, .5), seed=st.integers(0, 99), absent=st.integers(0, 31))
def test_is_pytorchs_after_20_steps(name, lr, mom, sqr_mom, eps, wd, seed, absent):
    def missing(s): return [i for i in range(5) if absent >> i & 1 and (s + i) % 3]
    ours, theirs = PEERS[name](lr, mom, sqr_mom, eps, wd)
    a, b = params(seed=seed, dtype=torch.float64), params(seed=seed, dtype=torch.float64)
    for x, y in zip(walk(ours(a), a, range(20), missing), walk(theirs(b), b, range(20), missing)): torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)

def test_defaults_of_adamw_are_pytorchs():
    a, b = params(), params()
    for x, y in zip(walk(adamw_opt()(a, lr=1e-3), a, range(20)), walk(optim.AdamW(b, lr=1e-3), b, range(20))): torch.testing.assert_close(x, y, rtol=0, atol=1e-6)

@any_maker
def test_rates_changed_between_steps_hold_from_the_next_on(make):
    a, b = params(), params()
    one, other = make(a, lr=.1), make(b, lr=.01)
    other.hypers[0]['lr'] = .1
    assert_same(walk(one, a, range(3)), walk(other, b, range(3)))

# Lists and single tensors

@any_maker
def test_one_tensor_at_a_time_gives_the_same(make):
    def nothing(p, **kw): pass   # isn't marked
    a, b = params(), params()
    opt = make(b, lr=.05)
    single = StatefulOptimizer(b, [*opt.steppers, nothing], opt.stats, **opt.hypers[0])
    assert make(a, lr=.05).by_lists and not single.by_lists
    for x, y in zip(walk(make(a, lr=.05), a, range(6), lambda s: [s % 3]), walk(single, b, range(6), lambda s: [s % 3])): torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)

def test_a_users_stepper_and_stat_for_single_tensors():
    class Signs(Stat):
        _defaults = dict(fade=.5)
        def init_state(self, p): return {'signs': torch.zeros_like(p.grad)}
        def update(self, p, state, fade, **kw):
            state['signs'].mul_(fade).add_(p.grad.sign())
            return state
    def step(p, lr, signs, scale=2., **kw): p.sub_(scale*lr*signs)
    p = torch.zeros(2, requires_grad=True)
    opt = StatefulOptimizer([p], [weight_decay, step], [Signs(), AverageGrad()], lr=.1)
    for _ in range(2):
        p.grad = torch.tensor([3., -.1])
        opt.step()
    torch.testing.assert_close(p.detach(), torch.tensor([-.5, .5]))
    assert opt.hypers == [dict(lr=.1, wd=0., fade=.5, mom=.9)]

def test_types_can_be_mixed():
    ps = params([(3,)]) + params([(3,)], dtype=torch.float64) + params([(3,)], dtype=torch.bfloat16)
    opt = adam_opt()(ps, lr=.1)
    walk(opt, ps, range(3))
    assert [opt.state[p]['sqr_avg'].dtype for p in ps] == [torch.float32, torch.float64, torch.bfloat16] == [p.dtype for p in ps]

@settings(max_examples=30)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 60))
def test_portions_keep_all_in_order_within_the_limit(sizes, limit):
    ps = [torch.empty(n) for n in sizes]
    portions = list(nb._cut(ps, limit))
    assert [id(p) for some in portions for p in some] == [id(p) for p in ps]
    assert all(len(some) == 1 or sum(p.numel() for p in some) <= limit for some in portions)

def test_a_marked_stepper_takes_a_single_tensor_with_its_state():
    p, q = torch.ones(3), torch.ones(3)
    state = dict(grad_avg=torch.full((3,), .1), sqr_avg=torch.full((3,), .01), step=1, mom_damp=.1, sqr_damp=.01)
    adam_step(p, lr=.1, mom=.9, sqr_mom=.99, eps=0., **state)
    adam_step([q], lr=.1, mom=.9, sqr_mom=.99, eps=0., **{k: [v] if isinstance(v, torch.Tensor) else v for k, v in state.items()})
    assert torch.equal(p, q) and p[0] == pytest.approx(.9)

# What a step leaves alone

@any_maker
def test_without_gradients_nothing_happens(make):
    ps = params()
    opt = make(ps, lr=.1)
    before = [p.detach().clone() for p in ps]
    opt.step()
    assert_same(ps, before)
    assert not opt.state

def test_frozen_and_unused_parameters_get_no_state():
    ps = params()
    ps[0].requires_grad_(False)
    opt = adam_opt()(ps, lr=.1)
    walk(opt, ps, [0], lambda s: [0, 1])
    assert set(opt.state) == set(ps[2:])

@any_maker
def test_gradients_are_what_they_were(make):
    ps = params()
    opt = make(ps, lr=.1)
    give_grads(ps, 0)
    grads, copies = [p.grad for p in ps], [p.grad.clone() for p in ps]
    opt.step()
    assert all(p.grad is g for p, g in zip(ps, grads))
    assert_same(grads, copies)

def test_gradients_are_put_back_after_an_error():
    def fails(p, **kw): raise RuntimeError('oh')
    ps = params()
    opt = Optimizer(ps, [l2_reg, fails], lr=.1, wd=.1)
    give_grads(ps, 0)
    grads = [p.grad for p in ps]
    with pytest.raises(RuntimeError, match='oh'): opt.step()
    assert all(p.grad is g for p, g in zip(ps, grads))

@any_maker
def test_a_step_makes_no_graph(make):
    ps = params()
    walk(opt := make(ps, lr=.1), ps, range(2))
    assert all(p.is_leaf and p.requires_grad and not p.grad.requires_grad for p in ps)
    assert not any(v.requires_grad for s in opt.state.values() for v in s.values() if isinstance(v, torch.Tensor))

@any_maker
def test_a_step_reads_nothing_from_the_device(make):
    class Spy(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))
    ps = params()
    opt = make(ps, lr=.1)
    give_grads(ps, 0)
    with Spy() as spy: opt.step()
    assert spy.seen and not [name for name in spy.seen if 'local_scalar' in name or '_to_copy' in name or 'is_nonzero' in name]

def test_zero_grad_forgets_gradients():
    ps = params()
    give_grads(ps, 0)
    opt = sgd_opt(ps, lr=.1)
    assert len(opt.grad_params()) == len(ps)
    opt.zero_grad()
    assert all(p.grad is None for p in ps) and opt.grad_params() == []

@pytest.mark.parametrize('start, grad', [(0., 1.), (1., 0.), (0., 0.)])
def test_lamb_stays_finite_where_a_length_is_zero(start, grad):
    p = torch.full((4,), start, requires_grad=True)
    opt = lamb_opt()([p], lr=.1)
    for _ in range(3):
        p.grad = torch.full((4,), grad)
        opt.step()
    assert p.isfinite().all() and (p.detach() == start).all() == (grad == 0)

def test_lambs_ratio_is_limited():
    p = torch.full((4,), 1000., requires_grad=True)
    p.grad = torch.ones(4)
    lamb_opt(max_trust=2., eps=0.)([p], lr=.1).step()
    torch.testing.assert_close(p.detach(), torch.full((4,), 999.8))

# Copies and files

@any_maker
@pytest.mark.parametrize('how', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=['deepcopy', 'pickle'])
def test_copies_go_on_alike_and_apart(make, how):
    ps = params()
    walk(opt := make(ps, lr=.1), ps, range(3))
    other = how(opt)
    qs = other.param_groups[0]
    assert_same(ps, qs)
    assert not {*map(id, ps)} & {*map(id, qs)} and set(other.state) <= set(qs)
    before = [p.detach().clone() for p in ps]
    after = walk(other, qs, range(3, 6))
    assert_same(ps, before)
    assert_same(walk(opt, ps, range(3, 6)), after)

@any_maker
def test_a_model_and_its_optimizer_copied_together_stay_together(make):
    model = nn.Linear(3, 2)
    model, opt = copy.deepcopy((model, make(model.parameters(), lr=.1)))
    assert all(a is b for a, b in zip(model.parameters(), opt.param_groups[0], strict=True))

@any_maker
def test_a_saved_state_continues_bit_for_bit(make):
    ps = params()
    walk(opt := make([ps[:2], ps[2:]], lr=[.1, .02]), ps, range(5), lambda s: [s % 2])
    opt.hypers[1]['lr'] = np.float64(.03)   # as a schedule may leave it
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    qs = [p.detach().clone().requires_grad_() for p in ps]
    other = make([qs[:2], qs[2:]], lr=1.)
    hypers = [*map(id, other.hypers)]
    other.load_state_dict(torch.load(file, weights_only=True))
    assert [*map(id, other.hypers)] == hypers and other.hypers == opt.hypers   # who holds the dicts has the loaded values
    assert_same(walk(opt, ps, range(5, 9), lambda s: [s % 2]), walk(other, qs, range(5, 9), lambda s: [s % 2]))

@any_maker
def test_a_state_dict_is_a_copy(make):
    ps = params()
    walk(opt := make(ps, lr=.1), ps, range(2))
    saved = opt.state_dict()
    kept = copy.deepcopy(saved)
    walk(opt, ps, range(3))
    opt.load_state_dict(saved)
    walk(opt, ps, range(3))
    assert same(saved, kept)

def _states():
    ps = params()
    walk(opt := adam_opt()(ps, lr=.1), ps, range(2))
    return opt

@pytest.mark.parametrize('saved, says', [
    (lambda: [], "isn't a dict of hypers"), (lambda: {'state': {}, 'param_groups': []}, "isn't a dict of hypers"),
    (lambda: adam_opt()(params(SHAPES[:2]), lr=.1).state_dict(), r'groups of \[2\] parameters; here are groups of \[5\]'),
    (lambda: adam_opt()([params(SHAPES), params([(1,)])], lr=.1).state_dict(), r'groups of \[5, 1\]'),
    (lambda: adam_opt()(params([(3, 4), (6,), (), (2, 1, 2), (0,)]), lr=.1).state_dict(), r'parameter 1 of group 0 has the shape \[5\], and in the saved state \[6\]'),
    (lambda: lamb_opt()(params(), lr=.1).state_dict(), 'max_trust')])
def test_a_state_that_does_not_fit_changes_nothing(saved, says):
    opt = _states()
    before = opt.state_dict()
    with pytest.raises(ValueError, match=says): opt.load_state_dict(saved())
    assert same(opt.state_dict(), before)

# Mistakes

@pytest.mark.parametrize('wrong, near', [('mom_sqr', 'sqr_mom'), ('momentum', 'mom'), ('weight_decay', 'wd'), ('learning_rate', 'lr'), ('beta2', 'sqr_mom'), ('epsilon', 'eps'), ('sqrmom', 'sqr_mom')])
def test_unknown_hyper_parameters_name_the_nearest(wrong, near):
    with pytest.raises(TypeError, match=f"unknown hyper-parameter '{wrong}': did you mean '{near}'"): adam_opt(**{wrong: .9})
    with pytest.raises(TypeError, match=f"did you mean '{near}'"): adam_opt()(params(), lr=.1, **{wrong: .9})
    opt = adam_opt()(params(), lr=.1)
    opt.hypers[0][wrong] = .9
    with pytest.raises(TypeError, match=f"did you mean '{near}'"): opt.step()

@pytest.mark.parametrize('kw', [dict(lr=-.1), dict(lr=math.nan), dict(lr=math.inf), dict(lr=.1, mom=1.), dict(lr=.1, mom=-.1), dict(lr=.1, sqr_mom=1.01), dict(lr=.1, eps=-1e-8), dict(lr=.1, wd=-1)])
def test_values_out_of_range(kw):
    with pytest.raises(ValueError, match='is out of range'): adam_opt()(params(), **kw)

@pytest.mark.parametrize('lr', [None, 'fast', 1j, {}, torch.ones(3)])
def test_values_that_are_no_numbers(lr):
    with pytest.raises(TypeError, match='lr must be a number'): sgd_opt(params(), lr=lr)

def test_a_list_needs_a_value_for_each_group():
    with pytest.raises(ValueError, match='lr has 3 values'): sgd_opt([params(), params()], lr=[.1, .2, .3])

@pytest.mark.parametrize('make', [sgd_opt, adam_opt()])
def test_a_rate_is_needed(make):
    with pytest.raises(TypeError, match='needs a rate'): make(params())

@pytest.mark.parametrize('wrong, error, says', [
    (lambda: [], ValueError, 'got none'), (lambda: [[], []], ValueError, 'got none'), (lambda: iter(()), ValueError, 'only once'), (lambda: params()[0], TypeError, 'is a Tensor'),
    (lambda: nn.Linear(2, 2), TypeError, 'model.parameters'), (lambda: {'params': params()}, TypeError, 'is a dict'), (lambda: [{'params': params()}], TypeError, 'group 0 is a dict'),
    (lambda: [params(), params()[0]], TypeError, 'group 1 is a Tensor'), (lambda: nn.Linear(2, 2).named_parameters(), TypeError, 'parameter 0 of group 0 is a str'), (lambda: 3, TypeError, 'is a int'),
    (lambda: [p := params()[0], p], ValueError, r'parameter 1 of group 0 \(shape \[3, 4\]\) is there twice'), (lambda: [p*2 for p in params()], ValueError, 'is no leaf')])
def test_what_is_no_list_of_parameters(wrong, error, says):
    with pytest.raises(error, match=says): sgd_opt(wrong(), lr=.1)

@pytest.mark.parametrize('groups', [lambda ps: ps, lambda ps: (p for p in ps), lambda ps: tuple(ps), lambda ps: [ps[:2], ps[2:]], lambda ps: ((p for p in part) for part in (ps[:2], ps[2:])), lambda ps: [ps, []]])
def test_groups_come_in_many_forms(groups):
    a, b = params(), params()
    assert_same(walk(adam_opt()(groups(a), lr=.1), a, range(3)), walk(adam_opt()(b, lr=.1), b, range(3)))

def test_steppers_and_stats_that_cannot_work():
    with pytest.raises(TypeError, match=r'must take \*\*kw'): Optimizer(params(), lambda p, lr: None, lr=.1)
    with pytest.raises(TypeError, match='stats are objects'): StatefulOptimizer(params(), momentum_step, AverageGrad, lr=.1)
    with pytest.raises(TypeError, match=r'adam_opt\(\)\(params'): adam_opt(params())
    class Clash(StepCount):
        def init_state(self, p): return {'lr': 0}
    opt = StatefulOptimizer(ps := params(), sgd_step, Clash(), lr=.1)
    give_grads(ps, 0)
    with pytest.raises(ValueError, match='lr is the name of a hyper-parameter and of a state'): opt.step()

def test_sparse_gradients():
    def embedding():
        torch.manual_seed(0)
        e = nn.Embedding(5, 3, sparse=True)
        e(torch.tensor([1, 2])).sum().backward()
        return e
    a, b = embedding(), embedding()
    sgd_opt(a.parameters(), lr=.1).step()
    optim.SGD(b.parameters(), lr=.1).step()
    assert torch.equal(a.weight, b.weight)
    with pytest.raises(NotImplementedError, match='needs dense gradients'): adam_opt()(embedding().parameters(), lr=.1).step()

# With the callbacks of lessons 05 and 05b

def _learner(make, lr=.1):
    torch.manual_seed(0)
    x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    dl = list(zip(x.split(8), y.split(8)))
    return nb.Learner(model, make([model[0].parameters(), model[2].parameters()], lr=lr), nn.functional.cross_entropy, nb.DataBunch(dl, dl, c_out=3))

@any_maker
def test_the_finder_leaves_it_as_it_was(make):
    learn = _learner(make)
    nb.Runner([]).fit(1, learn)
    before, weights = learn.opt.state_dict(), [p.detach().clone() for p in learn.model.parameters()]
    nb.Runner([nb.LR_Find(max_iter=12)]).fit(2, learn)
    assert same(learn.opt.state_dict(), before)
    assert_same(learn.model.parameters(), weights)

@pytest.mark.parametrize('name', ['mom', 'momentum'])
def test_schedules_and_records(name):
    learn = _learner(sgd_mom_opt)
    run = nb.Runner([nb.Recorder(), nb.ParamScheduler('lr', [nb.sched_lin(0, .8), nb.sched_no(.3, .3)]), nb.ParamScheduler(name, nb.sched_lin(.5, .9))])
    run.fit(1, learn)
    assert run.recorder.lrs[0] == pytest.approx([.1*i for i in range(8)]) and run.recorder.lrs[1] == [.3]*8
    assert learn.opt.hypers[0]['mom'] == pytest.approx(.85)
    with pytest.raises(ValueError, match="no hyper-parameter 'rate'"): nb.Runner([nb.ParamScheduler('rate', nb.sched_no(1, 1))]).fit(1, learn)
