"""Lesson 12b: what its pages can't show. Strange files, faults in the middle of a fit, damaged models, and properties that hold for any scores."""
import copy, json, math, random, shutil, string
from collections import Counter

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from exp.nb_00a import DataError
from exp.nb_01 import set_seed
from exp.nb_04 import Callback
from exp.nb_05b import CancelBatchException
from exp.nb_09b import Learner, save_safely
from exp.nb_12 import BOS, EOS, FLD, LMLoader, LM_PreLoader, PAD, TokenizeProcessor, UNK, default_spec_tok, show_text
from exp.nb_12a import cross_entropy_flat, get_language_model, perplexity
from exp import nb_12b as nb

WORDS = 'the cat sat on a mat and then it ran to her old red house while he slept'.split()


def article(title, n, seed):
    rng = np.random.default_rng(seed)
    p = 1/np.arange(1, len(WORDS) + 1)
    words = ' '.join(rng.choice(WORDS, n, p=p/p.sum()))
    return f' = {title} = \n \n {words} . \n \n = = Part = = \n \n He didn \'t say 1 @,@ 000 . \n \n'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('tiny wiki')
    for part, n in dict(train=5, valid=2, test=2).items():
        (path/f'wiki.{part}.tokens').write_text(' \n' + ''.join(article(f'Title {i}', 120, 10*n + i) for i in range(n)), encoding='utf-8')
    return path


@pytest.fixture(scope='module')
def data(folder): return nb.wiki_databunch(folder, 4, 10)


def tiny(data, **kw):
    set_seed(42)
    return nb.lm_learner(data, 12, 16, 2, **dict(drop_mult=0., progress=False) | kw)


@pytest.fixture(scope='module')
def learn(data):
    learn = tiny(data, lr=1e-2)
    learn.logger = lambda line: None
    learn.fit(2)
    return learn


# ---- the text

def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_titles_stand_between_empty_lines(tmp_path):
    text = ' \n = A = \n \n text \n = Goals ; A = \n more \n \n = B = \n \n end \n'
    assert len(nb.read_wiki(write(tmp_path/'w', text))) == 2

def test_without_empty_lines_every_title_counts(tmp_path):
    assert [a.split('\n')[0] for a in nb.read_wiki(write(tmp_path/'w', ' = A = \n text \n = B = \n = = C = = \n text'))] == [' = A = ', ' = B = ']

@pytest.mark.parametrize('text', ['', '\n\n', 'just some text\n', ' = = Only a section = = \n'])
def test_a_file_without_titles_is_named(tmp_path, text):
    with pytest.raises(DataError, match='odd.tokens has no line'): nb.read_wiki(write(tmp_path/'odd.tokens', text))

def test_a_file_that_is_not_utf8_is_named(tmp_path):
    with pytest.raises(DataError, match='odd.tokens is not UTF-8'): nb.read_wiki(write(tmp_path/'odd.tokens', b' = A = \n \xff\xfe'))

def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='wiki.train.tokens'): nb.wiki_databunch(tmp_path)

line = st.text(string.ascii_letters + ' .,', min_size=1, max_size=30).map(str.strip).filter(bool)

@given(st.lists(st.tuples(line, st.lists(line, max_size=3)), min_size=1, max_size=4))
@settings(max_examples=50)
def test_articles_are_read_back(tmp_path_factory, made):
    text = ' \n' + ''.join(f' = {t} = \n \n' + ''.join(f' {p} \n' for p in ps) + ' \n' for t, ps in made)
    found = nb.read_wiki(write(tmp_path_factory.mktemp('w')/'w', text))
    assert [[l.strip() for l in a.split('\n') if l.strip()] for a in found] == [[f'= {t} =', *ps] for t, ps in made]

@given(st.text(string.ascii_letters + " '@,.-\n=", max_size=80))
@settings(max_examples=100)
def test_plain_text_has_no_gaps_and_stays_as_it_is(text):
    once = nb.wiki_text(text)
    assert "n 't " not in once + ' ' and '\n\n\n' not in once and nb.wiki_text(once) == once

@pytest.mark.parametrize('wiki, plain', [("don 't", "don't"), ("He can 't , or won 't", "He can't, or won't"), ('10 @,@ 000 m', '10,000 m'), ('well @-@ known', 'well-known'), ('3 @.@ 5', '3.5')])
def test_wikitext_gives_the_tokens_of_plain_writing(wiki, plain):
    tok = TokenizeProcessor()
    assert tok.proc1(nb.wiki_text(f' {wiki} \n')) == tok.proc1(plain)

def test_too_little_text_is_refused(folder):
    with pytest.raises(ValueError, match='too few'): nb.wiki_databunch(folder, bs=64, bptt=500)

def test_a_given_vocabulary_stays_as_it_is(folder):
    vocab = [*default_spec_tok, FLD, 'the', 'cat']
    data = nb.wiki_databunch(folder, 4, 10, vocab=vocab)
    assert data.text_vocab == vocab == [*default_spec_tok, FLD, 'the', 'cat'] and data.train_ds.texts.ids.max() < len(vocab)
    assert (data.train_ds.texts.ids == vocab.index(UNK)).any()

def test_counts_are_those_of_the_training_texts(data):
    found = Counter(data.train_ds.texts.ids.tolist())
    assert nb.word_counts(data).tolist() == [found[i] for i in range(len(data.text_vocab))]


# ---- the sampled softmax

def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match='1 random word or more'): nb.SampledSoftmax(torch.ones(5), n=0)

@given(st.integers(2, 200), st.integers(1, 300), st.integers(1, 50), st.integers(0, 10**6))
@settings(max_examples=50)
def test_candidates_hold_all_targets_which_are_certain(vocab, n, n_targets, seed):
    torch.manual_seed(seed)
    targets = torch.randint(vocab, (n_targets,))
    words, log_p = nb.SampledSoftmax(torch.randint(100, (vocab,)).float(), n).candidates(targets)
    own = torch.isin(words, targets)
    assert set(targets.tolist()) <= set(words.tolist()) and (words[1:] > words[:-1]).all() and words.max() < vocab
    assert (log_p[own] == 0).all() and (log_p <= 0).all() and log_p.isfinite().all()

def test_the_estimated_sum_is_right_on_average():
    torch.manual_seed(0)
    counts, scores, targets = 1000/torch.arange(1, 1001), torch.randn(1000), torch.arange(5)
    sampled = nb.SampledSoftmax(counts, 300)
    sums = [(scores[w] - p).exp().sum().item() for w, p in (sampled.candidates(targets) for _ in range(400))]
    assert abs(np.mean(sums)/scores.exp().sum().item() - 1) < 4*np.std(sums)/20/scores.exp().sum().item()

def test_with_nearly_all_words_it_is_the_exact_loss_and_gradient(data):
    learn, (xb, yb) = tiny(data), next(iter(data.valid_dl))
    sampled = nb.sampled_softmax(data, 100_000)
    sampled.linear = linear = learn.model[1].decoder
    x = (3*torch.randn(yb.numel(), 12)).requires_grad_()
    exact = F.cross_entropy(linear(x), yb.flatten())
    sampled.words, sampled.log_p = sampled.candidates(yb)
    some = F.cross_entropy(sampled.scores(x), torch.searchsorted(sampled.words, yb).flatten())
    assert some.item() == pytest.approx(exact.item(), rel=1e-3)
    a, b = (torch.autograd.grad(o, (x, linear.weight)) for o in (exact, some))
    assert all(torch.allclose(p, q, atol=1e-3) for p, q in zip(a, b))

def test_validation_is_exact(data):
    sampled = tiny(data, n_sampled=3)
    exact = tiny(data)
    assert sampled.validate()['loss'] == pytest.approx(exact.validate()['loss'], rel=1e-6)

def decoder_is_itself(learn): return 'forward' not in vars(learn.model[1].decoder)

def test_the_decoder_is_given_back_after_errors_and_cancelled_batches(data):
    class Fail(Callback):
        _order = 6
        def __init__(self, e): self.e = e
        def begin_batch(self):
            if self.run.in_train: raise self.e
    learn = tiny(data, n_sampled=5)
    learn.logger = lambda line: None
    for e in (KeyError('x'), KeyboardInterrupt()):
        with pytest.raises(type(e)): learn.fit(1, cbs=Fail(e))
        assert decoder_is_itself(learn)
    learn.fit(1, cbs=Fail(CancelBatchException()))
    assert decoder_is_itself(learn)
    learn.fit(1)
    assert decoder_is_itself(learn) and copy.deepcopy(learn.model)(torch.zeros(2, 3, dtype=torch.long))[0].shape == (6, len(data.text_vocab))

def test_a_sweep_of_rates_leaves_no_trace(data):
    learn = tiny(data, n_sampled=5)
    learn.logger = lambda line: None
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.lr_find(max_iter=12, plot=False, min_lr=1e-4, max_lr=1e-1)
    assert decoder_is_itself(learn) and all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())

def test_it_is_for_language_models_of_that_vocabulary(data):
    learn = tiny(data, xtra_cb=nb.SampledSoftmax(torch.ones(7), 3))
    with pytest.raises(ValueError, match='counts of 7 words'): learn.fit(1)
    other = Learner(torch.nn.Linear(2, 2), data, cross_entropy_flat, cbs=nb.SampledSoftmax(torch.ones(7), 3))
    with pytest.raises(TypeError, match='end with a LinearDecoder, as .* not for a Linear'): other.fit(1)


# ---- the learner

def test_the_start_is_the_unigram_model(data):
    model = get_language_model(len(data.text_vocab), 8, 8, 1)
    counts = nb.word_counts(data)
    nb.start_from_counts(model, counts)
    share = model[1].decoder.bias.softmax(0)
    assert torch.allclose(share, (counts + .5)/(counts + .5).sum(), rtol=1e-5)

def test_one_number_scales_all_regularisation(data):
    learn = tiny(data, drop_mult=.5)
    ps = {k: p*.5 for k, p in nb.lm_dropouts.items()}
    encoder, decoder = learn.model
    assert (encoder.emb_dp.embed_p, encoder.input_dp.p, encoder.rnns[0].weight_p, encoder.hidden_dps[0].p, decoder.output_dp.p) == pytest.approx([ps[k] for k in ('embed_p', 'input_p', 'weight_p', 'hidden_p', 'output_p')])
    assert learn.rnn_trainer.α == 1. and learn.rnn_trainer.β == .5

def test_two_trainings_give_the_same_numbers(folder):
    def train():
        set_seed(42)
        learn = nb.lm_learner(nb.wiki_databunch(folder, 4, 10), 12, 16, 2, drop_mult=.5, n_sampled=10, progress=False)
        learn.logger = lambda line: None
        learn.fit(2)
        return learn.avg_stats.history
    assert train() == train()

def test_it_learns(learn, data):
    counts = nb.word_counts(data)
    y = torch.cat([y for _, y in data.valid_dl], 1)
    unigram = -((counts + .5)/(counts + .5).sum()).log()[y].mean()
    assert learn.avg_stats.history[-1]['valid_loss'] < unigram

def test_token_losses_are_the_loss_and_change_nothing(learn, data):
    numbers, mode, hidden = torch.get_rng_state(), learn.model.training, learn.model[0].hidden
    losses = learn.token_losses()
    assert losses.shape[0] == 4 and perplexity(losses.mean()) == pytest.approx(perplexity(learn.validate()['loss']), rel=1e-5)
    assert torch.equal(torch.get_rng_state(), numbers) and learn.model.training == mode
    other = learn.token_losses(LMLoader(LM_PreLoader(data.valid_ds.texts, 2, 7)))
    assert other.shape[0] == 2

def test_data_without_a_vocabulary_are_refused():
    class Bare: pass
    with pytest.raises(ValueError, match="don't know their tokens"): nb.lm_learner(Bare())


# ---- writing

scores = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40).map(torch.tensor)

@given(scores, st.floats(.1, 5), st.none() | st.integers(1, 50), st.none() | st.floats(0, 1))
@settings(max_examples=200)
def test_probabilities_sum_to_one_and_keep_what_they_should(s, temperature, top_k, min_p):
    p, plain = nb.sampling_probs(s, temperature, top_k, min_p), (s/temperature).softmax(0)
    assert p.sum().item() == pytest.approx(1, abs=1e-5) and (p >= 0).all() and (p[plain == plain.max()] > 0).any()   # of equals, top_k may keep any
    if top_k: assert (p > 0).sum() <= top_k
    if min_p: assert (plain[p > 0] >= min_p*plain.max()*(1 - 1e-5)).all()
    if not top_k and not min_p: assert torch.allclose(p, plain, atol=1e-6)

def test_words_that_are_forbidden_stay_so():
    s = torch.tensor([1., -math.inf, 3., -math.inf])
    for kw in (dict(), dict(top_k=4), dict(min_p=0.), dict(temperature=5.), dict(temperature=0)):
        assert (nb.sampling_probs(s, **kw)[[1, 3]] == 0).all()

@pytest.mark.parametrize('kw, what', [(dict(temperature=-1), 'temperature'), (dict(temperature=math.nan), 'temperature'), (dict(top_k=0), 'top_k'), (dict(min_p=-.1), 'min_p'), (dict(min_p=1.5), 'min_p')])
def test_settings_out_of_range_are_named(kw, what):
    with pytest.raises(ValueError, match=what): nb.sampling_probs(torch.zeros(3), **kw)

def test_threads_that_write_at_once_write_what_they_would_alone(learn):
    from threading import Thread
    written, alone = [], learn.generate('the cat', 5, temperature=0)
    other = Thread(target=lambda: written.append(learn.generate('the cat', 5, temperature=0)))
    with learn.reading() as read:
        read(learn.numericalize('a'))
        other.start()
        other.join(.5)
        assert other.is_alive() and not written   # it waits until this block is done with the model
    other.join()
    assert written == [alone]

def test_a_bar_in_the_vocabulary_makes_no_pieces_of_words(folder):
    data = nb.wiki_databunch(folder, 4, 10)
    learn = tiny(data)
    vocab = data.text_vocab
    spare = next(i for i in reversed(range(len(vocab))) if i > 20)
    before = learn.generate('the', 5, seed=0)
    old, vocab[spare] = vocab[spare], '▁▂▃'
    try: assert len(learn.generate('the', 5, seed=0).split()) <= len(before.split()) + 1
    finally: vocab[spare] = old

@pytest.mark.parametrize('kw', [dict(temperature=.5), dict(top_k=3), dict(min_p=.2)])
def test_words_are_drawn_as_asked(learn, monkeypatch, kw):
    asked, probs = [], nb.sampling_probs
    monkeypatch.setattr(nb, 'sampling_probs', lambda s, *a: asked.append(a) or probs(s, *a))
    learn.generate('the cat', 3, seed=0, **kw)
    assert {*asked} == {tuple((dict(temperature=1., top_k=None, min_p=None) | kw).values())}

def test_callbacks_get_what_the_learner_was_given(data):
    learn = tiny(data, drop_mult=.5, α=4., β=6., clip=.3)
    trainer, = (o for o in learn.cbs if isinstance(o, nb.RNNTrainer))
    clipping, = (o for o in learn.cbs if isinstance(o, nb.GradientClipping))
    assert (trainer.α, trainer.β, clipping.clip) == (2., 3., .3)

def test_writing_with_a_state_is_reading_it_all_again(learn):
    vocab, ids = learn.text_vocab, learn.numericalize('the cat').tolist()
    banned = [vocab.index(t) for t in (PAD, BOS, UNK)]
    learn.model.eval()
    for _ in range(8):
        learn.model.reset()
        with torch.no_grad(): s = learn.model(torch.tensor([ids]))[0][-1]
        s[banned] = -math.inf
        ids.append(s.argmax().item())
    slow = show_text(ids, vocab)
    assert slow.startswith(learn.generate('the cat', 3, temperature=0).rstrip())

def test_generate_leaves_state_mode_and_other_random_numbers_alone(learn, data):
    learn.model.train()
    with torch.no_grad(): learn.model(next(iter(data.valid_dl))[0])
    hidden, numbers = learn.model[0].hidden, torch.get_rng_state()
    learn.generate('the', 5, seed=3)
    assert learn.model.training and learn.model[0].hidden is hidden and torch.equal(torch.get_rng_state(), numbers)

def test_seeds_unknown_words_and_lengths(learn):
    assert learn.generate('the', 12, seed=5) == learn.generate('the', 12, seed=5)
    assert learn.generate('a zebra', 0) == f'a {UNK}'
    assert UNK not in learn.generate('', 30, temperature=5., seed=1)
    assert learn.generate('', 0) == ''
    long = learn.generate('the', 10_000, seed=1, temperature=1.)
    assert isinstance(long, str)

def write_only(learn, shares):
    "Makes the model draw these tokens with these probabilities, and no others, whatever stands before."
    decoder = learn.model[1].decoder
    with torch.no_grad():
        decoder.weight.zero_()
        decoder.bias.copy_(torch.tensor([math.log(shares.get(t) or 1e-300) for t in learn.text_vocab]))
    return learn

@pytest.mark.parametrize('n', [0, 20])
@pytest.mark.parametrize('seed', range(3))
def test_marks_are_no_words(data, n, seed):
    learn = write_only(tiny(data), dict(cat=.4, mat=.4, xxmaj=.1, xxup=.1))
    assert len(learn.generate('', n, seed=seed).split()) == n

@pytest.mark.parametrize('seed', range(3))
def test_pieces_are_no_words(seed):
    pytest.importorskip('sentencepiece')
    rng = random.Random(0)
    texts = [' '.join(''.join(rng.choices('abcdef', k=rng.randint(2, 7))) for _ in range(20)) for _ in range(100)]
    procs = [TokenizeProcessor(tokenizer=nb.SubwordTokenizer.train(texts, 60), max_workers=1), nb.NumericalizeProcessor(min_freq=1)]
    data = nb.lm_databunchify(nb.label_by_func(nb.SplitData(nb.TextList(texts), nb.TextList(texts)), lambda o: 0, proc_x=procs), 4, 10)
    begins, others = ([t for t in data.text_vocab if f(t)] for f in (lambda t: t[0] == '▁' and t[1:].isalpha(), lambda t: t.isalpha() and t[:2] != 'xx'))
    learn = write_only(tiny(data), {t: .6/len(begins) for t in begins} | {t: .4/len(others) for t in others})
    assert len(learn.generate('abc', 20, seed=seed).split()) == 1 + 20

def test_next_probs_are_sorted_and_sum_to_one(learn):
    for text in ('', 'the', 'zebra ' * 300):
        p = learn.next_probs(text)
        assert p.is_monotonic_decreasing and p.sum() == pytest.approx(1, abs=1e-4) and set(p.index) == set(learn.text_vocab)

@pytest.mark.parametrize('word', ['the', 'mat', '.'])
@pytest.mark.parametrize('n', [1, 5, 1000])
def test_neighbours_are_those_of_a_loop(data, word, n):
    learn = tiny(data)
    learn.model[0].emb.weight.data += torch.linspace(-1, 3, 12)   # far from the origin
    vectors = learn.model[0].emb.weight.detach().double().numpy()
    mean, found = sum(vectors)/len(vectors), nb.nearest_words(learn, word, n)
    def cos(a, b): return sum(a*b)/math.sqrt(sum(a*a)*sum(b*b))
    one = vectors[learn.text_vocab.index(word)] - mean
    all_of_them = {t: cos(one, v - mean) for t, v in zip(learn.text_vocab, vectors) if t not in (*default_spec_tok, FLD, word)}
    expected = sorted(all_of_them.items(), key=lambda o: -o[1])[:n]
    assert list(found.index) == [t for t, _ in expected] and found.tolist() == pytest.approx([c for _, c in expected], abs=1e-5)

def test_neighbours(learn):
    n = len(learn.text_vocab)
    found = nb.nearest_words(learn, 'the', n + 5)
    assert found.is_monotonic_decreasing and 'the' not in found.index[:3]
    with pytest.raises(ValueError, match="'zebra' is not in the vocabulary$"): nb.nearest_words(learn, 'zebra')
    with pytest.raises(ValueError, match="but 'the' is"): nb.nearest_words(learn, 'The')


# ---- the file

@pytest.fixture
def file(learn, tmp_path): return learn.save_lm(tmp_path/'new'/'lm.pt')

def test_a_reloaded_model_predicts_the_same(file, learn, data):
    loaded = nb.load_lm(file)
    assert torch.equal(torch.tensor(loaded.next_probs('the cat').to_numpy()), torch.tensor(learn.next_probs('the cat').to_numpy()))
    assert nb.load_lm(file, data, progress=False).validate() == learn.validate()

def test_it_goes_on_training(file, data):
    again = nb.load_lm(file, data, progress=False, lr=1e-3, n_sampled=5, drop_mult=.5)
    again.logger = lambda line: None
    before = again.validate()['loss']
    again.fit(1)
    assert again.avg_stats.history[-1]['valid_loss'] < before + .1 and again.model[0].emb.weight is again.model[1].decoder.weight

def test_tied_weights_take_their_room_once(file, learn):
    assert file.stat().st_size < 1.2*4*sum(p.numel() for p in learn.model.parameters()) + 20_000

def test_a_learner_without_data_says_so(file):
    loaded = nb.load_lm(file)
    for f in (lambda: loaded.fit(1), loaded.validate, loaded.token_losses):
        with pytest.raises(AttributeError, match='loaded without data'): f()

@pytest.mark.parametrize('content', [b'', b'no model', b'PK\x03\x04 broken'])
def test_files_of_something_else_are_named(tmp_path, content):
    with pytest.raises(ValueError, match='odd.pt is no language model'): nb.lm_parts(write(tmp_path/'odd.pt', content))

def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='gone.pt'): nb.load_lm(tmp_path/'gone.pt')

def test_cut_off_files_are_named_wherever_they_end(file):
    whole = file.read_bytes()
    for share in (.1, .5, .9, .999):
        with pytest.raises(ValueError, match='lm.pt is no language model'): nb.lm_parts(write(file, whole[:int(len(whole)*share)]))

class Evil:
    def __reduce__(self): return (print, ('this was run',))

def test_code_in_a_file_is_not_run(tmp_path, capsys):
    torch.save(dict(format='language model, 1', about='{}', model=Evil()), tmp_path/'evil.pt')
    with pytest.raises(ValueError, match='evil.pt is no language model'): nb.load_lm(tmp_path/'evil.pt')
    assert 'this was run' not in capsys.readouterr().out

def changed(file, **about):
    saved = torch.load(file, weights_only=True)
    save_safely(saved | dict(about=json.dumps(json.loads(saved['about']) | about)), file)
    return file

def test_weights_of_another_shape_are_named(file):
    with pytest.raises(ValueError, match=r"weights in .*lm.pt don't fit this model: 0.rnns.0.module.weight_ih_l0 is \[68, 12\] here and \[64, 12\] there"):
        nb.load_lm(changed(file, sizes=dict(emb_sz=12, n_hid=17, n_layers=2)))

def test_a_vocabulary_of_another_size_than_the_weights_is_damage(file, learn):
    with pytest.raises(ValueError, match='lm.pt is damaged'): nb.lm_parts(changed(file, vocab=learn.text_vocab[:-1]))

@pytest.mark.parametrize('about', [dict(sizes=None), dict(sizes=dict(emb_sz=12)), dict(vocab=3), dict(vocab=None)])
def test_a_damaged_description_is_named(file, about):
    with pytest.raises(ValueError, match='lm.pt is no language model'): nb.lm_parts(changed(file, **about))

def test_an_unknown_tokenizer_is_named(file):
    with pytest.raises(ValueError, match='its tokenizer is not known here'): nb.load_lm(changed(file, tokenizer=dict(pre_rules=['mine'], post_rules=[], tokenizer=dict(kind='spacy', lang='en'))))

def test_data_with_another_vocabulary_or_order_are_refused(file, folder, data):
    for vocab in (data.text_vocab[:-1], [*data.text_vocab[:-2], *data.text_vocab[:-3:-1]]):
        with pytest.raises(ValueError, match='has another, of .* make the data with NumericalizeProcessor'): nb.load_lm(file, nb.wiki_databunch(folder, 4, 10, vocab=vocab))

def test_a_failed_save_leaves_the_older_file(file, learn, monkeypatch):
    before = file.read_bytes()
    monkeypatch.setattr(torch, 'save', lambda *a, **kw: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'): learn.save_lm(file)
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == ['lm.pt']

def shout(toks): return [t.upper() for t in toks]

def test_rules_of_your_own_must_be_known(folder, tmp_path):
    data = nb.wiki_databunch(folder, 4, 10)
    old = next(p for p in data.procs if isinstance(p, TokenizeProcessor))
    data.train_ds.data.proc_x = [TokenizeProcessor(post_rules=[shout]), *(p for p in data.procs if p is not old)]
    learn = tiny(data)
    with pytest.raises(ValueError, match='known=.shout'): learn.save_lm(tmp_path/'x.pt')
    file = learn.save_lm(tmp_path/'x.pt', known=[shout])
    with pytest.raises(ValueError, match='x.pt: its tokenizer is not known here .*shout'): nb.load_lm(file)
    assert nb.load_lm(file, known=shout).generate('the', 3, seed=0) == learn.generate('the', 3, seed=0)


# ---- backwards, and in one call

def test_backwards_reads_and_writes_from_the_end(folder, tmp_path):
    data = nb.wiki_databunch(folder, 4, 10, backwards=True)
    learn = tiny(data)
    assert learn.backwards and [learn.text_vocab[i] for i in learn.numericalize('the cat')] == [EOS, 'cat', 'the']
    assert learn.generate('the cat', 4, seed=0).endswith('the cat')
    assert nb.load_lm(learn.save_lm(tmp_path/'b.pt')).backwards

@pytest.mark.parametrize('name', ['../x', 'a b', 'x/y'])
def test_names_that_are_no_names_are_refused(name):
    with pytest.raises(ValueError, match='neither a folder nor a name'): nb.pretrained_path(name)

def test_models_lie_in_the_cache_folder(monkeypatch, tmp_path, folder):
    monkeypatch.setenv('EXP_HOME', str(tmp_path))
    assert nb.pretrained_path('wikitext-2', backwards=True) == tmp_path/'models'/'wikitext-2-backwards.pt'
    assert nb.pretrained_path(folder).parent == tmp_path/'models' and ' ' not in nb.pretrained_path(folder).name

def test_a_model_is_trained_once(monkeypatch, tmp_path, folder):
    monkeypatch.setenv('EXP_HOME', str(tmp_path))
    small = dict(emb_sz=8, n_hid=8, n_layers=1, bs=4, bptt=10, epochs=1, n_sampled=5)
    first = nb.pretrained_lm(folder, progress=False, **small)
    stamp = first.stat().st_mtime_ns
    assert nb.pretrained_lm(folder, progress=False, **small) == first and first.stat().st_mtime_ns == stamp and nb.lm_parts(first).sizes == dict(emb_sz=8, n_hid=8, n_layers=1)
    with pytest.raises(ValueError, match='trained with emb_sz=8, and emb_sz=9 is wanted'): nb.pretrained_lm(folder, progress=False, **small | dict(emb_sz=9))
    with pytest.raises(ValueError, match='trained with epochs=1, and epochs=2 is wanted'): nb.pretrained_lm(folder, progress=False, **small | dict(epochs=2))
    with pytest.raises(TypeError, match='no setting epoch;'): nb.pretrained_lm(folder, progress=False, **small, epoch=2)
    sizes = {k: small[k] for k in ('emb_sz', 'n_hid', 'n_layers')}
    assert nb.pretrained_lm(folder, progress=False, **sizes) == first   # what isn't asked for may be anything

def test_folders_of_one_name_have_models_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setenv('EXP_HOME', str(tmp_path/'home'))
    folders = [tmp_path/o/'wikitext-2' for o in 'ab']
    for o in folders: o.mkdir(parents=True)
    paths = [nb.pretrained_path(o) for o in folders]
    assert len({*paths, nb.pretrained_path('wikitext-2')}) == 3 and paths[0] == nb.pretrained_path(folders[1]/'..'/'..'/'a'/'wikitext-2')

def test_the_direction_of_a_model_must_be_that_of_the_data(tmp_path, folder):
    small = dict(emb_sz=8, n_hid=8, n_layers=1, bs=4, bptt=10, epochs=1, n_sampled=5, progress=False)
    for backwards in (False, True):
        file = nb.pretrain_lm(folder, tmp_path/'a.pt', backwards=backwards, **small)
        vocab = nb.lm_parts(file).vocab
        assert nb.load_lm(file, nb.wiki_databunch(folder, 4, 10, vocab=vocab, backwards=backwards)).backwards == backwards
        with pytest.raises(ValueError, match=f'backwards={backwards}'): nb.load_lm(file, nb.wiki_databunch(folder, 4, 10, vocab=vocab, backwards=not backwards))

@pytest.mark.parametrize('cb', [lambda: nb.MixedPrecision(), lambda: nb.AmpCallback(torch.bfloat16)])
def test_sampled_softmax_works_in_half_precision(folder, cb):
    learn = nb.lm_learner(nb.wiki_databunch(folder, 4, 10), 8, 8, 1, n_sampled=5, xtra_cb=cb(), progress=False)
    learn.fit(1)
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in learn.model.parameters())

def test_the_same_call_makes_the_same_model(tmp_path, folder):
    small = dict(emb_sz=8, n_hid=8, n_layers=1, bs=4, bptt=10, epochs=1, n_sampled=5, progress=False)
    files = []
    for name in 'ab':
        torch.rand(7)   # whatever happened before
        files.append(nb.pretrain_lm(folder, tmp_path/f'{name}.pt', **small))
    a, b = (nb.lm_parts(f).state for f in files)
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())

def files_in(folder): return {o.name for o in folder.iterdir() if o.suffix != '.lock'}

def test_an_interrupted_training_goes_on(folder, tmp_path, monkeypatch, capsys):
    small = dict(emb_sz=8, n_hid=8, n_layers=1, bs=4, bptt=10, epochs=3, n_sampled=5, progress=False)
    whole = nb.lm_parts(nb.pretrain_lm(folder, tmp_path/'whole.pt', **small)).state
    begun = []
    class Stop(nb.TerminateOnNaN):
        def begin_epoch(self):
            begun.append(self.run.epoch)
            if len(begun) == 3: raise KeyboardInterrupt
    monkeypatch.setattr(nb, 'TerminateOnNaN', Stop)
    with pytest.raises(KeyboardInterrupt): nb.pretrain_lm(folder, tmp_path/'a.pt', **small)
    assert not (tmp_path/'a.pt').exists() and begun == [0, 1, 2]
    nb.pretrain_lm(folder, tmp_path/'other.pt', **small | dict(epochs=1))   # another call, of other settings, begins anew
    state = nb.lm_parts(nb.pretrain_lm(folder, tmp_path/'a.pt', **small)).state
    assert begun == [0, 1, 2, 0, 2] and all(torch.equal(v, whole[k]) for k, v in state.items())
    assert files_in(tmp_path) == {'whole.pt', 'other.pt', 'a.pt'}
    assert 'goes on from' in capsys.readouterr().out

def test_what_goes_on_is_the_same_training(folder, tmp_path, monkeypatch):
    small = dict(emb_sz=8, n_hid=8, n_layers=1, bs=4, bptt=10, epochs=2, n_sampled=5, progress=False)
    texts = tmp_path/'texts'
    shutil.copytree(folder, texts)
    class Stop(nb.TerminateOnNaN):
        def begin_epoch(self):
            if self.run.epoch: raise KeyboardInterrupt
    monkeypatch.setattr(nb, 'TerminateOnNaN', Stop)
    def kept():
        with pytest.raises(KeyboardInterrupt): nb.pretrain_lm(texts, tmp_path/'a.pt', **small)
        return files_in(tmp_path) - {'texts'}
    first = kept()
    for file in texts.glob('*.tokens'):
        lines = file.read_text(encoding='utf-8')
        file.write_text(lines.replace('cat', 'c@t').replace('the', 'cat').replace('c@t', 'the'), encoding='utf-8')   # as many words as before
    assert len(first) == 1 and len(kept()) == 2
    monkeypatch.undo()
    nb.pretrain_lm(texts, tmp_path/'a.pt', **small | dict(epochs=1))
    assert files_in(tmp_path) == {'texts', 'a.pt'}

def test_one_that_waited_for_another_process_takes_its_model(folder, tmp_path, monkeypatch, capsys):
    from threading import Thread
    monkeypatch.setattr(nb, 'pretrained_path', lambda *_: tmp_path/'a.pt')
    small, found = dict(emb_sz=8, n_hid=8, n_layers=1, bs=4, bptt=10, epochs=1, n_sampled=5), []
    other = Thread(target=lambda: found.append(nb.pretrained_lm(folder, progress=False, **small)))
    with nb.making(tmp_path/'a.pt'):
        other.start()
        other.join(2)
        assert other.is_alive() and 'waiting for it' in capsys.readouterr().out
        made = nb._pretrain(folder, tmp_path/'a.pt', nb._recipe(folder, small), False, False).stat().st_mtime_ns
    other.join()
    assert found == [tmp_path/'a.pt'] and found[0].stat().st_mtime_ns == made

def test_a_model_that_came_to_nothing_is_not_saved(folder, tmp_path):
    with pytest.raises(FloatingPointError, match=r'NaN or infinite in epoch 0, batch \d+ .*nothing is saved: give it an lr below 1e\+38'): nb.pretrain_lm(folder, tmp_path/'a.pt', emb_sz=8, n_hid=8, n_layers=1, bs=4, bptt=10, epochs=1, n_sampled=5, progress=False, lr=1e38)
    assert not files_in(tmp_path)

def test_an_unknown_setting_is_named(folder):
    with pytest.raises(TypeError, match='no setting epoch; there are .*epochs'): nb.pretrain_lm(folder, epoch=3)


def stream_learner():
    "On a stream with a generator of its own, in PyTorch's loader."
    rng, procs = np.random.default_rng(0), [TokenizeProcessor(), nb.NumericalizeProcessor(vocab=[*default_spec_tok, FLD, *WORDS])]
    sets = (nb.labelled_corpus(nb.Corpus.from_lists([rng.integers(9, 20, 15) for _ in range(n)]), [0]*n, procs) for n in (20, 8))
    train, valid = (LM_PreLoader(o, 4, 5, shuffle=shuffle, generator=torch.Generator().manual_seed(7)) for o, shuffle in zip(sets, (True, False)))
    set_seed(3)
    learn = nb.lm_learner(nb.TextDataBunch(*(torch.utils.data.DataLoader(o, batch_size=4) for o in (train, valid))), 8, 8, 1, cuda=False, progress=False)
    learn.logger = lambda line: None
    return learn


class Ends(Callback):
    "A crash at the beginning of the second epoch."
    def begin_epoch(self):
        if self.run.epoch == 1: raise KeyboardInterrupt


def test_a_streams_own_generator_is_kept_and_put_back(tmp_path):
    "By checkpoints and by trials, also where it is in a dataset and not in a loader."
    whole, stopped, resumed = (stream_learner() for _ in range(3))
    set_seed(4)
    whole.fit(3)
    set_seed(4)
    with pytest.raises(KeyboardInterrupt): stopped.fit(3, [nb.SaveCheckpoint(tmp_path), Ends()], resume=True)
    resumed.data.train_dl.dataset.generator.manual_seed(99)
    resumed.fit(3, [nb.SaveCheckpoint(tmp_path)], resume=True)
    assert [o['train_loss'] for o in resumed.avg_stats.history] == [o['train_loss'] for o in whole.avg_stats.history]
    before = resumed.data.train_dl.dataset.generator.get_state()
    resumed.lr_find(12, plot=False)
    assert torch.equal(before, resumed.data.train_dl.dataset.generator.get_state())
