"Lesson 12c: the classifier's encoder, heads, learners and files, beyond what the lesson shows."
import dataclasses, json, math, os, re, threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import exp.nb_12c as nb
from exp.nb_04 import Callback
from exp.nb_12 import Corpus, NumericalizeProcessor, TextList, TokenizeProcessor, clas_databunchify, default_spec_tok, FLD, lm_databunchify
from exp.nb_08 import CategoryProcessor, ItemList, LabeledData, SplitData

WORDS = [*default_spec_tok, FLD, *'good bad film a the plot actor not very dull'.split()]


@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)


def encoder(vocab=len(WORDS), n_layers=2): return nb.AWD_LSTM(vocab, 6, 8, n_layers)


def classifier(max_len=20, bptt=7, n_out=2): return nb.get_text_classifier(len(WORDS), 6, 8, 2, n_out, 1, bptt, max_len=max_len).eval()


def batch(texts, front=False, extra=0):
    n = max(map(len, texts), default=0) + extra
    return torch.tensor([[1]*(n - len(t)) + t if front else t + [1]*(n - len(t)) for t in texts], dtype=torch.long)


def dataset(corpus, labels, vocab=('neg', 'pos')):
    data = LabeledData(TextList(corpus), ItemList(list(labels)), proc_y=CategoryProcessor(vocab=vocab) if vocab else None)
    data.proc_x = [TokenizeProcessor(max_workers=1), NumericalizeProcessor(vocab=WORDS)]
    return data


def clas_data(n=24, bs=4, **kw):
    g = torch.Generator().manual_seed(1)
    lists = [torch.randint(9, len(WORDS), (int(torch.randint(1, 30, (), generator=g)),), generator=g).tolist() for _ in range(n)]
    labels = ['pos' if WORDS.index('good') in t else 'neg' for t in lists]
    ds = [dataset(Corpus.from_lists(lists[i::2]), labels[i::2]) for i in (0, 1)]
    return clas_databunchify(SplitData(*ds), bs, **kw)


def lm_learner(backwards=False):
    texts = [dataset(Corpus.from_lists([torch.randint(2, len(WORDS), (50,)).tolist() for _ in range(8)]), [0]*8, None) for _ in range(2)]
    return nb.lm_learner(lm_databunchify(SplitData(*texts), 4, 10, backwards=backwards), 6, 8, 2, progress=False, splitter=nb.lm_splitter)


def text_learner(data=None, **kw):
    return nb.text_classifier_learner(data or clas_data(), 6, 8, 2, bptt=7, max_len=20, progress=False, cuda=False, **kw)


def backward_learner(): return text_learner(clas_data(backwards=True))


texts_of_ids = st.lists(st.lists(st.integers(2, len(WORDS) - 1), max_size=60), min_size=1, max_size=6)


# ---- texts of any length

@settings(max_examples=40)
@given(texts=texts_of_ids, front=st.booleans(), extra=st.integers(0, 9))
def test_a_texts_scores_do_not_depend_on_its_batch(texts, front, extra):
    torch.manual_seed(0)
    model = classifier()
    with torch.no_grad():
        together = model(batch(texts, front, extra))[0]
        alone = torch.cat([model(batch([t]))[0] for t in texts])
    assert (together - alone).abs().max() < 1e-5


@settings(max_examples=40)
@given(texts=texts_of_ids, bptt=st.integers(1, 70), max_len=st.integers(1, 80))
def test_outputs_are_those_of_the_encoder_over_the_last_words(texts, bptt, max_len):
    torch.manual_seed(0)
    module = encoder().eval()
    with torch.no_grad():
        raw, outs, mask = nb.SentenceEncoder(module, bptt, max_len=max_len)(batch(texts))
        for t, o, m in zip(texts, outs[-1], mask):
            assert m.sum() == min(len(t), max_len)
            assert not o[~m].any()
            module.reset()
            if t: torch.testing.assert_close(o[m], module(torch.tensor([t]))[0][-1][0, -max_len:], atol=1e-5, rtol=1e-4)


@given(texts=st.lists(st.lists(st.integers(2, 9), max_size=8), min_size=1, max_size=5), pads=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=5, max_size=5))
def test_left_aligned_finds_the_texts(texts, pads):
    rows = [[1]*a + t + [1]*b for t, (a, b) in zip(texts, pads)]
    aligned, lens = nb.left_aligned(batch(rows))
    assert lens.tolist() == [len(t) for t in texts]
    assert torch.equal(aligned, batch(texts))


def test_padding_inside_of_a_text_belongs_to_it():
    assert nb.left_aligned(torch.tensor([[1, 5, 1, 6, 1]]))[0].tolist() == [[5, 1, 6]]


def test_a_batch_without_columns_or_with_padding_only_has_finite_scores():
    model = classifier()
    for ids in (torch.zeros(3, 0, dtype=torch.long), torch.ones(3, 4, dtype=torch.long)):
        scores = model(ids)[0]
        assert scores.shape == (3, 2) and scores.isfinite().all()


def test_a_text_longer_than_any_window_is_read_to_its_end():
    model = classifier(max_len=10)
    long = torch.randint(9, len(WORDS), (1, 500))
    other = long.clone()
    other[0, -1] = 9 + (long[0, -1] - 8) % 8
    assert not torch.equal(model(long)[0], model(other)[0])


def test_a_short_text_beside_a_long_one_keeps_all_of_its_words():
    _, _, mask = nb.SentenceEncoder(encoder(), 7, max_len=20)(batch([[5, 9], list(range(2, 12))*20]))
    assert mask.sum(1).tolist() == [2, 20]


def test_empty_texts_can_be_trained_on():
    model = classifier().train()
    scores, raw, outs = model(batch([[], []]))
    scores.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_no_gradient_reaches_words_before_the_window():
    module = encoder().train()
    ids = torch.tensor([list(range(2, len(WORDS)))])
    nb.SentenceEncoder(module, 4, max_len=4)(ids)[1][-1].sum().backward()
    assert not module.emb.weight.grad[:10].any()


def test_nothing_is_kept_for_gradients_of_words_before_the_window():
    module = encoder().train()
    read, kept = module.forward, []
    def noted(ids):
        kept.append((len(kept), torch.is_grad_enabled()))
        return read(ids)
    module.forward = noted
    nb.SentenceEncoder(module, 5, max_len=10)(batch([list(range(2, 12))*4 + [5]*2, [5]*17]))   # tails begin with words 32 and 7
    assert [on for _, on in kept] == [False, True, True, True, False, False, True, True, True]


def test_a_long_prediction_shows_how_far_it_is(monkeypatch):
    learn, seen = text_learner(), []
    def with_bar(results, total, what='', at=None):
        for o in results:
            seen.append((at(), total, what))
            yield o
    monkeypatch.setattr(nb, 'with_bar', with_bar)
    learn.probs(Corpus.from_lists([[5]*n for n in (3, 9, 4, 7)]), bs=2)
    assert seen == [(16, 23, 'predicting'), (23, 23, 'predicting')]


@pytest.mark.parametrize('progress', [True, False])
def test_training_shows_bars_if_asked(progress):
    made = [nb.text_classifier_learner(clas_data(), 6, 8, 2, progress=progress, cuda=False), nb.lm_learner(lm_learner().data, 6, 8, 2, progress=progress)]
    for learn in made: assert any(isinstance(cb, nb.ProgressCallback) for cb in learn.cbs) == progress


def test_a_pass_leaves_no_state_behind():
    s = nb.SentenceEncoder(encoder(), 5)
    s(batch([[5, 6, 7]]))
    assert s.module.hidden is None


@pytest.mark.parametrize('kw', [dict(bptt=0), dict(bptt=5, max_len=0)])
def test_impossible_windows_are_refused(kw):
    with pytest.raises(ValueError, match='1 or more'): nb.SentenceEncoder(encoder(), **kw)


def test_pooling_equals_a_loop():
    x, mask = torch.randn(4, 7, 3), torch.arange(7) < torch.tensor([[7], [3], [1], [0]])
    for row, o, m in zip(nb.masked_concat_pool(x, mask), x, mask):
        o = o[m]
        torch.testing.assert_close(row, torch.cat([o[-1], o.amax(0), o.mean(0)]) if len(o) else torch.zeros(9))


def test_a_batch_of_one_text_can_be_trained_on():
    head = nb.PoolingLinearClassifier([18, 5, 2], [.1, .1]).train()
    before = head.layers[0].running_mean.clone()
    out = head(nb.SentenceEncoder(encoder(), 5)(batch([[5, 6]])))[0]
    out.sum().backward()
    assert out.isfinite().all() and torch.equal(before, head.layers[0].running_mean)


def test_layers_and_drops_must_fit():
    with pytest.raises(ValueError, match='2 layers'): nb.PoolingLinearClassifier([18, 5, 2], [.1])


def test_penalties_without_any_word_are_zero():
    t = nb.TextTrainer()
    t.raw = t.out = torch.zeros(2, 3, 4)
    assert t.penalty() == 0


# ---- vocabularies and weights

def test_match_embeds_puts_every_known_word_in_its_place():
    lm = nb.get_language_model(len(WORDS), 6, 8, 2)
    new = ['xxunk', 'xxpad', 'nothing', *reversed(WORDS[9:])]
    old = lm.state_dict()
    got = nb.match_embeds(old, WORDS, new)
    for i, w in enumerate(new):
        want = {k: old[k][WORDS.index(w)] if w in WORDS else old[k].mean(0) for k in ('0.emb.weight', '1.decoder.bias')}
        for k, v in want.items(): torch.testing.assert_close(got[k][i], v)
    assert torch.equal(got['0.emb.weight'], got['0.emb_dp.emb.weight']) and torch.equal(got['0.emb.weight'], got['1.decoder.weight'])
    assert torch.equal(got['0.rnns.0.module.weight_hh_l0'], old['0.rnns.0.module.weight_hh_l0'])
    nb.get_language_model(len(new), 6, 8, 2).load_state_dict(got)


def test_matching_to_the_same_vocabulary_changes_nothing():
    old = nb.get_language_model(len(WORDS), 6, 8, 2).state_dict()
    assert all(torch.equal(v, old[k]) for k, v in nb.match_embeds(old, WORDS, WORDS).items())


def test_match_embeds_leaves_its_input_alone():
    old = nb.get_language_model(len(WORDS), 6, 8, 2).state_dict()
    kept = {k: v.clone() for k, v in old.items()}
    nb.match_embeds(old, WORDS, WORDS[::-1])
    assert all(torch.equal(v, kept[k]) for k, v in old.items())


def test_match_embeds_refuses_another_models_vocabulary():
    with pytest.raises(ValueError, match='belong together'): nb.match_embeds(nb.get_language_model(5, 6, 8, 2).state_dict(), WORDS, WORDS)


def test_an_encoders_file_and_a_language_models_give_the_same(tmp_path):
    learn = lm_learner()
    a, b = nb.encoder_parts(nb.save_encoder(learn, tmp_path/'e.pt')), nb.encoder_parts(learn.save_lm(tmp_path/'lm.pt'))
    assert a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    clas = nb.text_classifier_learner(clas_data(), encoder=tmp_path/'e.pt', progress=False, cuda=False)
    assert torch.equal(clas.model[0].module.emb.weight, learn.model[0].emb.weight)


def test_files_hold_each_weight_once(tmp_path):
    files = nb.save_encoder(lm_learner(), tmp_path/'encoder.pt'), text_learner().export(tmp_path/'learner.pt')
    for file, key, name in zip(files, ('state', 'model'), ('emb.weight', '0.module.emb.weight')):
        state = torch.load(file, weights_only=True)[key]
        same = [k for k, v in state.items() if v.data_ptr() == state[name].data_ptr()]
        assert len(same) == 2 and all(k.endswith('emb.weight') for k in same)


def test_files_and_data_must_be_read_in_one_direction(tmp_path):
    "Vocabularies are equal in both directions, so nothing else would tell."
    forward, backward = lm_learner(), lm_learner(backwards=True)
    files = [nb.save_encoder(backward, tmp_path/'encoder.pt'), backward.save_lm(tmp_path/'lm.pt')]
    assert [nb.encoder_parts(f).backwards for f in files] == [True, True]
    for f in files:
        with pytest.raises(ValueError, match=f'{f.name} has learned to read from the end'): nb.text_classifier_learner(clas_data(), encoder=f, progress=False)
        nb.text_classifier_learner(clas_data(backwards=True), encoder=f, progress=False)
    with pytest.raises(ValueError, match='lm.pt'): nb.finetune_learner(forward.data, files[1], progress=False)
    learn = text_learner()
    with pytest.raises(ValueError, match='from the beginning'): nb.load_learner(learn.export(tmp_path/'m.pt'), clas_data(backwards=True))


def test_a_stage_needs_a_rate_for_each_group():
    with pytest.raises(ValueError, match='3 rates, and the learner 4 groups'): nb.fit_stage(text_learner(), nb.Stage(0, 1, [.1, .1, .1]))


def test_padding_has_to_be_number_1():
    data = clas_data()
    data.train_ds.proc_x[1].vocab = [WORDS[1], WORDS[0], *WORDS[2:]]
    with pytest.raises(ValueError, match='number 1'): nb.text_classifier_learner(data, 6, 8, 2)

def test_loaders_that_pad_with_another_number(tmp_path):
    data, other = clas_data(), clas_data(pad_idx=0)
    with pytest.raises(ValueError, match='they pad with 0'): nb.text_classifier_learner(other, 6, 8, 2)
    file = nb.text_classifier_learner(data, 6, 8, 2).export(tmp_path/'model.pt')
    with pytest.raises(ValueError, match='model.pt takes number 1 for padding, and the data pads with 0'): nb.load_learner(file, other)
    nb.load_learner(file, data).validate()

@pytest.mark.parametrize('weight_p', [0., .5])
def test_mixed_precision_trains_all_weights_where_beginnings_are_not_kept(weight_p):
    model = nb.get_text_classifier(50, 6, 8, 2, n_out=2, pad_token=1, bptt=5, max_len=3, weight_p=weight_p).train()
    with torch.autocast('cpu', torch.bfloat16): out = model(torch.randint(5, 50, (4, 40)))[0]
    out.float().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []

def test_what_is_the_same_is_kept_once():
    encoder = nb.get_text_classifier(50, 6, 8, 2, n_out=2, pad_token=1, bptt=5)[0]
    for mode in (True, False):
        raw, outs, _ = encoder.train(mode)(torch.randint(5, 50, (4, 12)))
        assert len(raw) == len(outs) == 1 and raw[0] is outs[0]


def test_outputs_that_a_dropout_has_changed_are_kept_beside_the_raw_ones():
    module = encoder()
    read = module.forward
    module.forward = lambda ids: (o := read(ids)[0], [*o[:-1], o[-1]*2])
    raw, outs, mask = nb.SentenceEncoder(module, 5, max_len=6)(batch([[5, 6], list(range(2, 12))*2]))
    assert mask.sum() == 8 and torch.equal(outs[0], raw[0]*2) and raw[0][mask].any(1).all() and not raw[0][~mask].any()


def test_texts_of_very_different_lengths_take_the_room_of_their_tails():
    lens = [900, 40, 500, 3]
    raw, outs, mask = nb.SentenceEncoder(encoder(), 7, max_len=20)(batch([[5 + i % 8 for i in range(n)] for n in lens]))
    assert mask.tolist() == [[at < min(n, 20) for at in range(20)] for n in lens] and outs[0].shape[:2] == (4, 20)



def test_what_is_no_learner_is_named_for_what_it_is(tmp_path):
    for file in (nb.save_encoder(lm_learner(), tmp_path/'encoder.pt'), lm_learner().save_lm(tmp_path/'lm.pt')):
        with pytest.raises(ValueError, match=f'{file.name} holds an encoder or a language model'): nb.load_learner(file)
    with pytest.raises(FileNotFoundError, match='no file'): nb.load_learner(tmp_path/'none.pt')


def test_finetune_learner_goes_on_from_a_file(tmp_path):
    learn = lm_learner()
    file = learn.save_lm(tmp_path/'lm.pt')
    again = nb.finetune_learner(learn.data, file, progress=False)
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in again.model.state_dict().items())
    assert len(again.splitter(again.model)) == 3


def test_a_model_of_other_texts_is_warned_of(tmp_path, monkeypatch):
    learn = lm_learner()
    state, vocab, sizes = nb.lm_parts(learn.save_lm(tmp_path/'lm.pt'))
    monkeypatch.setattr(nb, 'lm_parts', lambda path: (state, [*vocab[:2], *(f'▁{i}' for i in range(len(vocab) - 2))], sizes))
    with pytest.warns(UserWarning, match='lm.pt knows only .* same tokenizer'): nb.finetune_learner(learn.data, tmp_path/'lm.pt', progress=False)


def test_an_encoder_of_other_words_is_refused(tmp_path):
    learn = lm_learner()
    state, vocab, sizes, _ = nb.encoder_parts(nb.save_encoder(learn, tmp_path/'e.pt'))
    model = classifier()
    with pytest.raises(ValueError, match='differ from number 1 on'): nb.load_encoder(model, state, [vocab[0], *vocab[:0:-1]], vocab)
    with pytest.raises(ValueError, match="don't fit"): nb.load_encoder(nb.get_text_classifier(len(WORDS), 4, 8, 2, 2, 1, 7), state, vocab, vocab)


@pytest.mark.parametrize('content', [b'', b'not a file of ours', None])
def test_a_broken_encoder_is_refused_by_name(tmp_path, content):
    file = tmp_path/'broken.pt'
    if content is None: file.write_bytes(nb.save_encoder(lm_learner(), tmp_path/'e.pt').read_bytes()[:700])
    else: file.write_bytes(content)
    with pytest.raises(ValueError, match='broken.pt'): nb.encoder_parts(file)


def test_an_encoder_with_code_in_it_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/ran',)
    torch.save(dict(format=nb._encoder_format, state=Evil()), tmp_path/'evil.pt')
    with pytest.raises(ValueError, match='evil.pt'): nb.encoder_parts(tmp_path/'evil.pt')
    assert not (tmp_path/'ran').exists()


@pytest.mark.parametrize('part', ['vocab', 'sizes', 'state', 'backwards'])
def test_an_encoder_that_lacks_a_part_is_refused_by_name(tmp_path, part):
    file = nb.save_encoder(lm_learner(), tmp_path/'broken.pt')
    saved = torch.load(file, weights_only=True)
    del saved[part]
    torch.save(saved, file)
    with pytest.raises(ValueError, match='broken.pt: its description is damaged'): nb.encoder_parts(file)


# ---- groups, stages, fits

def test_groups_hold_every_parameter_once():
    for model, split in ((nb.get_language_model(20, 6, 8, 3), nb.lm_splitter), (nb.get_text_classifier(20, 6, 8, 3, 2, 1, 7), nb.awd_lstm_clas_splitter)):
        ps = [p for g in split(model) for p in g]
        assert len(ps) == len(set(ps)) and set(ps) == set(model.parameters())


@pytest.mark.parametrize('n', range(-4, 4))
def test_frozen_groups_do_not_move_and_others_do(n):
    learn = text_learner(drop_mult=0.)
    learn.data.valid_dl, learn.logger = None, lambda *a: None
    before = [[p.detach().clone() for p in g] for g in learn.splitter(learn.model)]
    nb.freeze_to(learn, n)
    learn.fit(1)
    moved = [any(not torch.equal(p, q) for p, q in zip(g, old)) for g, old in zip(learn.splitter(learn.model), before)]
    assert moved == [i >= n % 4 for i in range(4)]


def test_freeze_to_needs_groups():
    with pytest.raises(ValueError, match='groups'): nb.freeze_to(nb.Learner(nn.Linear(2, 2), None, None), -1)


@pytest.mark.parametrize('n', [1, 2, 3, 4, 5, 6])
def test_stages_thaw_from_the_top_and_end_with_everything(n):
    stages = nb.gradual_stages(n, lr=1., epochs=3)
    assert stages[-1].freeze_to == 0 and stages[-1].epochs == 3
    assert [s.freeze_to for s in stages[:-1]] == [-1, -2, -3][:n - 1]
    for i, s in enumerate(stages):
        assert len(s.lrs) == n and math.isclose(s.lrs[-1], .5**i)
        assert all(math.isclose(a*2.6, b) for a, b in zip(s.lrs, s.lrs[1:]))


def test_a_stage_has_a_cycle_for_each_group_and_leaves_no_callback():
    learn = text_learner()
    learn.data.valid_dl, learn.logger = None, lambda *a: None
    nb.fit_stage(learn, stage := nb.gradual_stages(4)[-1])
    rates = [h['lr'] for h in learn.opt.hypers]
    assert all(r < peak/2 for r, peak in zip(rates, stage.lrs)) and all(math.isclose(a*2.6, b) for a, b in zip(rates, rates[1:]))
    assert [type(c).__name__ for c in learn.cbs].count('ParamScheduler') == 0


class Hypers(Callback):
    "What the optimizer has in each training batch, for each group."
    _order = 2
    def __init__(self): self.lrs, self.moms = [], []
    def begin_batch(self):
        if not self.run.in_train: return
        for name, o in (('lr', self.lrs), ('mom', self.moms)): o.append([h[name] for h in self.run.opt.hypers])


@pytest.mark.parametrize('kw, ends, middle', [({}, .8, .7), (dict(moms=(.95, .85)), .95, .85)])
def test_momentum_goes_against_the_rate(kw, ends, middle):
    learn = text_learner()
    learn.data.valid_dl, learn.logger = None, lambda *a: None
    nb.fit_stage(learn, nb.Stage(0, 10, [.001, .002, .003, .004]), h := Hypers(), **kw)
    lrs, moms = np.array(h.lrs), np.array(h.moms)
    assert len(moms) == 30 and (moms == moms[:, :1]).all()   # all groups alike
    assert moms[0, 0] == pytest.approx(ends) and moms[-1, 0] == pytest.approx(ends, abs=.005) and moms.min() == pytest.approx(middle)
    assert (lrs.argmax(0) == moms.argmin(0)).all() and 0 < lrs[:, 0].argmax() < 15
    assert (np.diff(lrs, axis=0)*np.diff(moms, axis=0) < 0).all()


@pytest.mark.parametrize('n', [2, 24])
def test_a_batch_may_be_larger_than_the_data(n):
    learn = text_learner(data := clas_data(n, bs=1000))
    learn.logger, rows = lambda *a: None, []
    class Rows(Callback):
        def begin_batch(self): rows.append(len(self.run.xb))
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    nb.fit_gradually(learn, epochs=1, cbs=lambda: Rows())
    assert rows == [n//2]*8 and len(data.train_dl) == 1
    assert all(p.isfinite().all() and not torch.equal(p, before[k]) for k, p in learn.model.named_parameters())
    assert math.isfinite(learn.validate()['loss']) and len(learn.get_preds()[1]) == n//2 and learn.predict('good film').label in learn.vocab


@pytest.mark.parametrize('error', [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize('when', ['begin_batch', 'after_pred', 'after_backward', 'begin_validate'])
def test_an_interrupted_thaw_leaves_a_learner_that_works(error, when):
    learn, stages = text_learner(), []
    learn.logger, cbs = lambda *a: None, [*learn.cbs]
    class Fails(Callback):
        def fail(self):
            if len(stages) == 2: raise error   # in the second stage of four
    setattr(Fails, when, Fails.fail)
    def made(): return stages.append(1) or Fails()
    with pytest.raises(error): nb.fit_gradually(learn, epochs=1, cbs=made)
    assert learn.cbs == cbs and learn.learn is None
    p = learn.predict('good film').probs
    assert p.isfinite().all() and torch.equal(p, learn.predict('good film').probs)
    def moved_by(fit):
        before = [[p.detach().clone() for p in g] for g in learn.splitter(learn.model)]
        fit()
        return [any(not torch.equal(p, q) for p, q in zip(g, old)) for g, old in zip(learn.splitter(learn.model), before)]
    assert all(moved_by(lambda: learn.fit(1)))
    assert all(moved_by(lambda: nb.fit_gradually(learn, epochs=1))) and all(p.requires_grad and p.isfinite().all() for p in learn.model.parameters())


def test_two_fits_with_one_seed_give_the_same_weights():
    def fitted():
        torch.manual_seed(3)
        learn = text_learner()
        learn.data.valid_dl, learn.logger = None, lambda *a: None
        torch.manual_seed(4)
        nb.fit_gradually(learn, epochs=1)
        return learn.model.state_dict()
    a, b = fitted(), fitted()
    assert all(torch.equal(a[k], b[k]) for k in a)


# ---- predictions

TEXTS = ['A good film!', '', 'bad', 'the plot is very very VERY dull ' * 40, 'Unknown words only?', '\n\n', 'xxpad xxpad']


def test_predictions_alone_and_together_agree():
    learn = text_learner()
    together = learn.predict_probs(TEXTS)
    alone = torch.stack([learn.predict(t).probs for t in TEXTS])
    assert (together - alone).abs().max() < 1e-5
    for bs in (1, 2, 100): assert (learn.predict_probs(TEXTS, bs=bs) - together).abs().max() < 1e-5
    torch.testing.assert_close(together.sum(1), torch.ones(len(TEXTS)))


def test_no_texts_give_no_predictions():
    learn = text_learner()
    assert learn.predict_many([]) == [] and learn.predict_probs([]).shape == (0, 2)


def test_files_and_strings_are_the_same(tmp_path):
    (tmp_path/'a.txt').write_text(TEXTS[0], encoding='utf-8')
    learn = text_learner()
    assert torch.equal(learn.predict(tmp_path/'a.txt').probs, learn.predict(TEXTS[0]).probs)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path/'b.txt').write_bytes(b'\xff\xfe\x00bad')
    with pytest.raises(Exception, match='b.txt'): text_learner().predict(tmp_path/'b.txt')


def test_predicting_changes_nothing():
    learn = text_learner()
    learn.model.train()
    rng, weights = torch.get_rng_state(), {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.predict_many(TEXTS)
    learn.explain(TEXTS[0])
    assert learn.model.training and torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, weights[k]) for k, v in learn.model.state_dict().items())


def test_a_backward_learner_reads_texts_from_their_end():
    fwd = text_learner()
    bwd = backward_learner()
    bwd.model.load_state_dict(fwd.model.state_dict())
    ids = fwd.recipe.ids(TEXTS)
    assert torch.equal(bwd.probs(ids), fwd.probs(ids)) and torch.equal(bwd.recipe.ids(TEXTS)[0], ids[0].flip(0))
    both = nb.TextEnsemble([fwd, bwd])
    torch.testing.assert_close(both.predict_probs(TEXTS), (fwd.predict_probs(TEXTS) + bwd.predict_probs(TEXTS))/2)
    torch.testing.assert_close(both.probs(ids), both.predict_probs(TEXTS))
    assert sum(bwd.interpret().targets == 1) == sum(both.interpret().targets == 1)
    assert both.show_results(3).true.tolist() == fwd.show_results(3).true.tolist()


@pytest.mark.parametrize('multi', [False, True])
def test_an_ensembles_scores_are_those_of_the_mean_probabilities(multi):
    torch.manual_seed(3)
    a, b = text_learner(), text_learner()
    for o in (a, b): o.recipe = dataclasses.replace(o.recipe, multi=multi)
    both, ids = nb.TextEnsemble([a, b]), a.recipe.ids(TEXTS)
    torch.testing.assert_close(both.probs(ids), (a.probs(ids) + b.probs(ids))/2)
    b.model[1].layers[-1].bias.data += torch.tensor([200., -200.])   # surer than a float can say
    assert both.scores(ids).isfinite().all()


def test_an_ensemble_explains():
    both = nb.TextEnsemble([text_learner(), text_learner()])
    e = both.explain('good film bad plot', 'pos')
    def odds(t): return math.log((p := both.predict(t).probs[1].item())/(1 - p))
    assert e.words == ['good', 'film', 'bad', 'plot'] and math.isclose(e.effects[2], odds('good film bad plot') - odds('good film plot'), abs_tol=1e-4)


def test_an_ensemble_needs_learners_of_the_same_labels():
    with pytest.raises(ValueError, match='at least one'): nb.TextEnsemble([])
    a, b = text_learner(), text_learner()
    b.recipe = dataclasses.replace(b.recipe, labels=['no', 'yes'])
    with pytest.raises(ValueError, match='same labels'): nb.TextEnsemble([a, b])


def test_texts_with_several_labels(tmp_path):
    lists = [[2, WORDS.index('good'), 3], [2, WORDS.index('dull'), WORDS.index('plot'), 3]]*6
    ys = [torch.tensor([1., 0., 1.]), torch.tensor([0., 1., 1.])]*6
    ds = dataset(Corpus.from_lists(lists), ys, None)
    data = clas_databunchify(SplitData(ds, ds), 4)
    data.c_out = 3
    learn = nb.text_classifier_learner(data, 6, 8, 2, bptt=7, progress=False, cuda=False, drop_mult=0.)
    learn.logger = lambda *a: None
    assert learn.recipe.multi and len(learn.vocab) == 3
    nb.fit_gradually(learn, lr=3e-2, epochs=30, gradual=False)
    p = learn.predict('good')
    assert p.index == [0, 2] and p.label == [learn.vocab[0], learn.vocab[2]]
    assert learn.validate()['accuracy_multi'] == 1.
    assert load(learn, tmp_path).predict('good').index == [0, 2]
    assert learn.explain('good').words == ['good']


def load(learn, tmp_path): return nb.load_learner(learn.export(tmp_path/'model.pt'))


# ---- explanations, interpretation

@given(st.lists(st.sampled_from(['xxbos', 'xxeos', 'xxpad', 'xxmaj', 'xxup', 'xxrep', 'xxwrep', '4', 'a', 'good', 'xxunk']), max_size=30), st.integers(1, 10))
def test_spans_are_in_order_apart_and_cover_every_word(tokens, most):
    spans = nb.word_spans(tokens, most)
    assert len(spans) <= most
    assert all(a < b for a, b in spans) and all(b <= c for (_, b), (c, _) in zip(spans, spans[1:]))
    covered = {i for a, b in spans for i in range(a, b)}
    assert all(i in covered for i, t in enumerate(tokens) if t in ('a', 'good', 'xxunk'))


def test_marks_of_columns_are_no_words():
    tokens = ['xxbos', 'xxfld', '1', 'xxmaj', 'one', '2', 'xxfld', '2', 'xxrep', '3', 'x', 'xxfld', '3', 'xxeos']
    assert nb.word_spans(tokens) == [(3, 5), (5, 6), (8, 11)]
    assert nb.word_spans(tokens, most=2) == [(3, 6), (8, 11)]


def test_an_explanation_is_what_happens_without_the_word():
    learn = text_learner()
    e = learn.explain('good film bad plot', 'pos')
    def odds(t): return math.log((p := learn.predict(t).probs[1].item())/(1 - p))
    assert e.words == ['good', 'film', 'bad', 'plot'] and e.label == 'pos'
    assert math.isclose(e.effects[2], odds('good film bad plot') - odds('good film plot'), abs_tol=1e-4)
    assert len(e.table(2)) == 2 and 'film' in e._repr_html_()
    with pytest.raises(ValueError, match='no label'): learn.explain('good', 'perhaps')


def several():
    learn = backward_learner()
    learn.recipe = dataclasses.replace(learn.recipe, multi=True)
    return learn


@pytest.mark.parametrize('make', [backward_learner, lambda: nb.TextEnsemble([text_learner(), backward_learner()]), lambda: nb.TextEnsemble([backward_learner(), text_learner()]), several], ids=['backwards', 'both', 'both, backwards first', 'several labels'])
def test_an_explanation_does_not_depend_on_the_direction_of_reading(make):
    learn, words = make(), 'Actor GOOD Zebra film the very dull dull plot'.split()
    def odds(words):
        p = learn.predict(' '.join(words)).probs[0].item()
        return math.log(p/(1 - p))
    e = learn.explain(' '.join(words), 'neg')
    assert e.words == words and e.label == 'neg' and e.prob == pytest.approx(learn.predict(' '.join(words)).probs[0].item())
    assert e.effects == pytest.approx([odds(words) - odds(words[:i] + words[i+1:]) for i in range(len(words))], abs=1e-5)


def shown(e, how):
    "The words that an explanation shows, in order, with how blue each is: the blue of its colour less the red."
    if how == 'html': return [(w, int(b) - int(r)) for r, b, w in re.findall(r'rgb\((\d+),\d+,(\d+)\)[^>]*>([^<]*)', e._repr_html_())]
    placed = sorted(e.plot(width=20).texts, key=lambda t: (-t.get_position()[1], t.get_position()[0]))
    nb.plt.close('all')
    return [(t.get_text(), (c := t.get_bbox_patch().get_facecolor())[2] - c[0]) for t in placed]


@pytest.mark.parametrize('how', ['plot', 'html'])
def test_what_speaks_for_a_label_is_blue_and_what_against_red(how):
    words, effects = 'good bad the awful plot'.split(), [2., -1., .5, -2., 1.]
    drawn, blue = zip(*shown(nb.Explanation('pos', .7, words, effects), how))
    assert list(drawn) == words and [b > 0 for b in blue] == [e > 0 for e in effects]
    assert blue[0] > blue[4] > blue[2] and blue[3] < blue[1]   # the more, the deeper


@pytest.mark.parametrize('text', ['', '<b>& $5 "quoted"</b> \\frac', 'word '*900, 'two\nlines\n\n'])
def test_any_text_can_be_explained_and_drawn(text):
    e = text_learner().explain(text)
    assert len(e.words) == len(e.effects) <= 400 and '<b>&' not in e._repr_html_().split('</p>')[1]
    e.plot().figure.canvas.draw()
    nb.plt.close('all')


def test_unknown_words_keep_their_names_in_an_explanation():
    assert text_learner().explain('a Zebra film').words == ['a', 'Zebra', 'film']


def test_interpretation_and_validation_agree():
    learn = text_learner()
    interp = learn.interpret()
    assert math.isclose(interp.accuracy, learn.validate()['accuracy'], abs_tol=1e-6)
    worst = interp.worst_texts(3, width=40)
    assert len(worst) == 3 and worst.loss.is_monotonic_decreasing and worst.text.str.len().max() <= 43
    assert len(learn.show_results(3)) == 3


@pytest.mark.parametrize('make', [text_learner, backward_learner])
def test_the_texts_with_the_largest_losses_are_shown_in_order(make):
    learn = make()
    ds, model = learn.data.valid_ds, learn.model.eval()
    read = [o.tolist() for o in ds.x.items]
    with torch.no_grad(): losses = [nn.functional.cross_entropy(model(batch([t]))[0], torch.tensor([int(y)])).item() for t, y in zip(read, ds.y.items)]
    texts = [' '.join(WORDS[i] for i in (t[::-1] if learn.recipe.backwards else t)) for t in read]
    worst = sorted(range(12), key=lambda i: -losses[i])
    for n in (5, 100):
        table = learn.interpret().plot_top_losses(n)
        assert list(table.index) == worst[:n] and list(table.text) == [texts[i] for i in worst[:n]]
        assert list(table.loss) == pytest.approx([losses[i] for i in worst[:n]], abs=1e-4)
        assert list(table.true) == [learn.vocab[int(ds.y.items[i])] for i in worst[:n]]


# ---- files

def test_a_loaded_learner_predicts_the_same(tmp_path):
    learn = text_learner()
    again = load(learn, tmp_path)
    assert torch.equal(again.predict_probs(TEXTS), learn.predict_probs(TEXTS)) and again.vocab == learn.vocab
    with pytest.raises(AttributeError, match='without data'): again.validate()


def test_a_loaded_learner_trains_with_data(tmp_path):
    learn = text_learner()
    again = nb.load_learner(learn.export(tmp_path/'m.pt'), learn.data)
    again.logger = lambda *a: None
    assert again.validate() == learn.validate()
    again.fit(1)


def test_data_of_other_labels_or_words_is_refused(tmp_path):
    learn = text_learner()
    file = learn.export(tmp_path/'m.pt')
    other = clas_data()
    other.train_ds.proc_y.vocab = ['no', 'yes']
    with pytest.raises(ValueError, match='labels'): nb.load_learner(file, other)
    other = clas_data()
    other.train_ds.proc_x[1].vocab = WORDS[::-1]
    with pytest.raises(ValueError, match='vocabulary'): nb.load_learner(file, other)


@pytest.mark.parametrize('spoil', ['cut', 'empty', 'parts', 'rules', 'weights'])
def test_a_damaged_file_is_refused_by_name(tmp_path, spoil):
    file = text_learner().export(tmp_path/'bad.pt')
    saved = torch.load(file, weights_only=True)
    parts = nb.json.loads(saved['parts'])
    if spoil == 'cut': file.write_bytes(file.read_bytes()[:2000])
    elif spoil == 'empty': file.write_bytes(b'')
    else:
        if spoil == 'parts': saved['parts'] = '{}'
        if spoil == 'rules': saved['parts'] = nb.json.dumps(parts | dict(tokens=parts['tokens'] | dict(pre_rules=['os.system'])))
        if spoil == 'weights': saved['model'].pop('0.module.emb.weight')
        torch.save(saved, file)
    with pytest.raises(ValueError, match='bad.pt'): nb.load_learner(file)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self): return (exec, ("raise SystemExit('ran')",))
    torch.save(dict(format='text learner, 1', parts=Evil(), model={}), tmp_path/'evil.pt')
    with pytest.raises(ValueError, match='evil.pt'): nb.load_learner(tmp_path/'evil.pt')


def test_a_tokenizer_of_ones_own_is_not_exported(tmp_path):
    learn = text_learner()
    learn.recipe = dataclasses.replace(learn.recipe, tokens=TokenizeProcessor(tokenizer=str.split))
    with pytest.raises(ValueError, match='of your own'): learn.export(tmp_path/'m.pt')


def test_a_rule_of_ones_own_is_exported_by_name(tmp_path):
    def louder(t): return t.upper()
    learn = text_learner()
    learn.recipe = dataclasses.replace(learn.recipe, tokens=TokenizeProcessor(pre_rules=[louder], max_workers=1))
    file = learn.export(tmp_path/'m.pt', known=[louder])
    assert torch.equal(nb.load_learner(file, known=[louder]).predict_probs(TEXTS), learn.predict_probs(TEXTS))
    assert torch.equal(nb.load_learner(file, known=iter([louder])).predict_probs(TEXTS), learn.predict_probs(TEXTS))
    with pytest.raises(ValueError, match='m.pt.*known=.louder.'): nb.load_learner(file)
    with pytest.raises(TypeError, match='functions, and not 3'): nb.load_learner(file, known=[3])


def test_data_that_does_not_know_its_processors_is_refused():
    data = clas_data()
    data.train_ds.proc_x = None
    with pytest.raises(ValueError, match='proc_x'): nb.text_classifier_learner(data, 6, 8, 2)


# ---- what ends a fit, and what fits a learner

def test_a_loss_that_is_nan_ends_all_stages():
    class Poison(Callback):
        fits = 0
        def begin_fit(self):
            Poison.fits += 1
            with torch.no_grad(): self.model[1].layers[-1].weight.fill_(float('nan'))
    learn = text_learner()
    learn.logger = lambda *a: None
    nb.fit_gradually(learn, epochs=1, cbs=Poison)
    assert Poison.fits == 1 and learn.stopped_at is not None
    assert all(p.requires_grad for p in learn.model.parameters())


def test_dropouts_and_callbacks_get_what_the_learner_was_given():
    learn = text_learner(drop_mult=.5, α=3., β=5., clip=.7)
    encoder, head = learn.model[0].module, learn.model[1]
    drops = {k: p*.5 for k, p in nb.ulmfit_drops.items()}
    assert (encoder.emb_dp.embed_p, encoder.input_dp.p) == (drops['embed_p'], drops['input_p'])
    assert {o.p for o in encoder.hidden_dps} == {drops['hidden_p']} and {o.weight_p for o in encoder.rnns} == {drops['weight_p']}
    assert [o.p for o in head.layers if isinstance(o, nn.Dropout)] == [drops['output_p'], .1]
    trainer, = (o for o in learn.cbs if isinstance(o, nb.TextTrainer))
    clipping, = (o for o in learn.cbs if isinstance(o, nb.GradientClipping))
    assert (trainer.α, trainer.β, clipping.clip) == (3., 5., .7)
    assert not any(isinstance(o, nb.GradientClipping) for o in text_learner(clip=None).cbs)


def other_words(data):
    data.train_ds.proc_x = [TokenizeProcessor(max_workers=1), NumericalizeProcessor(vocab=[*WORDS[:-1], 'other'])]
    return data


def other_labels(data):
    for ds in (data.train_ds, data.valid_ds): ds.proc_y = CategoryProcessor(vocab=('pos', 'neg'))
    return data


@pytest.mark.parametrize('change, message', [(other_words, 'another vocabulary'), (other_labels, r"knows the labels \['neg', 'pos'\]")])
def test_data_of_other_words_or_labels_is_not_interpreted(change, message):
    learn, data = text_learner(), change(clas_data())
    for ask in (learn.interpret, nb.TextEnsemble([learn]).interpret):
        with pytest.raises(ValueError, match=message): ask(data)
    learn.data = data
    for ask in (learn.interpret, learn.show_results):
        with pytest.raises(ValueError, match=message): ask()


def test_threads_that_ask_at_once_get_their_own_answers():
    from concurrent.futures import ThreadPoolExecutor
    learn = text_learner()
    asked = [torch.randint(9, len(WORDS), (n,)).tolist() for n in (200, 300)]
    alone = [learn.probs(Corpus.from_lists([o])) for o in asked]
    module, inside = learn.model[0].module, []
    def noted(*_): inside.append(threading.get_ident())
    handle = module.register_forward_pre_hook(noted)
    with ThreadPoolExecutor(2) as pool: together = list(pool.map(lambda o: learn.probs(Corpus.from_lists([o])), asked*5))
    handle.remove()
    for got, expected in zip(together, alone*5): assert torch.equal(got, expected)
    switches = sum(a != b for a, b in zip(inside, inside[1:]))
    assert switches < 10   # each text was read to its end by one thread


def test_signs_of_mathematics_in_a_label_are_drawn_as_they_are(tmp_path):
    explanation = nb.Explanation('$_$', .5, ['a'], [1.])
    explanation.plot().figure.savefig(tmp_path/'plot.png')


def test_a_language_models_file_without_a_direction_reads_forward(tmp_path):
    file = nb.save_encoder(lm_learner(), tmp_path/'lm.pt')
    assert nb.encoder_parts(file).backwards is False
    about = tmp_path/'old.pt'
    lm_learner().save_lm(about)
    saved = torch.load(about, weights_only=True)
    parts = json.loads(saved['about'])
    del parts['backwards']
    torch.save(saved | dict(about=json.dumps(parts)), about)
    assert nb.encoder_parts(about).backwards is False and nb.load_lm(about).backwards is False


def test_labels_without_names_are_interpreted_too():
    ds = [dataset(Corpus.from_lists([[9, 10, 11], [12, 13]]*4), [0, 1]*4, None) for _ in range(2)]
    data = clas_databunchify(SplitData(*ds), 4)
    data.c_out = 2
    learn = text_learner(data)
    assert learn.vocab == ['0', '1'] and learn.interpret().confusion().to_numpy().sum() == 8 and len(learn.show_results(3)) == 3
