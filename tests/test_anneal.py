"Lesson 05's schedules: properties for any ends and fractions, and any optimizer's hyper-parameters."
import copy, math, pickle
import pytest
from hypothesis import given, settings, strategies as st
from exp.nb_05b import Runner
from exp.nb_05 import (DataBunch, Dataset, F, ParamScheduler, Recorder, SimpleNamespace, annealer, combine_scheds, cos_1cycle_anneal, create_learner, get_dls, get_model, get_model_func, hyper_groups,
                       hyper_names, hyper_setter, nn, np, optim, pg_dicts, plt, sched_cos, sched_exp, sched_lin, sched_no, set_seed, smooth, torch)

ends = st.floats(-10, 10, allow_nan=False)
rates = st.floats(1e-6, 10)

def tiny(model_func=get_model, n=40, bs=8, c=4):
    set_seed(7)
    x = torch.randn(n + 10, 10)
    ds = [Dataset(o, o[:, :c].argmax(1)) for o in (x[:n], x[n:])]
    return create_learner(model_func, F.cross_entropy, DataBunch(*get_dls(*ds, bs), c))

def groups_of(opt_func, n=2):
    def model_func(data):
        model, _ = get_model(data)
        return model, opt_func(pg_dicts([list(l.parameters()) for l in (model[0], model[2])][:n]))
    return model_func

@given(start=rates, end=rates, pos=st.floats(0, 1))
def test_schedules_stay_between_their_ends_and_are_plain_floats(start, end, pos):
    low, high = sorted((start, end))
    for sched in (sched_lin, sched_cos, sched_exp, sched_no):
        for p in (pos, torch.tensor(pos), np.float32(pos)):
            v = sched(start, end)(p)
            assert type(v) is float and low*(1 - 1e-6) <= v <= high*(1 + 1e-6)

@given(start=rates, end=rates)
def test_schedules_begin_and_end_where_they_say(start, end):
    for sched in (sched_lin, sched_cos, sched_exp):
        assert sched(start, end)(0) == pytest.approx(start) and sched(start, end)(1) == pytest.approx(end)
    assert sched_no(start, end)(1) == start

@pytest.mark.parametrize('start, end', [(0, 1), (1, 0), (-1, 1), (0, 0), (math.nan, 1)])
def test_an_exponential_between_impossible_ends_fails_when_it_is_made(start, end):
    with pytest.raises(ValueError, match='equal factors'): sched_exp(start, end)

def test_an_annealer_keeps_its_name_and_its_docstring():
    @annealer
    def mine(start, end, pos):
        "What mine does."
        return start
    assert (mine.__name__, mine.__doc__) == ('mine', 'What mine does.')
    assert copy.deepcopy(mine(1, 2))(.5) == 1.

@settings(max_examples=100)
@given(weights=st.lists(st.integers(0, 100), min_size=1, max_size=7).filter(sum), pos=st.floats(0, 1))
def test_any_fractions_that_sum_to_one(weights, pos):
    "Straight pieces that together make the line from 0 to 1 are that line, everywhere."
    pcts = [w/sum(weights) for w in weights]
    at = [0., *np.cumsum(pcts)]
    f = combine_scheds(pcts, [sched_lin(a, b) for a, b in zip(at, at[1:])])
    for p in (pos, 0., 1., *at): assert f(min(p, 1.)) == pytest.approx(min(p, 1.), abs=1e-9)

@pytest.mark.parametrize('pcts', [[.7, .2, .1], [1/3]*3, [.1]*10, [.3, .7], [1.], torch.tensor([.7, .2, .1]), np.array([.5, .5]), (.25, .75), [0., 1.], [1., 0.], [.5, 0., .5]])
def test_rounded_fractions(pcts):
    f = combine_scheds(pcts, [sched_lin(i, i + 1) for i in range(len(pcts))])
    assert f(0.) >= 0 and f(1.) == len(pcts) and type(f(torch.tensor(.5))) is float
    assert f(1 + 1e-9) == f(1.) and f(-1e-9) == f(0.)

@pytest.mark.parametrize('pcts, n, says', [([.5, .4], 2, 'sum to 0.9'), ([.5, .6], 2, 'sum to 1.1'), ([.5, .5], 3, '2 fractions and 3 schedules'), ([1.5, -.5], 2, 'negative'), ([], 0, '0 fractions'), ([math.nan, 1], 2, 'negative')])
def test_bad_fractions(pcts, n, says):
    with pytest.raises(ValueError, match=says): combine_scheds(pcts, [sched_no(1, 1)]*n)

@pytest.mark.parametrize('pos', [-.1, 1.1, math.nan, math.inf])
def test_positions_outside(pos):
    with pytest.raises(ValueError, match='outside'): combine_scheds([1.], [sched_no(1, 1)])(pos)

@given(a=rates, b=rates, c=rates, p=st.floats(.01, .99))
def test_a_cycle_is_continuous(a, b, c, p):
    f = combine_scheds([p, 1 - p], cos_1cycle_anneal(a, b, c))
    assert [f(0), f(p), f(1)] == pytest.approx([a, b, c])
    assert f(p - 1e-7) == pytest.approx(f(p + 1e-7), abs=1e-3)

OPTS = dict(SGD=lambda ps: optim.SGD(ps, lr=.1, momentum=.9), Adam=lambda ps: optim.Adam(ps, lr=.1), AdamW=lambda ps: optim.AdamW(ps, lr=.1), RMSprop=lambda ps: optim.RMSprop(ps, lr=.1), Adagrad=lambda ps: optim.Adagrad(ps, lr=.1),
            NAdam=lambda ps: optim.NAdam(ps, lr=.1), RAdam=lambda ps: optim.RAdam(ps, lr=.1), Adamax=lambda ps: optim.Adamax(ps, lr=.1))

@pytest.mark.parametrize('name', OPTS)
def test_every_name_it_lists_can_be_set(name):
    for pname in hyper_names(OPTS[name]([nn.Parameter(torch.zeros(1))]).param_groups[0]):
        opt = OPTS[name]([nn.Parameter(torch.zeros(1))])
        group = opt.param_groups[0]
        before = copy.deepcopy({k: v for k, v in group.items() if k != 'params'})
        hyper_setter(group, pname)(.123)
        changed = {k for k in before if before[k] != group[k]}
        assert len(changed) == 1 and .123 in np.atleast_1d(group[changed.pop()])

@pytest.mark.parametrize('name', OPTS)
def test_the_rate_of_any_optimizer_and_group(name):
    learn = tiny(groups_of(OPTS[name]))
    run = Runner([ParamScheduler('lr', [sched_lin(.1, .2), sched_no(.05, 1)]), Recorder()])
    run.fit(2, learn)
    assert run.recorder.lrs[0] == pytest.approx([.1 + .1*i/10 for i in range(10)]) and run.recorder.lrs[1] == [.05]*10

@pytest.mark.parametrize('name, where', [('SGD', lambda g: g['momentum']), ('Adam', lambda g: g['betas'][0]), ('RMSprop', lambda g: g['momentum'])])
def test_momentum_by_one_name(name, where):
    for pname in ('mom', 'momentum'):
        learn = tiny(groups_of(OPTS[name]))
        Runner(ParamScheduler(pname, sched_no(.5, .5))).fit(1, learn)
        assert [where(g) for g in learn.opt.param_groups] == [.5, .5]

def test_an_optimizer_with_hypers_of_its_own():
    learn, seen = tiny(), []
    opt = learn.opt
    learn.opt = SimpleNamespace(hypers=[dict(lr=.1, mom=.9, wd=0.), dict(lr=.1, mom=.9, wd=0.)], step=lambda: seen.append([dict(h) for h in learn.opt.hypers]), zero_grad=opt.zero_grad)
    run = Runner([ParamScheduler('lr', sched_lin(0, 1)), ParamScheduler('momentum', sched_no(.7, 0)), ParamScheduler('weight_decay', [sched_no(1, 1), sched_no(2, 2)]), Recorder()])
    run.fit(1, learn)
    assert seen[3] == [dict(lr=pytest.approx(.6), mom=.7, wd=1.), dict(lr=pytest.approx(.6), mom=.7, wd=2.)]
    assert run.recorder.lrs[1] == pytest.approx([0, .2, .4, .6, .8]) and hyper_groups(learn.opt) is learn.opt.hypers

def test_a_hyper_parameter_that_is_a_tensor_is_changed_in_place():
    p = nn.Parameter(torch.zeros(1))
    opt = optim.Adam([p], lr=torch.tensor(.1), foreach=False)
    lr = opt.param_groups[0]['lr']
    hyper_setter(opt.param_groups[0], 'lr')(.5)
    assert opt.param_groups[0]['lr'] is lr and lr.item() == .5

def test_a_scheduled_tensor_rate_is_recorded_as_it_was():
    learn = tiny()
    learn.opt = optim.Adam(learn.model.parameters(), lr=torch.tensor(.1), foreach=False)
    run = Runner([ParamScheduler('lr', sched_lin(0., .5)), Recorder()])
    run.fit(1, learn)
    assert [float(o) for o in run.recorder.lrs[0]] == pytest.approx([0, .1, .2, .3, .4])

def test_groups_that_were_given_one_tensor_follow_their_own_schedules():
    learn = tiny(groups_of(lambda groups: optim.Adam(groups, lr=torch.tensor(.1), foreach=False)))
    run = Runner([ParamScheduler('lr', [sched_lin(0., .5), sched_lin(0., 1.)]), Recorder()])
    run.fit(1, learn)
    assert [[float(o) for o in lrs] for lrs in run.recorder.lrs] == [pytest.approx([0, .1, .2, .3, .4]), pytest.approx([0, .2, .4, .6, .8])]

@pytest.mark.parametrize('pname', ['LR', 'params', 'nesterov', 'foreach', 'rate', 'betas', 'sqr_mom'])
def test_an_unknown_hyper_parameter_names_those_there_are(pname):
    with pytest.raises(ValueError, match=f"no hyper-parameter '{pname}'; it has lr, momentum"): Runner(ParamScheduler(pname, sched_no(1, 1))).fit(1, tiny(groups_of(OPTS['SGD'])))

@pytest.mark.parametrize('n', [0, 1, 3])
def test_a_wrong_number_of_schedules(n):
    with pytest.raises(ValueError, match=f'{n} schedules for 2 groups'): Runner(ParamScheduler('lr', [sched_no(1, 1)]*n)).fit(1, tiny(groups_of(OPTS['SGD'])))

def test_schedulers_of_two_hyper_parameters_dont_clash():
    run = Runner([ParamScheduler('lr', sched_no(.1, .1)), ParamScheduler('mom', sched_no(.8, .8))])
    assert (run.lr_scheduler.pname, run.mom_scheduler.pname) == ('lr', 'mom')
    learn = tiny(groups_of(OPTS['SGD']))
    run.fit(1, learn)
    assert [(g['lr'], g['momentum']) for g in learn.opt.param_groups] == [(.1, .8)]*2

def test_a_scheduler_serves_fits_with_different_groups():
    run = Runner(ParamScheduler('lr', sched_no(.3, .3)))
    for n in (2, 1, 2):
        learn = tiny(groups_of(OPTS['SGD'], n))
        run.fit(1, learn)
        assert [g['lr'] for g in learn.opt.param_groups] == [.3]*n

@given(st.lists(st.floats(-100, 100), max_size=30), st.floats(0, .99))
def test_smooth_is_its_formula(xs, beta):
    i = np.arange(len(xs))
    w = np.float64(beta)**np.abs(np.subtract.outer(i, i))
    expected = w@np.array(xs)/w.sum(1) if xs else []
    np.testing.assert_allclose(smooth(xs, beta), expected, atol=1e-6)

def test_a_recorder_starts_anew_with_each_fit_and_draws():
    run = Runner(Recorder())
    for epochs in (2, 1):
        run.fit(epochs, tiny())
        assert len(run.recorder.losses) == len(run.recorder.lrs[0]) == 5*epochs
    for ax, x, y in [(run.recorder.plot_lr(), 'batch', 'learning rate'), (run.recorder.plot_loss(2), 'batch', 'loss'), (run.recorder.plot(skip_last=1, pgid=0), 'learning rate', 'loss')]:
        assert (ax.get_xlabel(), ax.get_ylabel()) == (x, y)
        plt.close(ax.figure)
    assert len(run.recorder.loss_values(2)) == 3 and len(run.recorder.loss_values(99)) == 0

def test_get_model_func(): assert tiny(get_model_func(.25)).opt.param_groups[0]['lr'] == .25

def test_callbacks_keep_no_parameters_after_a_fit_and_can_be_pickled():
    learn, sched = tiny(), combine_scheds([.3, .7], cos_1cycle_anneal(.1, .2, .05))
    run = Runner([Recorder(), ParamScheduler('lr', sched)])
    run.fit(1, learn)
    assert not run.recorder.groups and not run.lr_scheduler.todo
    scheduler = pickle.loads(pickle.dumps(run.lr_scheduler))
    assert [scheduler.sched_funcs(p) for p in (0, .4, 1)] == [sched(p) for p in (0, .4, 1)]
    assert len(pickle.loads(pickle.dumps(run.recorder)).losses) == 5
    other = Runner([scheduler, Recorder()])
    other.fit(1, tiny())
    assert other.recorder.lrs == run.recorder.lrs

@pytest.mark.parametrize('sched', [sched_lin, sched_cos, sched_exp, sched_no])
def test_schedules_can_be_pickled(sched): assert pickle.loads(pickle.dumps(sched(1., .5)))(.3) == sched(1., .5)(.3)

def test_smooth_has_no_value_far_from_every_finite_one():
    s = smooth([2.]*5 + [math.nan]*300)
    assert np.isnan(s[-1]) and s[:50] == pytest.approx(2.) and np.isnan(smooth([1., math.inf], 0.)[1]) and np.isnan(smooth([math.nan]*3)).all()

def test_leaving_out_more_losses_than_there_are():
    run = Runner(Recorder())
    run.fit(1, tiny())
    assert [len(run.recorder.loss_values(k)) for k in (0, 1, 5, 6, 8, 99)] == [5, 4, 0, 0, 0, 0]
