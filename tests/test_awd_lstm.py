"Lesson 12a: what it doesn't show. Equality with PyTorch on random sizes, faults, and the seams to earlier lessons."
import copy, math
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader
import exp.nb_12a as nb
from exp.nb_12a import (AWD_LSTM, AvgStatsCallback, Callback, CancelBatchException, DataBunch, EmbeddingDropout, GradientClipping, LSTMCell, Learner, LinearDecoder, RNNDropout, RNNTrainer, Recorder, SequentialRNN, WeightDropout,
                        accuracy_flat, adam_opt, cross_entropy_flat, dropout_mask, get_language_model, hyper_groups, perplexity, set_seed, sgd_opt, to_detach)

DROPS = ('embed_p', 'input_p', 'weight_p', 'hidden_p', 'output_p')
OFF = dict.fromkeys(DROPS, 0.)
VOCAB, EMB, HID = 30, 6, 9

@pytest.fixture(autouse=True)
def seed(): set_seed(1)

def model(n_layers=2, **kw): return get_language_model(VOCAB, EMB, HID, n_layers, **kw)

def batches(n=2, bs=4, sl=7): return [(o[:, :-1], o[:, 1:]) for o in torch.randint(2, VOCAB, (n, bs, sl + 1))]

def learner(*cbs, m=None, data=None, lr=.1, **kw):
    learn = Learner(m or model(), data or DataBunch(batches(), batches()), cross_entropy_flat, lr=lr, cbs=cbs, **kw)
    learn.logger = str
    return learn

# the cell
@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.integers(1, 6))
def test_the_cell_in_a_loop_is_pytorchs_lstm(ni, nh, bs, sl):
    lstm, cell = nn.LSTM(ni, nh, batch_first=True), LSTMCell(ni, nh)
    cell.load_state_dict({'ih.weight': lstm.weight_ih_l0, 'ih.bias': lstm.bias_ih_l0, 'hh.weight': lstm.weight_hh_l0, 'hh.bias': lstm.bias_hh_l0})
    x, state = torch.randn(bs, sl, ni), (torch.randn(bs, nh), torch.randn(bs, nh))
    expected, (h, c) = lstm(x, (state[0][None], state[1][None]))
    outs = []
    for t in range(sl):
        out, state = cell(x[:, t], state)
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs, 1), expected)
    torch.testing.assert_close(state, (h[0], c[0]))

# masks
@settings(max_examples=60)
@given(st.floats(0, 1), st.lists(st.integers(0, 12), max_size=3), st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
def test_a_mask_is_zeros_and_one_other_number(p, sz, dtype):
    mask = dropout_mask(torch.zeros(1, dtype=dtype), sz, p)
    assert mask.shape == tuple(sz) and mask.dtype == dtype
    others = mask[mask != 0].float()
    if p < .99: torch.testing.assert_close(others, torch.full_like(others, 1/(1 - p)), rtol=1e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-2*p + 1e-4, atol=0)
    assert mask.isfinite().all() or p > .99

@pytest.mark.parametrize('p', [1e-3, .1, .25, .5, .75, .999])
def test_a_mask_drops_as_often_as_it_should(p):
    n = 400_000
    assert abs((dropout_mask(torch.zeros(1), (n,), p) == 0).double().mean() - p) < 5*math.sqrt(p*(1 - p)/n) + 2**-16

def test_all_places_of_a_mask_are_independent():
    zero = (dropout_mask(torch.zeros(1), (20_000, 8), .5) == 0).double()
    off_diagonal = torch.corrcoef(zero.T) - torch.eye(8)
    assert off_diagonal.abs().max() < 5/math.sqrt(20_000)
    assert (zero.mean(0) - .5).abs().max() < 5*.5/math.sqrt(20_000)

def test_masks_follow_the_seed():
    set_seed(3); a = dropout_mask(torch.zeros(1), (100,), .5)
    set_seed(3); b = dropout_mask(torch.zeros(1), (100,), .5)
    assert torch.equal(a, b) and not torch.equal(a, dropout_mask(torch.zeros(1), (100,), .5))

def test_a_mask_of_almost_nothing_is_one_of_zeros():
    assert not dropout_mask(torch.zeros(1), (1000,), 1 - 1e-9).any()

def test_masks_elsewhere_are_drawn_there():
    assert dropout_mask(torch.zeros(1, device='meta'), (3, 4), .5).device.type == 'meta'

@pytest.mark.parametrize('make', [lambda p: dropout_mask(torch.zeros(1), (2,), p), RNNDropout, lambda p: EmbeddingDropout(nn.Embedding(3, 2), p), lambda p: WeightDropout(nn.LSTM(2, 2), p), lambda p: model(output_p=p), lambda p: model(hidden_p=p)])
@pytest.mark.parametrize('p', [-.1, 1.1, math.nan])
def test_a_probability_is_between_0_and_1(make, p):
    with pytest.raises(ValueError, match='between 0 and 1'): make(p)

@pytest.mark.parametrize('drop', DROPS)
@pytest.mark.parametrize('p', [.5, 1.])
def test_each_dropout_changes_training_and_nothing_else(drop, p):
    m, x = model(**OFF | {drop: p}), batches()[0][0]
    plain = model(**OFF)
    plain.load_state_dict(m.state_dict())
    expected = plain(x)[0]
    assert m(x)[0].isfinite().all()
    m.reset()
    assert not torch.allclose(m(x)[0], expected)
    m.eval().reset()
    torch.testing.assert_close(m(x)[0], expected)

@pytest.mark.parametrize('drop', DROPS)
def test_dropout_keeps_the_mean_of_what_it_is_applied_to(drop):
    "The mean over many masks of the first quantity that the mask touches, which is linear in it."
    p, n = .4, 3000
    x = torch.randn(3, 5, 4)
    emb, lin = nn.Embedding(10, 4), nn.Linear(4, 4, bias=False)
    ids = torch.randint(0, 10, (3, 5))
    f = {'embed_p': (EmbeddingDropout(emb, p), ids, emb(ids)), 'weight_p': (WeightDropout(lin, p, 'weight'), x, lin(x))}.get(drop, (RNNDropout(p), x, x))
    with torch.no_grad(): mean = sum(f[0](f[1]) for _ in range(n))/n
    spread = f[2].abs().max().item()*math.sqrt(p/(1 - p)/n)*2
    assert (mean - f[2]).abs().max() < 6*spread

def dropped(ps):
    "What each dropout of a model of three layers gets in training, and what it makes of that, for 2,000 words once each; the units that are dropped together along the axis 1."
    m, found, weights = get_language_model(2000, 64, 48, 3, None, **ps), {k: [] for k in DROPS}, None
    def keep(name): return lambda module, args, out: found[name].append((args[0].detach(), out.detach()))
    m[0].emb_dp.register_forward_hook(lambda module, args, out: found['embed_p'].append((m[0].emb(args[0]).detach().flatten(0, 1), out.detach().flatten(0, 1))))
    for o, name in [(m[0].input_dp, 'input_p'), *((o, 'hidden_p') for o in m[0].hidden_dps), (m[1].output_dp, 'output_p')]: o.register_forward_hook(keep(name))
    for rnn in m[0].rnns:
        whole = rnn.module.weight_hh_l0.detach()
        rnn.module.register_forward_pre_hook(lambda module, args, whole=whole: found['weight_p'].append((whole.flatten()[:, None], module.weight_hh_l0.detach().flatten()[:, None])))
    m(torch.randperm(2000).view(50, 40))
    return found

@pytest.mark.parametrize('drop, n', [*zip(DROPS, (1, 1, 3, 2, 1))])
def test_each_dropout_of_a_model_has_its_own_probability_and_scale(drop, n):
    ps = dict(zip(DROPS, (.125, .25, .5, .375, .625)))   # multiples of 1/256, which masks have exactly
    found, p = dropped(ps)[drop], ps[drop]
    assert len(found) == n
    for before, after in found:
        zero = (after == 0).all(1, keepdim=True)
        assert torch.equal(after, torch.where(zero, 0., before*torch.tensor(1/(1 - p))))
        assert abs(zero.double().mean().item() - p) < 5*math.sqrt(p*(1 - p)/zero.numel())

@pytest.mark.parametrize('shape', [(3, 5), (3, 5, 4), (2, 3, 4, 5)])
def test_rnn_dropout_has_one_mask_for_all_steps(shape):
    out = RNNDropout(.5)(torch.ones(shape))
    assert out.shape == shape and torch.equal(out, out[:, :1].expand(shape))

# weights
RNNS = [nn.LSTM, nn.GRU, nn.RNN]

@pytest.mark.parametrize('kind', RNNS)
@pytest.mark.parametrize('names', [('weight_hh_l0',), ('weight_hh_l0', 'weight_hh_l1'), ('weight_ih_l0', 'bias_hh_l1')])
def test_weight_dropout_is_the_module_with_dropped_weights(kind, names):
    rnn, x = kind(4, 5, 2, batch_first=True), torch.randn(3, 6, 4)
    wd = WeightDropout(copy.deepcopy(rnn), .4, names)
    set_seed(5); got = wd(x)[0]
    set_seed(5)
    with torch.no_grad():
        for n in names: (w := getattr(rnn, n)).mul_(dropout_mask(w, w.shape, .4))
    torch.testing.assert_close(got, rnn(x)[0])

def test_weight_dropout_takes_packed_sequences_and_states():
    x, lengths = torch.randn(3, 6, 4), [6, 4, 2]
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    wd = WeightDropout(nn.LSTM(4, 5, batch_first=True), .4)
    out, (h, c) = wd(packed, (torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)))
    assert nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0].shape == (3, 6, 5)

def test_weight_dropout_of_a_layer_inside():
    wd = WeightDropout(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), .5, '1.weight')
    assert wd(torch.randn(2, 4)).shape == (2, 3)

def trained_a_step(m, x):
    out = m(x)
    (out[0] if isinstance(out, tuple) else out).pow(2).sum().backward()
    return m

@pytest.mark.parametrize('after', ['forward', 'backward', 'error'])
def test_after_a_step_everything_is_where_it_was(after):
    wd, x = WeightDropout(nn.LSTM(4, 5, batch_first=True), .5), torch.randn(3, 6, 4)
    before, keys = list(wd.parameters()), list(wd.state_dict())
    if after == 'error':
        with pytest.raises(Exception): wd(torch.randn(3, 6, 7))
    else: wd(x) if after == 'forward' else trained_a_step(wd, x)
    assert [id(p) for p in wd.parameters()] == [id(p) for p in before] and all(p.is_leaf for p in wd.parameters())
    assert list(wd.state_dict()) == keys == ['module.weight_ih_l0', 'module.weight_hh_l0', 'module.bias_ih_l0', 'module.bias_hh_l0']
    wd.eval()
    torch.testing.assert_close(wd(x)[0], wd.module(x)[0])
    torch.testing.assert_close(copy.deepcopy(wd)(x)[0], wd(x)[0])

def test_an_optimizer_made_after_a_forward_pass_trains_the_weights():
    m, (x, y) = model(), batches()[0]
    m(x)
    opt = optim.SGD(m.parameters(), lr=1.)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    cross_entropy_flat(m(x)[0], y).backward()
    opt.step()
    assert all(not torch.equal(v, before[k]) for k, v in m.state_dict().items())
    out = m.eval()(x)[0]                                    # and what is computed is of the new weights
    fresh = model().eval()
    fresh.load_state_dict(m.state_dict())
    m.reset()
    torch.testing.assert_close(m(x)[0], fresh(x)[0])

def test_a_copy_after_a_step_is_independent():
    m, (x, y) = model(), batches()[0]
    cross_entropy_flat(m(x)[0], y).backward()
    other = copy.deepcopy(m)
    assert other[1].decoder.weight is other[0].emb.weight and other[1].decoder.weight is not m[0].emb.weight
    with torch.no_grad():
        for p in other.parameters(): p.zero_()
    assert all(p.abs().sum() > 0 for n, p in m.named_parameters() if n != '1.decoder.bias')

@pytest.mark.parametrize('opt_func', [sgd_opt, adam_opt(), optim.SGD])
def test_gradients_reach_the_true_weights_in_a_fit(opt_func):
    learn = learner(RNNTrainer(), opt_func=opt_func)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.fit(1)
    assert not [k for k, v in learn.model.state_dict().items() if torch.equal(v, before[k])]

# the encoder
@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(1, 5), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_reading_in_pieces_is_reading_at_once(n_layers, bs, cuts):
    enc = AWD_LSTM(VOCAB, EMB, HID, n_layers).eval()
    ids = torch.randint(0, VOCAB, (bs, sum(cuts)))
    whole, _ = enc(ids)
    enc.reset()
    pieces = [enc(part)[0] for part in ids.split(cuts, 1)]
    for i in range(n_layers): torch.testing.assert_close(torch.cat([p[i] for p in pieces], 1), whole[i])

@pytest.mark.parametrize('n_layers, sizes', [(1, [EMB]), (2, [HID, EMB]), (4, [HID, HID, HID, EMB])])
def test_sizes_of_the_layers(n_layers, sizes):
    raw, outs = AWD_LSTM(VOCAB, EMB, HID, n_layers)(torch.zeros(3, 5, dtype=torch.long))
    assert [o.shape for o in raw] == [o.shape for o in outs] == [(3, 5, n) for n in sizes]

def test_the_state_is_detached_and_no_part_of_what_is_saved():
    m, (x, y) = model(), batches()[0]
    for _ in range(3): cross_entropy_flat(m(x)[0], y).backward()   # would fail at the second, were it not detached
    assert not any(h.requires_grad for pair in m[0].hidden for h in pair)
    assert not [k for k in m.state_dict() if 'hidden' in k] and not list(m.buffers())

def test_a_batch_of_another_size_starts_from_zeros():
    enc, ids = AWD_LSTM(VOCAB, EMB, HID, 2).eval(), torch.randint(0, VOCAB, (4, 5))
    fresh = enc(ids[:2])[0][-1]
    enc(ids)
    torch.testing.assert_close(enc(ids[:2])[0][-1], fresh)

def test_the_state_follows_the_model():
    enc, ids = AWD_LSTM(VOCAB, EMB, HID, 2).eval(), torch.randint(0, VOCAB, (4, 5))
    first, second = enc(ids)[0][-1], enc(ids)[0][-1]
    enc.reset()
    enc(ids)
    torch.testing.assert_close(enc.double()(ids)[0][-1], second.double(), rtol=1e-4, atol=1e-6)

def test_a_state_from_inference_mode_can_be_trained_on():
    m, (x, y) = model(), batches()[0]
    with torch.inference_mode(): m(x)
    cross_entropy_flat(m(x)[0], y).backward()

def test_bfloat16_autocast_keeps_the_state():
    m, (x, y) = model(**OFF), batches()[0]
    for _ in range(2):
        with torch.autocast('cpu', torch.bfloat16): loss = cross_entropy_flat(m(x)[0].float(), y)
        loss.backward()
    assert m[0].hidden is not None and loss.isfinite()

def test_padding_has_no_vector():
    enc = AWD_LSTM(VOCAB, EMB, HID, 1, pad_token=3)
    assert (enc.emb.weight[3] == 0).all() and (enc.emb.weight[[*range(3), *range(4, VOCAB)]] != 0).all()
    assert AWD_LSTM(VOCAB, EMB, HID, 1, pad_token=None).emb.padding_idx is None

@pytest.mark.parametrize('bad', [dict(n_layers=0), dict(vocab_sz=0), dict(emb_sz=-1), dict(n_hid=0)])
def test_sizes_below_1_are_refused(bad):
    with pytest.raises(ValueError, match=f"'{next(iter(bad))}': {next(iter(bad.values()))}"): AWD_LSTM(**dict(vocab_sz=VOCAB, emb_sz=EMB, n_hid=HID, n_layers=1) | bad)

@pytest.mark.parametrize('ids', [torch.zeros(5, dtype=torch.long), torch.zeros(2, 3, 4, dtype=torch.long)])
def test_input_that_is_no_batch_of_ids_is_refused(ids):
    with pytest.raises(ValueError, match=r'batch of ids \[bs, sl\]'): AWD_LSTM(VOCAB, EMB, HID, 1)(ids)

@pytest.mark.parametrize('training', [True, False])
def test_ids_of_another_vocabulary_are_named(training):
    enc = AWD_LSTM(VOCAB, EMB, HID, 1).train(training)
    with pytest.raises(IndexError, match=f'ids from 0 to {VOCAB} for a vocabulary of {VOCAB}'): enc(torch.tensor([[0, VOCAB]]))

# the decoder
def test_tied_weights_are_one_parameter_with_both_gradients():
    (x, y), tied = batches()[0], model(**OFF)
    free = model(**OFF, tie_weights=False)
    free.load_state_dict(tied.state_dict())
    assert len(list(free.parameters())) == len(list(tied.parameters())) + 1
    for m in (tied, free): cross_entropy_flat(m(x)[0], y).backward()
    torch.testing.assert_close(tied[0].emb.weight.grad, free[0].emb.weight.grad + free[1].decoder.weight.grad)

def test_a_decoder_without_bias(): assert model(bias=False)[1].decoder.bias is None

def test_an_embedding_of_another_size_cant_be_tied():
    with pytest.raises(ValueError, match=r'\[30, 9\], but tie_encoder has \[30, 6\]'): LinearDecoder(VOCAB, HID, .1, nn.Embedding(VOCAB, EMB))

def test_reset_goes_where_there_is_one():
    m = SequentialRNN(AWD_LSTM(VOCAB, EMB, HID, 1), nn.Identity())
    m(torch.zeros(2, 3, dtype=torch.long))
    m.reset()
    assert m[0].hidden is None

def test_to_detach_keeps_the_kinds():
    x = torch.ones(2, requires_grad=True)*2
    got = to_detach({'a': [x, (x, None)]})
    assert isinstance(got['a'], list) and isinstance(got['a'][1], tuple) and not got['a'][1][0].requires_grad and got['a'][1][1] is None

def test_to_detach_knows_named_tuples():
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2, requires_grad=True)*2, torch.ones(1, 2)])
    got = to_detach((packed, None))
    assert type(got[0]) is type(packed) and packed.data.requires_grad and not got[0].data.requires_grad and torch.equal(got[0].data, packed.data) and got[0].batch_sizes.tolist() == [2, 1, 1]

# measures
def test_flat_loss_and_accuracy():
    out, y = torch.randn(3, 4, VOCAB), torch.randint(0, VOCAB, (3, 4))
    for o in (out, out.flatten(0, 1)):
        torch.testing.assert_close(cross_entropy_flat(o, y), F.cross_entropy(out.permute(0, 2, 1), y))
        torch.testing.assert_close(accuracy_flat(o, y), (out.argmax(2) == y).float().mean())

@pytest.mark.parametrize('f', [cross_entropy_flat, accuracy_flat])
def test_all_three_outputs_are_no_scores(f):
    with pytest.raises(TypeError, match='RNNTrainer'): f(model()(batches()[0][0]), batches()[0][1])

@pytest.mark.parametrize('loss, expected', [(0., 1.), (torch.tensor(math.log(7.)), 7.), (np.float64(1e4), math.inf), (math.inf, math.inf)])
def test_perplexity(loss, expected): assert perplexity(loss) == pytest.approx(expected)

def test_perplexity_of_nan_is_nan(): assert math.isnan(perplexity(math.nan))

# callbacks
class Look(Callback):
    def __init__(self, order): self._order, self.losses, self.states = order, [], []
    def begin_batch(self): self.states.append(self.run.model[0].hidden is not None)
    def after_loss(self): self.losses.append(self.run.loss.item())

def test_the_state_is_carried_within_passes_only():
    look = Look(70)
    learner(RNNTrainer(), look, data=DataBunch(batches(3), batches(2))).fit(2)
    assert look.states == [False, True, True, False, True]*2

@pytest.mark.parametrize('order', [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_the_order_of_callbacks_changes_nothing(order):
    data = DataBunch(batches(), batches())
    def run(order):
        set_seed(2)
        cbs = [AvgStatsCallback(accuracy_flat), RNNTrainer(), Recorder()]
        learn = learner(*[cbs[i] for i in order], data=data, m=model())
        learn.fit(2)
        return cbs[0].history, cbs[2].loss_values().tolist()
    assert run(order) == run((0, 1, 2))

def test_averages_and_records_are_of_the_plain_loss():
    data, stats, plain = DataBunch(batches(), batches()), [], []
    for trainer in (RNNTrainer(5., 5.), RNNTrainer(0., 0.)):
        set_seed(2)
        learn = learner(trainer, cb := AvgStatsCallback(), rec := Recorder(), data=data, lr=0.)
        learn.fit(1)
        stats.append(cb.history)
        plain.append(rec.loss_values().tolist())
    assert stats[0] == stats[1] and plain[0] == plain[1]

def test_the_terms_are_in_the_gradient():
    data, m = DataBunch(batches(1), batches(1)), model(**OFF)
    x, y = data.train_dl[0]
    other = copy.deepcopy(m)
    decoded, raw, outs = other(x)
    (cross_entropy_flat(decoded, y) + 3*outs[-1].pow(2).mean() + 2*(raw[-1][:, 1:] - raw[-1][:, :-1]).pow(2).mean()).backward()
    class Grads(Callback):
        def after_backward(self): self.grads = [p.grad.clone() for p in self.run.model.parameters()]
    learner(RNNTrainer(3., 2.), g := Grads(), m=m, data=data).fit(1)
    torch.testing.assert_close(g.grads, [p.grad for p in other.parameters()])

def test_validation_is_the_plain_loss_by_hand():
    learn = learner(RNNTrainer(100., 100.), stats := AvgStatsCallback(accuracy_flat))
    learn.fit(1)
    learn.model.eval().reset()
    with torch.no_grad(): expected = np.mean([F.cross_entropy(learn.model(x)[0], y.flatten()).item() for x, y in learn.data.valid_dl])
    assert stats.history[0]['valid_loss'] == pytest.approx(expected) and learn.validate()['loss'] == pytest.approx(expected)
    assert perplexity(stats.history[0]['valid_loss']) == pytest.approx(math.exp(expected))

def test_texts_of_one_word_have_no_change_to_pay_for():
    learn = learner(RNNTrainer(), rec := Recorder(), data=DataBunch(batches(sl=1), batches(sl=1)))
    learn.fit(1)
    assert np.isfinite(rec.loss_values()).all()

def test_predictions_are_those_of_one_go():
    learn = learner(RNNTrainer())
    scores, targets = learn.get_preds()
    learn.model.eval().reset()
    with torch.no_grad(): expected = torch.cat([learn.model(x)[0] for x, _ in learn.data.valid_dl])
    torch.testing.assert_close(scores, expected)
    assert targets.shape == (8, 7)

def test_a_fit_leaves_no_state_and_no_outputs():
    learn = learner(trainer := RNNTrainer())
    learn.fit(1)
    assert learn.model[0].hidden is None and trainer.raw is trainer.out is trainer.plain is None

def test_an_error_leaves_no_state_and_no_outputs():
    class Fails(Callback):
        _order = 80
        def after_loss(self): raise ZeroDivisionError
    learn = learner(trainer := RNNTrainer(), Fails())
    with pytest.raises(ZeroDivisionError): learn.fit(1)
    assert learn.model[0].hidden is None and trainer.plain is None
    learn.remove_cbs(learn.fails)
    learn.fit(1)

def test_a_cancelled_batch_gives_the_loss_back():
    class Cancels(Callback):
        _order = -30
        def after_backward(self): raise CancelBatchException
    learn = learner(RNNTrainer(9., 9.), Cancels(), look := Look(0), rec := Recorder(), lr=0.)
    learn.fit(1)
    assert rec.loss_values().tolist() == pytest.approx(look.losses[:2])

@pytest.mark.parametrize('pred', [nn.Embedding(VOCAB, VOCAB), nn.LSTM(1, 1, batch_first=True)])
def test_other_models_are_refused(pred):
    x = torch.zeros(2, 3, dtype=torch.long) if isinstance(pred, nn.Embedding) else torch.zeros(2, 3, 1)
    with pytest.raises(TypeError, match='RNNTrainer is for models that give'): learner(RNNTrainer(), m=pred, data=DataBunch([(x, x)], [(x, x)])).fit(1)

def test_a_stream_in_pytorchs_loader_is_shuffled_each_epoch():
    ds = nb.LM_PreLoader([list(range(2 + i, 22 + i)) for i in range(6)], bs=2, bptt=5, shuffle=True)
    seen = []
    class Sees(Callback):
        def begin_batch(self):
            if self.run.in_train and self.run.iter == 0: seen.append(self.run.xb.tolist())
    learner(RNNTrainer(), Sees(), data=DataBunch(DataLoader(ds, batch_size=2), batches())).fit(4)
    assert len({str(o) for o in seen}) > 1

def test_lesson_12s_loader_draws_one_order_an_epoch():
    train, _ = nb.get_lm_dls([list(range(2, 22))]*4, [list(range(2, 22))]*4, bs=2, bptt=5)
    train.dataset.batchify, calls = lambda f=train.dataset.batchify: (calls.append(1), f()), []
    learner(RNNTrainer(), data=DataBunch(train, batches())).fit(3)
    assert len(calls) == 3

@pytest.mark.parametrize('opt_func', [sgd_opt, optim.SGD])
@pytest.mark.parametrize('clip', [.01, 1e6])
def test_clipping(opt_func, clip):
    class Norm(Callback):
        def __init__(self, order): self._order, self.norms = order, []
        def after_backward(self): self.norms.append(torch.cat([p.grad.flatten() for p in self.run.model.parameters()]).norm().item())
    learner(RNNTrainer(), GradientClipping(clip), before := Norm(0), after := Norm(200), opt_func=opt_func).fit(1)
    assert after.norms == pytest.approx([min(n, clip) for n in before.norms], rel=1e-4)

@pytest.mark.parametrize('clip', [0, -1., math.nan])
def test_a_limit_that_is_none_is_refused(clip):
    with pytest.raises(ValueError, match='norm above 0'): GradientClipping(clip)

def test_trials_train_as_fits_do_and_leave_nothing_behind():
    calls = []
    class Counts(GradientClipping):
        def after_backward(self): calls.append(super().after_backward())
    learn = learner(RNNTrainer(), Counts(.1), data=DataBunch(batches(12), batches()))
    before = copy.deepcopy(learn.model.state_dict())
    learn.lr_find(max_iter=12, min_lr=1e-3, plot=False)
    assert len(calls) == 12 and learn.model[0].hidden is None
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())

def test_a_language_model_is_saved_and_resumed(tmp_path):
    learn = learner(RNNTrainer(), opt_func=adam_opt())
    learn.fit(1)
    learn.save(tmp_path/'lm.pt')
    other = learner(RNNTrainer(), opt_func=adam_opt(), data=learn.data)
    other.load(tmp_path/'lm.pt')
    torch.testing.assert_close(other.get_preds()[0], learn.get_preds()[0])

def test_a_model_of_another_size_isnt_loaded(tmp_path):
    learn = learner(RNNTrainer())
    learn.save(tmp_path/'lm.pt')
    with pytest.raises(ValueError, match='emb.weight'): learner(RNNTrainer(), m=get_language_model(VOCAB + 1, EMB, HID, 2)).load(tmp_path/'lm.pt')

def test_it_learns_a_repeating_text():
    text = torch.arange(2, 12).repeat(40)[None].repeat(4, 1)
    data = [(text[:, i:i+20], text[:, i+1:i+21]) for i in range(0, 380, 20)]
    learn = learner(RNNTrainer(), GradientClipping(1.), stats := AvgStatsCallback(accuracy_flat), m=get_language_model(VOCAB, 16, 24, 2, **dict.fromkeys(DROPS, .05)), data=DataBunch(data, data), opt_func=adam_opt(), lr=2e-2)
    learn.fit(6)
    assert stats.history[-1]['valid_accuracy_flat'] > .9
