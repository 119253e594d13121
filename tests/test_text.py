"Lesson 12's texts where the lesson doesn't look: any text at all, odd files and tables, processes that die, files that are damaged or dangerous."
import contextlib, copy, io, json, multiprocessing, os, pickle, random, re, signal, subprocess, sys, tempfile, time
from collections import Counter
from functools import partial
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils.data import DataLoader
import exp.nb_12 as nb

quick = settings(max_examples=80)
# texts that hit the rules often, beside all others
pieces = st.sampled_from(['a', 'no', 'No', 'NO', ' ', '  ', '\n', '\t', '.', ',', '!!!!', '&amp;', '&#39;', 'amp;', '#39;', ';', '#', '/', '<br />', '\r\n', '\r', '<', '>', 'é', 'İ', 'ß', 'ǅ', '\xa0', '\u2028', '\x1c', "'", '"', '2222', '@', ' @-@ ', ':', ')', ':)', '-', '_', '漢字', '🙂'])
texts = st.one_of(st.text(), st.lists(pieces, max_size=20).map(''.join))
token_lists = st.lists(st.lists(st.text('abC', min_size=1, max_size=3), max_size=8), max_size=8)
corpora = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), max_size=8)

def squeezed(t): return re.sub(r' +', '', t)

# rules, for any text

@quick
@given(texts)
def test_sub_br_changes_breaks_only_and_leaves_none(t):
    res = nb.sub_br(t)
    assert not re.search(r'<\s*br\s*/?\s*>', res, re.I) or '<' in re.sub(r'<\s*br\s*/?\s*>', '', t, flags=re.I)
    if '<' not in t: assert res == t.replace('\r\n', '\n').replace('\r', '\n')
    assert '\r' not in res

@quick
@given(texts)
def test_spec_add_spaces_adds_spaces_only(t):
    res = nb.spec_add_spaces(t)
    assert squeezed(res) == squeezed(t)
    assert all(res[m.start() - 1] == ' ' == res[m.end()] for m in re.finditer('[/#]', res))

@quick
@given(texts)
def test_rm_useless_spaces_leaves_single_spaces_and_all_words(t):
    res = nb.rm_useless_spaces(t)
    assert '  ' not in res and res.split() == t.split() and nb.rm_useless_spaces(res) == res

@quick
@given(texts.filter(lambda t: 'xxrep' not in t))
def test_replace_rep_can_be_undone(t):
    assert re.sub(r' xxrep (\d+) (\S) ', lambda m: m[2]*int(m[1]), nb.replace_rep(t)) == t

@quick
@given(texts, st.sampled_from('!a.9é🙂'), st.integers(1, 30))
def test_replace_rep_counts(t, c, n):
    res = nb.replace_rep(c*n)
    assert res == (f' xxrep {n} {c} ' if n >= 4 else c*n)

@quick
@given(texts.filter(lambda t: 'xxwrep' not in t))
def test_replace_wrep_keeps_all_words(t):
    undone = re.sub(r'xxwrep (\d+) (\w+)', lambda m: ' '.join([m[2]]*int(m[1])), nb.replace_wrep(t))
    assert re.findall(r'\w+', undone) == re.findall(r'\w+', t)

@quick
@given(st.text('abcé1_', min_size=1, max_size=4), st.integers(1, 6), st.sampled_from([' ', '  ', ', ', ',  ']))
def test_replace_wrep_counts_from_three_on(word, n, sep):
    assert nb.replace_wrep(sep.join([word]*n)) == (f' xxwrep {n} {word} ' if n >= 3 else sep.join([word]*n))

@quick
@given(texts)
def test_fixup_leaves_alone_what_is_not_damaged(t):
    res = nb.fixup_text(t)
    if not set(t) & set('&;@<\\\xa0'): assert res == t
    assert '\xa0' not in res or '&' in t or ';' in t

@quick
@given(st.text('abcdefgXYZ ', max_size=8), st.sampled_from(['amp', 'quot', 'nbsp']))
def test_a_word_that_ends_like_an_entity_stays(word, entity):
    t = f'{word}x{entity}; {word}'
    assert nb.fixup_text(t) == t

@pytest.mark.parametrize('before, after', [('AT&amp;T', 'AT&T'), ('stamp;', 'stamp;'), ('&amp;lt;', '&lt;'), ('&#x27;', "'"), ('it&#39;s', "it's"), ('China #39;s', "China 's"), ('item #39; done', 'item #39; done'),
                                           ('&#xD800;', '\ufffd'), ('&#99999999;', '&#99999999;'), ('a &copy b', 'a &copy b'), ('$#36;5', '$$5'), ('<unk>', 'xxunk'), ('5 @,@ 000', '5,000'),
                                           (r'So.\nWell', 'So.\nWell'), (r'a\n\nb', 'a\n\nb'), (r'so!\nwell', 'so!\nwell'), (r'\"x\"', '"x"'), (r'\nu and C:\new', r'\nu and C:\new')])
def test_fixup_examples(before, after): assert nb.fixup_text(before) == after

words = st.lists(texts.map(str.strip).filter(bool), max_size=6)

@quick
@given(words, words)
@pytest.mark.parametrize('rule', [nb.replace_all_caps, nb.deal_caps])
def test_rules_marked_by_word_keep_their_promise(rule, a, b):
    assert rule.by_word and rule(a + b) == rule(a) + rule(b) and rule([]) == []

@quick
@given(words)
def test_caps_are_gone_but_not_forgotten(toks):
    res = nb.deal_caps(nb.replace_all_caps(toks))
    assert all(t == t.lower() for t in res)
    assert [t for t in res if t not in ('xxup', 'xxmaj')] == [t.lower() for t in toks if t.lower() not in ('xxup', 'xxmaj')]

def test_both_marks_for_capitals_appear():
    assert nb.TokenizeProcessor().proc1('GREAT Great great I A U.S. iPhone')[1:-1] == 'xxup great xxmaj great great i a xxup u.s. iphone'.split()

# tokens

tok = nb.TokenizeProcessor(max_workers=1)

@quick
@given(texts)
def test_any_text_becomes_tokens(t):
    toks = tok.proc1(t)
    assert toks[0] == nb.BOS and toks[-1] == nb.EOS
    assert all(o and (not any(c.isspace() for c in o) or set(o) == {'\n'}) for o in toks)
    assert toks == nb.TokenizeProcessor(max_workers=1, tokenizer=tok.tokenizer).proc1(t)   # whatever was kept before
    assert isinstance(nb.show_text(toks), str)

@quick
@given(st.lists(st.sampled_from(["don't", 'e.g.', 'U.S.', ':)', ':', ')', 'a.m.', '10', 'Mr.', "'s", '(', '"', 'can', 'not', 'gon', 'na', '...', '-', 'o', '_', '3', '<']), max_size=8))
def test_word_by_word_is_what_spacy_does_with_the_whole_text(pieces):
    t, spacy = ' '.join(pieces), tok.tokenizer
    assert [o for w in t.split() for o in spacy(w)] == spacy(t)

@settings(max_examples=15)
@given(st.lists(texts, max_size=12), st.integers(1, 5))
def test_chunks_do_not_matter(ts, size):
    a, b = (nb.TokenizeProcessor(max_workers=1, chunksize=n, tokenizer=tok.tokenizer)(o) for n, o in ((2000, ts), (size, iter(ts))))
    assert a.words == b.words and (a.corpus.ids == b.corpus.ids).all() and (a.corpus.offsets == b.corpus.offsets).all()
    assert list(a) == [tok.proc1(t) for t in ts]

def test_processes_do_not_matter_and_keep_the_order():
    ts = [f'text number {i} of MANY, {"very "*(i % 5)}long' for i in range(450)]
    a, b = (nb.TokenizeProcessor(max_workers=n)(ts) for n in (1, 3))
    assert a.words == b.words and (a.corpus.ids == b.corpus.ids).all()
    assert b[449] == tok.proc1(ts[449])

def test_files_are_read_by_the_workers_and_errors_name_them(tmp_path):
    for i in range(250): (tmp_path/f'{i:03}.txt').write_text(f'text {i}', encoding='utf-8')
    files = nb.TextList.from_files(tmp_path).items
    assert nb.TokenizeProcessor(max_workers=2)(files)[7] == ['xxbos', 'text', '7', 'xxeos']
    files[123].write_bytes(b'caf\xe9 \xff')
    with pytest.raises(nb.DataError, match='123.txt is not UTF-8'): nb.TokenizeProcessor(max_workers=2)(files)

@pytest.mark.parametrize('item', [None, float('nan'), 7, b'bytes'])
@pytest.mark.parametrize('n', [3, 250])
def test_what_is_no_text_is_named(item, n):
    for items in ([*['a']*n, item], iter([*['a']*n, item])):
        with pytest.raises(nb.DataError, match=re.escape(f'text {n} must be a string or a Path, not {item!r}: an empty cell?')): nb.TokenizeProcessor(max_workers=2, chunksize=100)(items)
    with pytest.raises(nb.DataError, match='a text must be a string'): tok.proc1(item)

def test_long_words_and_a_full_memory_change_nothing():
    kept = nb._Kept(lambda w: [w[:1]], most=3)
    assert [kept[w] for w in 'ab cd ef gh ij ab'.split()] == [('a',), ('c',), ('e',), ('g',), ('i',), ('a',)] and len(kept) <= 3
    kept['x'*1000]
    assert 'x'*1000 not in kept

def test_rules_of_your_own_and_their_order():
    def shout(x): return [t.upper() for t in x]
    def first(x): return ['first', *x]
    first._order = -1
    assert nb.TokenizeProcessor(post_rules=[shout, first], max_workers=1).proc1('a b') == ['FIRST', 'A', 'B']
    assert nb.TokenizeProcessor(tokenizer=lambda t: t.split('-'), pre_rules=[], post_rules=[]).proc1('a b-c') == ['a b', 'c']

def test_a_processor_can_be_copied_and_pickled():
    proc = nb.TokenizeProcessor(max_workers=1)
    proc.proc1('some words')
    for other in (copy.deepcopy(proc), pickle.loads(pickle.dumps(proc))): assert other.proc1('Some OTHER words') == proc.proc1('Some OTHER words')

def test_languages():
    assert 'z.b.' in nb.TokenizeProcessor('de').proc1('Er kam z.B. heute')
    with pytest.raises(ValueError, match="lang='xy'"): nb.TokenizeProcessor('xy')(['a'])

def test_spacy_is_imported_only_when_a_text_is_tokenized(root):
    code = 'import sys\nfrom exp.nb_12 import *\nTokenizeProcessor()\nassert "spacy" not in sys.modules and "sentencepiece" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], cwd=root, check=True)

@quick
@given(texts)
def test_settings_make_the_same_processor(t): assert again.proc1(t) == tok.proc1(t)

again = nb.TokenizeProcessor.from_settings(json.loads(json.dumps(tok.settings())), max_workers=1)

def test_settings_know_what_they_cannot_store():
    def mine(t): return t
    with pytest.raises(ValueError, match='mine is a rule'): nb.TokenizeProcessor(pre_rules=[mine]).settings()
    with pytest.raises(ValueError, match='pass known='): nb.TokenizeProcessor(tokenizer=mine).settings()
    d = nb.TokenizeProcessor(pre_rules=[mine]).settings(known=[mine])
    with pytest.raises(ValueError, match=r'it needs mine: pass known=\[mine\]'): nb.TokenizeProcessor.from_settings(d)
    with pytest.raises(ValueError, match='unknown kind'): nb.TokenizeProcessor.from_settings(d | dict(pre_rules=[], tokenizer=dict(kind='magic')))

# processes

def test_parallel_is_lazy_in_its_items():
    taken = []
    def items():
        for i in range(100):
            taken.append(i)
            yield i
    results = nb._in_order(abs, items(), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2] and len(taken) < 20
    results.close()

def test_a_worker_that_dies_is_an_error():
    with pytest.raises(RuntimeError, match='worker processes died'): nb.parallel(lambda i: os.kill(os.getpid(), signal.SIGKILL), range(4), max_workers=2)

class TwoParts(Exception):
    def __init__(self, a, b): super().__init__(f'{a} and {b}')

class Lock(Exception): pass

def test_an_error_that_cannot_be_sent_is_told():
    def f(i): raise TwoParts(i, 'more')
    with pytest.raises(RuntimeError, match='TwoParts: 5 and more'): nb.parallel(f, [5, 6], max_workers=2)
    def g(i): raise Lock(lambda: i)
    with pytest.raises(RuntimeError, match='Lock: <function'): nb.parallel(g, [5, 6], max_workers=2)

def test_an_error_that_can_be_sent_is_raised_as_it_is():
    def f(i): raise nb.UnseenLabel(f'no {i}')
    with pytest.raises(nb.UnseenLabel, match='no 5'): nb.parallel(f, [5, 6], max_workers=2)

slowly = """
import sys, time
from exp.nb_12 import *
log, idle = sys.argv[1:]
def noted(t):
    with open(log, 'a') as f: f.write(f'{os.getpid()}\\n')
    time.sleep(.02)
    return t
def some():
    yield from ['a text']*500
    time.sleep(600)
TokenizeProcessor(pre_rules=[noted], tokenizer=str.split, chunksize=250, max_workers=3 if int(idle) else 2)(some() if int(idle) else ['a text']*2000)
"""

@pytest.fixture(scope='module', params=[0, 1], ids=['more work waits', 'a third worker is idle'])
def interrupted(request, root, tmp_path_factory):
    "What comes of Ctrl-C, which a terminal sends to all processes of a program, when two of them have begun to tokenize 250 texts each."
    folder = tmp_path_factory.mktemp('interrupted')
    (log := folder/'log').touch()
    def texts_of(): return Counter(log.read_text().split())
    with open(folder/'said', 'w') as said:
        p = subprocess.Popen([sys.executable, '-c', slowly, log, str(request.param)], cwd=root, stdout=said, stderr=said, start_new_session=True,
                             preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))   # a shell that starts the tests in the background ignores Ctrl-C, and so would its children
    try:
        while p.poll() is None and sum(n > 5 for pid, n in texts_of().items() if pid != str(p.pid)) < 2: time.sleep(.05)
        os.killpg(p.pid, signal.SIGINT)
        p.wait(120)
        return p.returncode, (folder/'said').read_text(), [pid for pid in texts_of() if Path(f'/proc/{pid}').exists()], texts_of().total()
    finally:
        try: os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError: pass

@pytest.mark.skipif(sys.platform != 'linux', reason='asks /proc')
def test_ctrl_c_is_one_error_and_leaves_no_process(interrupted):
    code, said, alive, _ = interrupted
    assert code == -signal.SIGINT and said.count('Traceback') == 1 and said.strip().endswith('KeyboardInterrupt') and not alive

@pytest.mark.skipif(sys.platform != 'linux', reason='asks /proc')
def test_ctrl_c_does_not_wait_for_the_chunks_in_work(interrupted): assert interrupted[3] < 2*250

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError: return False

@pytest.mark.skipif(sys.platform != 'linux', reason='asks /proc')
@pytest.mark.parametrize('idle', [0, 1])
def test_a_process_that_is_killed_leaves_no_process(root, tmp_path, idle):
    (log := tmp_path/'log').touch()
    p = subprocess.Popen([sys.executable, '-c', slowly, log, str(idle)], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while p.poll() is None and len(pids := {*log.read_text().split()} - {str(p.pid)}) < 2: time.sleep(.05)
        p.kill()
        p.wait()
        end = time.monotonic() + 120
        while any(map(alive, pids)) and time.monotonic() < end: time.sleep(.05)
        assert len(pids) == 2 and not any(map(alive, pids))
    finally:
        with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)

def test_no_process_stays_behind():
    before = set(multiprocessing.active_children())
    def bad(i):
        if i == 3: raise KeyError(i)
        return i
    with pytest.raises(KeyError): nb.parallel(bad, range(50), max_workers=2)
    results = nb._in_order(abs, range(50), 2)
    next(results)
    results.close()
    assert set(multiprocessing.active_children()) <= before

@pytest.mark.parametrize('n', [0, 1])
def test_parallel_without_processes(n): assert nb.parallel(lambda i: os.getpid(), [1, 2], max_workers=n) == [os.getpid()]*2

def test_what_a_notebook_made_is_done_here_where_processes_start_afresh(monkeypatch):
    monkeypatch.setattr(nb, '_context', lambda: multiprocessing.get_context('spawn'))
    def made(i): return os.getpid()
    made.__module__ = '__main__'
    assert nb.parallel(made, [1, 2], max_workers=2) == [os.getpid()]*2

def test_processes_that_start_afresh(monkeypatch):
    monkeypatch.setattr(nb, '_context', lambda: multiprocessing.get_context('spawn'))
    ts = [f'text {i}' for i in range(200)]
    assert list(nb.TokenizeProcessor(max_workers=2)(ts)) == [tok.proc1(t) for t in ts]

# corpora

@quick
@given(corpora, st.data())
def test_a_corpus_is_indexed_like_a_list(lists, data):
    c, n = nb.Corpus.from_lists(lists), len(lists)
    assert [o.tolist() for o in c] == lists and c.n_tokens == sum(map(len, lists)) and all(o.dtype == torch.int64 for o in c)
    a, b = data.draw(st.integers(-n - 2, n + 2)), data.draw(st.integers(-n - 2, n + 2))
    assert [o.tolist() for o in c[a:b]] == lists[a:b] and [o.tolist() for o in c[b:a:-1]] == lists[b:a:-1]
    which = data.draw(st.lists(st.integers(-n, n - 1), max_size=5)) if n else []
    for kind in (list, np.array, torch.tensor): assert [o.tolist() for o in c[kind(which)]] == [lists[i] for i in which]
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    assert [o.tolist() for o in c[mask]] == [o for o, m in zip(lists, mask) if m]
    assert [o.tolist() for o in c.backwards()[a:b]] == [o[::-1] for o in lists[a:b]] and list(map(len, lists)) == c.lengths.tolist()

def test_bad_indices_of_a_corpus():
    c = nb.Corpus.from_lists([[1], [2]])
    for i in (2, -3, [2], [True], 'a', 1.5):
        with pytest.raises((IndexError, TypeError)): c[i]
    for i in (2, -3):
        with pytest.raises(IndexError): c.array(i)
    assert [c.array(i).tolist() for i in (-2, -1)] == [[1], [2]]

@pytest.mark.parametrize('ids, offsets', [([1], [0]), ([1, 2], [0, 3]), ([1, 2], [1, 2]), ([1, 2], [0, 2, 1, 2]), ([[1]], [0, 1]), ([], [])])
def test_arrays_that_are_no_corpus(ids, offsets):
    with pytest.raises(ValueError, match='a Corpus needs offsets'): nb.Corpus(ids, offsets)

@settings(max_examples=20)
@given(corpora, st.booleans(), st.booleans())
def test_a_corpus_is_saved_and_loaded(tmp_path_factory, lists, mmap, reverse):
    c = nb.Corpus.from_lists(lists)
    if reverse: c = c.backwards()
    folder = c.save(tmp_path_factory.mktemp('corpus')/'c')
    loaded = nb.Corpus.load(folder, mmap=mmap)
    assert [o.tolist() for o in loaded] == [o.tolist() for o in c]
    assert loaded.nbytes <= 4*c.n_tokens + 8*(len(c) + 1)
    loaded[:1].save(folder)   # over itself, while it is mapped
    assert len(nb.Corpus.load(folder)) == min(1, len(c))

class Evil:
    def __reduce__(self): return os.system, ('touch evil',)

def test_damaged_and_dangerous_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = nb.Corpus.from_lists([[1, 2, 3], [4]]).save(tmp_path/'c')
    good = {f: (folder/f).read_bytes() for f in ('ids.npy', 'offsets.npy')}
    evil = io.BytesIO()
    np.save(evil, np.array([Evil()]), allow_pickle=True)
    bad = [b'', b'rubbish', evil.getvalue(), pickle.dumps(Evil())]
    for f in good:
        for content in [*bad, good[f][:-3]]:
            (folder/f).write_bytes(content)
            with pytest.raises(nb.DataError, match=f): nb.Corpus.load(folder)
        (folder/f).unlink()
        with pytest.raises(nb.DataError, match=f'{f} is missing'): nb.Corpus.load(folder)
        (folder/f).write_bytes(good[f])
    np.save(folder/'ids.npy', np.zeros(9, np.int32))
    with pytest.raises(nb.DataError, match='do not belong together'): nb.Corpus.load(folder)
    np.save(folder/'ids.npy', np.zeros(4))
    with pytest.raises(nb.DataError, match='kind of numbers'): nb.Corpus.load(folder)
    assert not (tmp_path/'evil').exists()
    with pytest.raises(nb.DataError, match='no folder that Corpus.save'): nb.Corpus.load(tmp_path)

def test_a_save_that_fails_leaves_the_older_one(tmp_path, monkeypatch):
    nb.Corpus.from_lists([[1]]).save(tmp_path/'c')
    monkeypatch.setattr(np, 'save', lambda *a, **kw: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'): nb.Corpus.from_lists([[2, 3]]).save(tmp_path/'c')
    assert nb.Corpus.load(tmp_path/'c')[0].tolist() == [1]

@quick
@given(token_lists, st.integers(1, 4))
def test_token_lists_from_parts(lists, k):
    parts = [nb._numbered(lists[i:i + k]) for i in range(0, len(lists), k)]
    whole, joined = nb.TokenLists.from_lists(lists), nb.TokenLists.join(parts)
    assert list(joined) == list(whole) == lists and joined.words == whole.words
    assert nb.count_tokens(joined) == Counter(t for o in lists for t in o) == nb.count_tokens(nb.TokenLists(whole.corpus, whole.words + ['unused']))
    assert list(whole[::-1]) == lists[::-1]

# vocabulary

@quick
@given(token_lists, st.integers(9, 14), st.integers(1, 3), st.randoms())
def test_vocabulary(lists, most, min_freq, rnd):
    num = nb.NumericalizeProcessor(max_vocab=most, min_freq=min_freq)
    ids, special = num(lists), [*nb.default_spec_tok, nb.FLD]
    counts = Counter(t for o in lists for t in o)
    expected = sorted((t for t in counts if counts[t] >= min_freq), key=lambda t: (-counts[t], t))[:most - 9]
    assert num.vocab == special + expected
    assert [num.deproc1(o) for o in ids] == [[t if t in num.otoi else 'xxunk' for t in o] for o in lists]
    mixed = rnd.sample(lists, len(lists))
    other = nb.NumericalizeProcessor(max_vocab=most, min_freq=min_freq)
    other(mixed)
    assert other.vocab == num.vocab   # whatever the order of the texts

@quick
@given(token_lists, st.lists(st.text(), max_size=5))
def test_a_vocabulary_never_changes(lists, unknown):
    num = nb.NumericalizeProcessor(min_freq=1)
    num(lists)
    before = list(num.vocab), dict(num.otoi)
    num([unknown])
    num.numericalize(unknown)
    num.proc1(unknown)
    assert (num.vocab, num.otoi) == before and type(num.otoi) is dict

def test_bad_vocabularies():
    with pytest.raises(ValueError, match="has 'a' twice"): nb.NumericalizeProcessor(vocab=['xxunk', 'a', 'b', 'a'])
    with pytest.raises(ValueError, match='lacks xxunk'): nb.NumericalizeProcessor(vocab=[])
    for f in ('numericalize', 'deproc1', 'proc1'):
        with pytest.raises(RuntimeError, match='no vocabulary yet'): getattr(nb.NumericalizeProcessor(), f)([])

def test_a_bad_vocabulary_changes_nothing():
    p = nb.NumericalizeProcessor(vocab=['xxunk', 'a'])
    for bad in (['xxunk', 'b', 'b'], ['b']):
        with pytest.raises(ValueError, match='vocabulary'): p.vocab = bad
        assert p.vocab == ['xxunk', 'a'] and p.numericalize(['a', 'b']) == [1, 0]

@quick
@given(st.lists(st.sampled_from([*nb.default_spec_tok, 'a', '4', '\n', '.', "n't", '▁', '▁no', '٣', '']), max_size=12))
def test_any_tokens_can_be_shown(toks): assert isinstance(nb.show_text(toks), str)

def test_very_many_marks_can_be_shown():
    "As a language model may write them; and repetitions of repetitions don't fill the memory."
    assert nb.show_text(['xxmaj', *['xxup']*5000, 'a', 'b']) == 'A b'
    assert len(nb.show_text([*['xxrep', '9'*5000]*20, 'a'])) <= 1000
    assert nb.show_text(['xxwrep', '3', 'xxrep', '4', 'o']) == 'oooo oooo oooo' and nb.show_text(['xxbos', 'hi', 'xxrep']).strip() == 'hi'
    assert nb.show_text(['xxrep', 'x', 'y']) == 'x y'

def test_pieces_are_shown_with_their_repetitions():
    toks = 'xxbos ▁ S ▁ xxrep ▁ 5 ▁ o ▁good ▁ xxrep ▁4 ▁ ! \n\n ▁ xxwrep ▁3 ▁no ▁fil m . xxeos'.split(' ')
    assert nb.show_text(toks) == 'S ooooo good!!!!\n\nno no no film.'
    vocab = sorted({*toks})
    assert nb.show_text([vocab.index(t) for t in toks], vocab) == nb.show_text(toks)
    assert nb.show_text(['xxbos', '▁un', 'xxunk', 'ly', 'xxpad', 'xxpad']) == 'unxxunkly'
    assert nb.show_text(['▁', 'xxrep', '▁x', '▁y']) == 'x y'

def test_an_unknown_word_is_shown_as_its_mark():
    assert nb.show_text(['xxmaj', 'the', 'xxmaj', 'xxunk', 'xxup', 'xxunk', 'xxup', 'bbc']) == 'The xxunk xxunk BBC'
    assert nb.show_text(['xxrep', '3', 'xxmaj', 'xxunk']) == 'xxunk'*3

# the stream

def goes_on(batches):
    batches = list(batches)
    return all(torch.equal(y[:, -1], x2[:, 0]) for (x, y), (x2, _) in zip(batches, batches[1:])) and all(torch.equal(x[:, 1:], y[:, :-1]) for x, y in batches)

streams = dict(lists=st.lists(st.lists(st.integers(0, 99), max_size=30), min_size=1, max_size=8), bs=st.integers(1, 5), bptt=st.integers(1, 6), shuffle=st.booleans(), backwards=st.booleans())

@quick
@given(**streams, ahead=st.integers(1, 4))
def test_stream(lists, bs, bptt, shuffle, backwards, ahead):
    c, n = nb.Corpus.from_lists(lists), sum(map(len, lists))
    if n//bs < bptt + 1:
        with pytest.raises(ValueError, match='too few'): nb.LM_PreLoader(c, bs, bptt)
        return
    pre = nb.LM_PreLoader(c, bs, bptt, shuffle=shuffle, backwards=backwards)
    torch.manual_seed(0)
    batches = list(nb.LMLoader(pre, ahead))
    order = range(len(lists)) if pre.order is None else pre.order
    stream = [t for i in order for t in (lists[i][::-1] if backwards else lists[i])]
    rows = torch.tensor(stream[:n//bs*bs]).view(bs, -1)
    windows = (rows.shape[1] - 1)//bptt
    assert len(batches) == windows == len(nb.LMLoader(pre)) and goes_on(batches)
    assert torch.equal(torch.cat([x for x, _ in batches], 1), rows[:, :windows*bptt]) and torch.equal(torch.cat([y for _, y in batches], 1), rows[:, 1:windows*bptt + 1])
    assert all(x.is_contiguous() and y.is_contiguous() and x.dtype == y.dtype == torch.int64 for x, y in batches)
    for (x, y), (x2, y2) in zip(batches, DataLoader(pre, batch_size=bs)): assert torch.equal(x, x2) and torch.equal(y, y2)
    assert n - windows*bptt*bs < bs*(bptt + 1) + 1

def test_each_epoch_has_another_order_which_a_generator_decides():
    c = nb.Corpus.from_lists([[i]*3 for i in range(50)])
    def epochs(): 
        dl, _ = nb.get_lm_dls(c, c, 2, 5, generator=torch.Generator().manual_seed(1))
        return [torch.cat([x for x, _ in dl]).tolist() for _ in range(2)]
    a, b = epochs(), epochs()
    assert a == b and a[0] != a[1]

def test_a_second_pass_does_not_spoil_the_one_under_way():
    data = nb.lm_databunchify(small_data(60), 2, 4)
    dl = nb.LMLoader(data.train_ds, ahead=1)
    order, batches = [], []
    for i, b in enumerate(dl):
        order.append(dl.dataset.order.tolist())
        batches.append(b)
        if i in (0, 3): next(iter(dl))
        if i == 5: data.show_batch()
    ids, used = data.train_ds.texts.ids, len(dl)*4
    rows = torch.cat([x for x, _ in batches], 1)
    assert goes_on(batches) and len({*map(tuple, order)}) == 4   # the dataset has got another order, thrice
    pre = copy.copy(dl.dataset)
    pre.order = np.array(order[0])
    pre.ends = np.cumsum(pre.texts.lengths[pre.order])
    assert rows.tolist() == [pre.read(r*pre.row_len, used).tolist() for r in range(2)]   # all texts, in the order of the first

def test_validation_keeps_its_order_at_the_same_batch_size():
    c = nb.Corpus.from_lists([range(100)])
    _, valid = nb.get_lm_dls(c, c, 4, 5)
    state = torch.get_rng_state()
    assert goes_on(valid) and [x.tolist() for x, _ in valid] == [x.tolist() for x, _ in valid] and valid.batch_size == 4
    assert torch.equal(torch.get_rng_state(), state)

def test_too_few_tokens_say_in_which_set():
    long, short = nb.Corpus.from_lists([range(1000)]), nb.Corpus.from_lists([[1, 2]])
    with pytest.raises(ValueError, match='the validation set: 2 tokens are too few for 4 rows of 5'): nb.get_lm_dls(long, short, 4, 5)
    with pytest.raises(ValueError, match='the training set: 0 tokens'): nb.get_lm_dls(nb.Corpus.from_lists([]), long, 4, 5)
    with pytest.raises(ValueError, match='bs and bptt must be 1 or more'): nb.LM_PreLoader(long, 0, 5)
    with pytest.raises(ValueError, match='no numbers yet'): nb.LM_PreLoader(['a text'], 1, 1)
    with pytest.raises(IndexError): nb.LM_PreLoader(long, 4, 5)[10**6]

def test_a_mapped_corpus_is_read_only_where_it_is_used(tmp_path):
    n = 4_000_000
    nb.Corpus(np.arange(n, dtype=np.int32), np.arange(0, n + 1, 400)).save(tmp_path/'c')
    loaded = nb.Corpus.load(tmp_path/'c')
    assert loaded.nbytes < 4.4*n and isinstance(loaded.ids.base, np.memmap)
    x, y = next(iter(nb.LMLoader(nb.LM_PreLoader(loaded, 64, 70, shuffle=True))))
    assert x.shape == (64, 70) and torch.equal(x[:, 1:], y[:, :-1])
    assert loaded[7].tolist() == list(range(2800, 3200)) and np.shares_memory(loaded[5:9].ids, loaded.ids)

@pytest.mark.parametrize('backwards', [False, True])
def test_a_mapped_corpus_is_never_copied(tmp_path, backwards):
    import tracemalloc
    n = 10_000_000
    nb.Corpus(np.arange(n, dtype=np.int32) % 60_000, np.arange(0, n + 1, 400)).save(tmp_path/'c')
    tracemalloc.start()
    try:
        c = nb.Corpus.load(tmp_path/'c')
        for dl in nb.get_lm_dls(c, c, backwards=backwards):
            for _ in range(2): assert len([b for b, _ in zip(dl, range(20))]) == 20   # the second pass is in another order
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert peak < 4*n/5

def steps_of(f):
    "How many instructions of Python `f()` takes."
    n, old = 0, sys.gettrace()
    def trace(frame, event, arg):
        nonlocal n
        frame.f_trace_opcodes = True
        n += event == 'opcode'
        return trace
    sys.settrace(trace)
    try: f()
    finally: sys.settrace(old)
    return n

@pytest.mark.parametrize('backwards', [False, True])
def test_ten_times_the_tokens_take_no_more_python(backwards):
    def steps(k):
        c = nb.Corpus.from_lists([np.arange(20*k)]*100)
        def passes():
            for dl in nb.get_lm_dls(c, c, 4, 10*k, backwards=backwards, generator=torch.Generator().manual_seed(0)): assert len(list(dl)) == 49
        return steps_of(passes)
    assert steps(10) < 1.1*steps(1)

# samplers and padding

@quick
@given(st.lists(st.integers(0, 20), max_size=120), st.integers(1, 3), st.integers(0, 2**31))
def test_sortish_order(keys, bs, seed):
    order = list(nb.SortishSampler(keys, keys.__getitem__, bs, torch.Generator().manual_seed(seed)))
    assert sorted(order) == list(range(len(keys)))
    if len(keys) >= bs: assert keys[order[0]] == max(keys[i] for a in range(0, len(order) - len(order) % bs, bs) for i in order[a:a + bs])
    assert order == list(nb.SortishSampler(keys, keys.__getitem__, bs, torch.Generator().manual_seed(seed)))
    for a in range(0, len(order), bs): assert [keys[i] for i in order[a:a + bs]] == sorted((keys[i] for i in order[a:a + bs]), reverse=True)

def test_sortish_order_is_random_but_for_its_lots():
    keys = torch.randperm(400, generator=torch.Generator().manual_seed(0)).tolist()
    def batches(lot, seed):
        order = list(nb.SortishSampler(keys, keys.__getitem__, 4, torch.Generator().manual_seed(seed), lot=lot))
        return [[keys[i] for i in order[a:a + 4]] for a in range(0, 400, 4)]
    def spread(lot): return np.mean([b[0] - b[-1] for b in batches(lot, 0)])
    assert spread(1) > 200 > 20 > spread(25) > spread(100) == 3   # a lot of all 100 batches is sorted as a whole
    for lot in (10, 100):
        firsts = [b[0] for b in batches(lot, 0)][1:]
        assert firsts != sorted(firsts, reverse=True) and batches(lot, 0) != batches(lot, 1)   # nor do batches come by length
    assert batches(10, 0) != batches(50, 0) == [*nb._cut([keys[i] for i in nb.SortishSampler(keys, keys.__getitem__, 4, torch.Generator().manual_seed(0))], 4)]

def test_sorted_order():
    keys = [3, 9, 1, 9]
    assert list(nb.SortSampler(keys, keys.__getitem__)) == [1, 3, 0, 2] and list(nb.SortSampler([], keys.__getitem__)) == []

@quick
@given(st.lists(st.lists(st.integers(2, 99), max_size=6), min_size=1, max_size=5), st.booleans())
def test_padding(lists, first):
    x, y = nb.pad_collate([(torch.tensor(o, dtype=torch.long), i) for i, o in enumerate(lists)], pad_first=first)
    assert x.shape == (len(lists), max(1, max(map(len, lists)))) and y.tolist() == list(range(len(lists)))
    for row, o in zip(x.tolist(), lists):
        pad = [1]*(x.shape[1] - len(o))
        assert row == (pad + o if first else o + pad)

@quick
@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 4))
def test_padding_share_is_that_of_the_batches(lengths, bs):
    samples = [(torch.full((n,), 5), 0) for n in lengths]
    batches = [nb.pad_collate(samples[i:i + bs])[0] for i in range(0, len(samples), bs) if any(lengths[i:i + bs])]
    share = sum((b == 1).sum().item() for b in batches)/max(1, sum(b.numel() for b in batches))
    assert nb.padding_share(lengths, range(len(lengths)), bs) == pytest.approx(share if batches else 1.)

# the data block

def small_data(n=20, **kw):
    ts = [f'{"good" if i % 2 else "bad"} film number {i} ' + 'indeed it was so '*(i % 7) for i in range(n)]
    sd = nb.SplitData(nb.TextList(ts[n//4:]), nb.TextList(ts[:n//4]))
    return nb.label_by_func(sd, lambda t: t.split()[0], proc_x=[nb.TokenizeProcessor(max_workers=1), nb.NumericalizeProcessor(min_freq=1)], proc_y=nb.CategoryProcessor())

def test_text_lists(tmp_path):
    (tmp_path/'pos').mkdir()
    (tmp_path/'pos'/'1.txt').write_text('\ufeffone', encoding='utf-8')
    il = nb.TextList.from_files(tmp_path)
    assert il[0] == 'one' and list(il[:1]) == ['one'] and 'pos/1.txt' in repr(il)
    with pytest.raises(nb.DataError, match='no file ending in .txt'): nb.TextList.from_files(tmp_path, recurse=False)
    with pytest.raises(FileNotFoundError, match='no such folder'): nb.TextList.from_files(tmp_path/'nowhere')

def test_a_classifier_s_batches_have_every_text_once():
    ll = small_data()
    data = nb.clas_databunchify(ll, 4)
    def texts_of(dl): return sorted(tuple(t for t in row if t != 1) + (int(l),) for x, y in dl for row, l in zip(x.tolist(), y))
    assert texts_of(data.train_dl) == sorted((*x.tolist(), y) for x, y in ll.train) and texts_of(data.valid_dl) == sorted((*x.tolist(), y) for x, y in ll.valid)
    assert data.vocab == ['bad', 'good'] and data.c_out == 2 and data.text_vocab == ll.train.proc_x[1].vocab and not data.is_lm

def test_a_classifier_s_batches_are_of_similar_lengths():
    rng = np.random.default_rng(0)
    ds = nb.labelled_corpus(nb.Corpus.from_lists([[5]*n for n in rng.integers(1, 200, 600)]), [0]*600)
    def padding(dl): return float(sum((x == 1).sum() for x, _ in dl)/sum(x.numel() for x, _ in dl))
    train, valid = nb.get_clas_dls(ds, ds, 8)
    assert padding(train) < .15 and padding(valid) < .03 < nb.padding_share(ds.x.items.lengths, range(600), 8)/10
    lengths = [int((x != 1).sum(1).max()) for x, _ in valid]
    assert lengths == sorted(lengths, reverse=True)

@pytest.mark.parametrize('vocab, pad', [(['xxunk', 'a', 'b', 'xxpad'], 3), (['xxpad', 'xxunk', 'a', 'b'], 0), (['xxunk', 'xxpad', 'a', 'b'], 1)])
def test_padding_is_the_vocabulary_s(vocab, pad):
    num = nb.NumericalizeProcessor(vocab=vocab)
    ds = nb.labelled_corpus(num([['a', 'b', 'a'], ['b']]), [0, 1], [nb.TokenizeProcessor(max_workers=1), num])
    for dl in nb.get_clas_dls(ds, ds, 2):
        x = sorted(next(iter(dl))[0].tolist(), key=lambda o: o.count(pad))
        assert x == [num.numericalize(['a', 'b', 'a']), [num.otoi['b'], pad, pad]]
    for dl in nb.get_clas_dls(ds, ds, 2, pad_idx=7): assert (next(iter(dl))[0] == 7).sum() == 2

def test_a_vocabulary_without_padding_needs_pad_idx():
    num = nb.NumericalizeProcessor(vocab=['xxunk', 'a'])
    ds = nb.labelled_corpus(num([['a', 'a'], ['a']]), [0, 1], num)
    with pytest.raises(ValueError, match='lacks xxpad'): nb.get_clas_dls(ds, ds, 2)
    for dl in nb.get_clas_dls(ds, ds, 2, pad_idx=0): assert (next(iter(dl))[0] == 0).sum() == 1

def test_without_a_vocabulary_padding_is_1():
    ds = nb.labelled_corpus(nb.Corpus.from_lists([[5, 6], [7]]), [0, 1])
    for dl in nb.get_clas_dls(ds, ds, 2): assert sorted(next(iter(dl))[0].tolist()) == [[5, 6], [7, 1]]

def test_validation_does_not_touch_the_global_random_numbers():
    data = nb.clas_databunchify(small_data(), 4)
    state = torch.get_rng_state()
    list(data.valid_dl)
    assert torch.equal(torch.get_rng_state(), state)

def test_backwards_is_the_same_text_from_its_end():
    ll = small_data()
    forward, back = (next(iter(nb.clas_databunchify(ll, 1, backwards=b).valid_dl))[0][0] for b in (False, True))
    assert torch.equal(forward.flip(0), back) and ll.train.x.items.reverse is False

def test_workers_of_the_loader():
    data = nb.clas_databunchify(small_data(), 4, num_workers=1)
    assert sum(len(y) for _, y in data.train_dl) == 15

def test_lm_databunch():
    data = nb.lm_databunchify(small_data(), 2, 4)
    assert data.is_lm and data.vocab is data.text_vocab and data.c_out == len(data.vocab) and len(data.procs) == 2
    assert len(data.show_batch(2).rows) == 2

def test_empty_sets_and_bad_batch_sizes():
    ll = small_data()
    with pytest.raises(ValueError, match='valid_ds is empty'): nb.get_clas_dls(ll.train, [], 4)
    with pytest.raises(ValueError, match='bs must be 1'): nb.get_clas_dls(ll.train, ll.valid, 0)

def test_an_unseen_label_names_the_text():
    sd = nb.SplitData(nb.TextList(['a b', 'c']), nb.TextList(['d e']))
    with pytest.raises(nb.UnseenLabel, match="d e.*'d'"): nb.label_by_func(sd, lambda t: t[0], proc_x=None, proc_y=nb.CategoryProcessor())

# tables

def table(n=30):
    return pd.DataFrame(dict(title=[f'Title {i}' for i in range(n)], body=[f'body of text {i}, "quoted"\nand more' for i in range(n)], kind=['ab'[i % 2] for i in range(n)],
                             long=[i % 3 == 0 for i in range(n)], funny=[int(i % 4 == 0) for i in range(n)], is_valid=[int(i % 5 == 0) for i in range(n)]))

one_process = dict(proc_tok=nb.TokenizeProcessor(max_workers=1))

@settings(max_examples=10)
@given(st.integers(1, 40))
def test_a_table_in_chunks_of_any_size(tmp_path_factory, size):
    file, df = tmp_path_factory.mktemp('t')/'t.csv', table()
    df.to_csv(file, index=False)
    kw = dict(text_cols=['title', 'body'], label_cols='kind', valid_col='is_valid')
    a, b = nb.text_data_from_table(df, **kw, **one_process), nb.text_data_from_table(file, chunksize=size, **kw, **one_process)
    assert a.train.proc_x[1].vocab == b.train.proc_x[1].vocab and a.train.proc_y.vocab == ['a', 'b']
    for x, y in ((a.train, b.train), (a.valid, b.valid)): assert [o.tolist() for o in x.x.items] == [o.tolist() for o in y.x.items] and x.y.items == y.y.items
    assert len(a.valid) == 6 and a.valid.x_obj(0).startswith('xxbos xxfld 1 xxmaj title xxunk xxfld 2 body of text')

@settings(max_examples=10)
@given(st.integers(1, 8))
def test_a_file_is_text_in_chunks_of_any_size(tmp_path_factory, size):
    file = tmp_path_factory.mktemp('t')/'t.csv'
    file.write_text('\ufefftext,label,is_valid\n7,1,0\nNA,2,0\n,None,0\n10,other,0\nnull,1,0\n3.50,2,0\n8,1,1\n')
    sd = nb.text_data_from_table(file, valid_col='is_valid', chunksize=size, proc_tok=nb.TokenizeProcessor(tokenizer=str.split, pre_rules=[], post_rules=[], max_workers=1), proc_num=nb.NumericalizeProcessor(min_freq=1))
    assert [sd.train.x_obj(i) for i in range(6)] == ['7', 'NA', '', '10', 'null', '3.50'] and sd.train.proc_y.vocab == ['1', '2', 'None', 'other']

def test_both_parts_on_disk_with_as_many_tokens(tmp_path):
    df = pd.DataFrame(dict(text=[f'good film a{i}' for i in range(6)] + [f'poor play b{i}' for i in range(6)], label=['x', 'y']*6, is_valid=[0]*6 + [1]*6))
    a, b = (nb.text_data_from_table(df, valid_col='is_valid', proc_num=nb.NumericalizeProcessor(min_freq=1), folder=folder, **one_process) for folder in (None, tmp_path/'out'))
    assert a.train.x.items.n_tokens == a.valid.x.items.n_tokens
    for x, y in ((a.train, b.train), (a.valid, b.valid)): assert [o.tolist() for o in x.x.items] == [o.tolist() for o in y.x.items]

def test_a_table_on_disk_with_a_rule_of_ones_own(tmp_path):
    def louder(t): return t.upper()
    kw = dict(proc_tok=nb.TokenizeProcessor(pre_rules=[louder], max_workers=1), valid_col='is_valid', folder=tmp_path/'out')
    with pytest.raises(ValueError, match='known=.louder.'): nb.text_data_from_table(table(), 'body', 'kind', **kw)
    sd = nb.text_data_from_table(table(), 'body', 'kind', **kw, known=[louder])
    assert sd.train.proc_x[0].pre_rules == (louder,)

def test_a_share_for_validation_does_not_depend_on_the_chunks(tmp_path):
    file = tmp_path/'t.csv'
    table(60).to_csv(file, index=False)
    sets = [nb.text_data_from_table(file, 'body', 'kind', p_valid=.3, chunksize=n, **one_process) for n in (7, 100)]
    assert [o.tolist() for o in sets[0].valid.x.items] == [o.tolist() for o in sets[1].valid.x.items] and 5 < len(sets[0].valid) < 40

def test_a_table_may_be_larger_than_memory(tmp_path):
    "Twice as many rows take hardly more memory, as numpy and Python tell tracemalloc: a number or two for a row, and nothing for its text."
    import tracemalloc
    def by_space(t): return t.split()
    words, rng, peaks, sizes = [f'word{i}' for i in range(500)], np.random.default_rng(0), [], []
    for n in (100, 1500, 3000):
        with open(tmp_path/f'{n}.csv', 'w') as f:
            f.write('text,label\n')
            for i in range(n): f.write(f'{" ".join(rng.choice(words, 300))},{"ab"[i % 2]}\n')
        tok = nb.TokenizeProcessor(tokenizer=by_space, pre_rules=[], post_rules=[], max_workers=1, chunksize=50)
        tracemalloc.start()
        try:
            sd = nb.text_data_from_table(tmp_path/f'{n}.csv', proc_tok=tok, chunksize=50, folder=tmp_path/f'{n}', known=[by_space])
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally: tracemalloc.stop()
        sizes.append((tmp_path/f'{n}.csv').stat().st_size)
        assert sd.train.x.items.n_tokens + sd.valid.x.items.n_tokens == n*300
    assert peaks[2] - peaks[1] < (sizes[2] - sizes[1])/10

@pytest.fixture
def bars(monkeypatch):
    "The bars that are shown in a notebook, on a machine where everything takes seconds."
    import fastprogress.fastprogress as fp
    ticks, bars = iter(range(0, 10**6, 3)), []
    class Bar:
        def __init__(self, gen, **kw): self.total, self.start_t, self.seen = len(gen), 0., bars.append(self) or []
        def update(self, n): self.seen.append(n)
    monkeypatch.setattr(fp, 'progress_bar', Bar)
    monkeypatch.setattr(fp, 'IN_NOTEBOOK', True)
    monkeypatch.setattr(nb.time, 'perf_counter', lambda: next(ticks))
    return bars

@pytest.mark.parametrize('as_file', [True, False])
def test_a_bar_says_how_much_of_a_table_is_done(tmp_path, bars, as_file):
    df = pd.DataFrame(dict(text=['a film of some length '*160]*400, label=['a', 'b']*200))
    df.to_csv(tmp_path/'t.csv', index=False)
    nb.text_data_from_table(tmp_path/'t.csv' if as_file else df, chunksize=20, **one_process)
    bar, = bars
    assert bar.total == ((tmp_path/'t.csv').stat().st_size if as_file else 20)
    assert bar.seen == sorted(bar.seen) and bar.seen[-1] == bar.total and len({*bar.seen}) >= 4

@pytest.mark.parametrize('as_files', [True, False])
@pytest.mark.parametrize('workers', [1, 2])
def test_a_bar_says_how_many_texts_are_tokenized(tmp_path, bars, as_files, workers):
    items = [f'text {i}' for i in range(240)]
    if as_files:
        for i, t in enumerate(items): (tmp_path/f'{i:03}.txt').write_text(t)
        items = nb.TextList.from_files(tmp_path).items
    nb.TokenizeProcessor(max_workers=workers, chunksize=20)(items)
    bar, = bars
    assert bar.total == 12 and bar.seen == [0, *range(1, 13)]

def test_a_bar_is_shown_where_it_can_be_seen(bars, monkeypatch):
    import fastprogress.fastprogress as fp
    class Terminal(io.StringIO):
        def isatty(self): return True
    monkeypatch.setattr(fp, 'IN_NOTEBOOK', False)
    for out, n in ((io.StringIO(), 0), (Terminal(), 1)):
        monkeypatch.setattr(sys, 'stdout', out)
        nb.TokenizeProcessor(max_workers=1, chunksize=2)(['a', 'b', 'c'])
        assert len(bars) == n

def test_quick_work_has_no_bar(bars, monkeypatch):
    monkeypatch.setattr(nb.time, 'perf_counter', lambda: 0.)
    nb.TokenizeProcessor(max_workers=1, chunksize=1)(['a', 'b'])
    assert not bars

def test_the_time_left_counts_from_the_beginning(monkeypatch):
    import fastprogress.fastprogress as fp
    now, said = 100., []
    def seconds(n):
        nonlocal now
        for i in range(n):
            now += 1
            yield i
    class Bar(fp.ProgressBar):
        def on_update(self, val, text): said.append((val, text))
    monkeypatch.setattr(fp, 'progress_bar', Bar)
    monkeypatch.setattr(fp, 'IN_NOTEBOOK', True)
    for clock in ('perf_counter', 'time'): monkeypatch.setattr(nb.time, clock, lambda: now)
    assert list(nb.with_bar(seconds(10), 10)) == [*range(10)]
    assert {val: text for val, text in said if val} == {n: f'{n*10:.2f}% [{n}/10 00:{n:02}<00:{10 - n:02}]' for n in range(3, 11)}

@given(st.from_regex(r'[A-Za-z]\w{1,30}', fullmatch=True))
def test_an_entity_that_html_does_not_know_stays(name):
    import html.entities
    assert nb.fixup_text(f'a &{name}; b') == (f'a &{name}; b' if f'{name};' not in html.entities.html5 else f'a {html.entities.html5[f"{name};"]} b').replace('\xa0', ' ')

@pytest.mark.parametrize('before', ['guitars&amps; drums', 'p = &params;', 'x = &current;', 'cats&notes;'])
def test_no_part_of_a_name_is_an_entity(before): assert nb.fixup_text(before) == before

@given(st.text('4a, ', max_size=30))
def test_what_one_rule_has_written_is_no_repeated_word(t):
    after = nb.replace_wrep(nb.replace_rep(t))
    def undo(t, mark, joined): return re.sub(rf' {mark} (\d+) (\S+) ', lambda m: joined.join([m[2]]*int(m[1])), t)
    def words(t): return re.findall(r'\w+', t)
    assert words(undo(undo(after, nb.TK_WREP, ' '), nb.TK_REP, '')) == words(t)

def own_rule(t): return t.replace('film', 'movie')

@pytest.mark.parametrize('rule', [own_rule, lambda t: own_rule(t)])
def test_rules_of_a_notebook_where_processes_start_afresh(monkeypatch, rule):
    monkeypatch.setattr(nb, '_context', lambda: multiprocessing.get_context('spawn'))
    monkeypatch.setattr(sys.modules['__main__'], 'own_rule', own_rule, raising=False)
    monkeypatch.setattr(own_rule, '__module__', '__main__')
    tok = nb.TokenizeProcessor(pre_rules=[rule], max_workers=2)
    assert tok(['a film']*200)[199] == tok.proc1('a movie')
    assert nb.parallel(partial(rule), ['film'], 2) == ['movie']

def test_new_rules_hold_for_kept_words():
    tok = nb.TokenizeProcessor()
    assert 'xxup' in tok.proc1('GREAT')
    tok.post_rules = [nb.add_eos_bos]
    assert tok.proc1('GREAT') == ['xxbos', 'GREAT', 'xxeos'] == pickle.loads(pickle.dumps(tok)).proc1('GREAT')
    tok.tokenizer = list
    assert tok.proc1('ab') == ['xxbos', 'a', 'b', 'xxeos']

def test_default_rules_are_everybodys():
    tok = nb.TokenizeProcessor()
    for rules in (tok.pre_rules, tok.post_rules, nb.TokenizeProcessor(tokenizer=nb.SubwordTokenizer(b'')).post_rules):
        with pytest.raises(AttributeError, match='append'): rules.append(str.upper)
    assert [*tok.pre_rules] == nb.default_pre_rules and [*tok.post_rules] == nb.default_post_rules
    tok.post_rules = nb.add_eos_bos   # one alone will do
    assert tok.proc1('GREAT') == ['xxbos', 'GREAT', 'xxeos'] and tok.settings()['post_rules'] == ['add_eos_bos']
    assert nb.TokenizeProcessor().proc1('GREAT') == ['xxbos', 'xxup', 'great', 'xxeos']

def test_rules_may_come_from_anywhere():
    tok = nb.TokenizeProcessor()
    tok.post_rules = (f for f in (nb.replace_all_caps, nb.add_eos_bos))
    assert tok.proc1('GREAT') == tok.proc1('GREAT') == ['xxbos', 'xxup', 'great', 'xxeos'] and len(tok.settings()['post_rules']) == 2
    tok.pre_rules = nb.default_pre_rules
    assert tok.pre_rules is not nb.default_pre_rules and not hasattr(tok.pre_rules, 'append')

@pytest.mark.parametrize('text', ['A film', Path('a.txt')])
def test_one_text_is_no_list(text):
    with pytest.raises(ValueError, match='list of texts'): nb.TokenizeProcessor()(text)
    with pytest.raises(ValueError, match='many texts'): nb.SubwordTokenizer.train(text)

def test_labels_that_are_no_whole_numbers_are_not_cut(tmp_path):
    procs = [nb.TokenizeProcessor(), nb.NumericalizeProcessor(vocab=[*nb.default_spec_tok])]
    for labels in ([7.5, 3.2], ['a', 'b']):
        sd = nb.SplitData(*[nb.labelled_corpus(nb.Corpus.from_lists([[1], [2]]), labels, procs)]*2)
        with pytest.raises(ValueError, match=f'{labels[0]!r} is none'): nb.save_text_data(tmp_path/'data', sd)
        assert not (tmp_path/'data').exists()

def _first(ds): return ds[0][0].tolist()

@pytest.mark.parametrize('backwards', [False, True])
def test_a_mapped_corpus_goes_to_processes_as_a_name(tmp_path, backwards):
    nb.Corpus.from_lists([[3, 4], range(10_000)]).save(tmp_path/'c')
    corpus = nb.Corpus.load(tmp_path/'c')
    if backwards: corpus = corpus.backwards()
    sent = pickle.dumps(corpus)
    again = pickle.loads(sent)
    assert len(sent) < 1000 and again.reverse == backwards and isinstance(again.ids.base, np.memmap)
    assert [o.tolist() for o in again] == [o.tolist() for o in corpus]
    part = pickle.loads(pickle.dumps(corpus[:1]))
    assert [o.tolist() for o in part] == [[4, 3] if backwards else [3, 4]]
    loaded = pickle.loads(pickle.dumps(nb.Corpus.load(tmp_path/'c', mmap=False)))
    assert loaded.array(0).tolist() == [3, 4] and not isinstance(loaded.ids.base, np.memmap)

def test_a_folders_tokens_are_written_beside_it(tmp_path, monkeypatch):
    made, real = [], tempfile.TemporaryDirectory
    monkeypatch.setattr(nb.tempfile, 'TemporaryDirectory', lambda **kw: made.append(kw['dir']) or real(**kw))
    nb.text_data_from_table(table(), 'body', None, 'is_valid', folder=tmp_path/'new'/'data', **one_process)
    assert made == [tmp_path/'new'] and [o.name for o in (tmp_path/'new').iterdir()] == ['data']

def test_a_column_that_is_there_twice_is_named():
    df = pd.DataFrame([['a', 'b', 0]], columns=['text', 'text', 'label'])
    with pytest.raises(ValueError, match="more than one column 'text'"): nb.TextList.from_df(df)

def test_a_bad_byte_is_found_by_its_row(tmp_path):
    file = tmp_path/'t.csv'
    file.write_bytes(b'text,label\n' + b'good,a\n'*40_000 + b'caf\xe9,b\n')
    with pytest.raises(nb.DataError, match='0xe9, after row (20,000|40,000)'): nb.text_data_from_table(file, chunksize=20_000, **one_process)

def test_a_table_with_an_odd_index_is_taken_by_place():
    df = pd.DataFrame(dict(text=[f'w{i}' for i in range(9)], label=['a', 'b', 'a']*3, v=[0, 0, 1]*3), index=np.linspace(5., 1., 9))
    sd = nb.text_data_from_table(df, valid_col='v', chunksize=2, proc_num=nb.NumericalizeProcessor(min_freq=1), **one_process)
    assert len(sd.train) == 6 and sd.train.proc_x[1].deproc1(sd.train.x[0])[1:-1] == ['w0']

def test_a_folder_without_texts_is_named(tmp_path):
    for name in ('pos/1.txt', 'neg/1.text'):
        (file := tmp_path/name).parent.mkdir()
        file.write_text('a film')
    with pytest.warns(UserWarning, match='no text in .*neg'): tl = nb.TextList.from_files(tmp_path)
    assert len(tl) == 1

def test_only_the_training_rows_make_the_vocabulary():
    df = pd.DataFrame(dict(text=['a a b', 'c c c'], label=['x', 'x'], is_valid=[0, 1]))
    sd = nb.text_data_from_table(df, valid_col='is_valid', **one_process)
    assert 'a' in sd.train.proc_x[1].otoi and 'c' not in sd.train.proc_x[1].otoi and (sd.valid.x.items.ids == 0).any()

def test_several_labels_on_disk(tmp_path):
    file = tmp_path/'t.csv'
    table().to_csv(file, index=False)
    sd = nb.text_data_from_table(file, 'body', ['long', 'funny'], 'is_valid', folder=tmp_path/'out', chunksize=8, **one_process)
    data = nb.clas_databunchify(sd, 4)
    x, y = next(iter(data.train_dl))
    assert y.shape == (4, 2) and y.dtype == torch.float32 and data.vocab == ['long', 'funny'] and data.c_out == 2
    assert sd.valid.y_obj(0) == ['long', 'funny'] and isinstance(sd.train.x.items.ids.base, np.memmap)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith('.')] != [] and len(nb.load_text_data(tmp_path/'out').train) == 24

def test_no_labels_for_a_language_model():
    sd = nb.text_data_from_table(table(), 'body', None, 'is_valid', **one_process)
    assert nb.lm_databunchify(sd, 2, 4).is_lm

def test_the_2018_format_without_a_header(tmp_path):
    (tmp_path/'t.csv').write_text('1,"good, really"\n0,bad\n'*10)
    sd = nb.text_data_from_table(tmp_path/'t.csv', 1, 0, p_valid=.3, header=None, **one_process)
    assert sd.train.proc_y.vocab == ['0', '1'] and len(sd.train) + len(sd.valid) == 20

def test_bad_tables(tmp_path):
    df = table()
    for change, match in [(dict(is_valid=['maybe']*30), "row 0: is_valid is 'maybe'"), (dict(kind=['a']*29 + [None]), "row 29 has no label in the column 'kind'"), (dict(is_valid=[1]*30), '0 rows for training and 30')]:
        with pytest.raises((nb.DataError, ValueError), match=match): nb.text_data_from_table(df.assign(**change), 'body', 'kind', 'is_valid', **one_process)
    with pytest.raises(nb.DataError, match='row 2: funny is 3'): nb.text_data_from_table(df.assign(funny=[0, 1, 3] + [0]*27), 'body', ['long', 'funny'], **one_process)
    for kw in (dict(text_cols='nope'), dict(text_cols='body', label_cols='nope'), dict(text_cols='body', label_cols='kind', valid_col='nope')):
        with pytest.raises(ValueError, match="no column 'nope'; the table has 'title'"): nb.text_data_from_table(df, **kw, **one_process)
    with pytest.raises(nb.UnseenLabel, match="row 5: the label 'c'"): nb.text_data_from_table(df.assign(kind=['a']*5 + ['c'] + ['b']*24), 'body', 'kind', 'is_valid', **one_process)
    with pytest.raises(ValueError, match='name of a column'): nb.join_columns(df, [])
    (tmp_path/'wide.csv').write_text('text,label\na,b,c\nd,e,f\n')
    with pytest.raises(nb.DataError, match='wide.csv.*more fields than its header'): nb.text_data_from_table(tmp_path/'wide.csv', **one_process)
    (tmp_path/'gap.csv').write_text('text,label\na,b\nd,\n')
    with pytest.raises(nb.DataError, match='row 1 has no label'): nb.text_data_from_table(tmp_path/'gap.csv', **one_process)
    (tmp_path/'latin.csv').write_bytes('text,label\ncrème,a\n'.encode('latin-1'))
    with pytest.raises(nb.DataError, match='latin.csv is not UTF-8.*encoding='): nb.text_data_from_table(tmp_path/'latin.csv', **one_process)
    (tmp_path/'empty.csv').write_text('')
    with pytest.raises(nb.DataError, match="empty.csv can't be read"): nb.text_data_from_table(tmp_path/'empty.csv', **one_process)
    with pytest.raises(FileNotFoundError): nb.text_data_from_table(tmp_path/'nowhere.csv', **one_process)

def test_empty_cells_and_numbers_are_text():
    df = pd.DataFrame(dict(text=['a', None, 3, float('nan')]))
    assert nb.join_columns(df) == ['a', '', '3', ''] and list(nb.TextList.from_df(df)) == ['a', '', '3', '']

def test_whole_numbers_are_written_without_a_point():
    df = pd.DataFrame(dict(stars=[8, None, 9.5, -0., 1e30], text=['8.0', 'a', '', None, 'b']))
    assert nb.join_columns(df, 'stars') == ['8', '', '9.5', '-0', '1e+30'] and nb.join_columns(df)[0] == '8.0'
    assert nb.join_columns(df, ['text', 'stars'])[0] == 'xxfld 1 8.0 xxfld 2 8'

@pytest.mark.parametrize('labels', [pd.to_datetime(['2020-02-02', '2020-02-03']*15), [('a', 1), ('b', 2)]*15, [np.int64(1), 'b']*15])
def test_labels_that_no_folder_holds_are_named_before_the_work(tmp_path, labels):
    df, worked = table().assign(when=list(labels)), []
    def count(t): return worked.append(t) or t
    kw = dict(proc_tok=nb.TokenizeProcessor(pre_rules=[count], max_workers=1), valid_col='is_valid', folder=tmp_path/'out')
    with pytest.raises(ValueError, match="the column 'when' has labels of the type.*make strings"): nb.text_data_from_table(df, 'body', 'when', known=[count], **kw)
    with pytest.raises(ValueError, match='known=.count.'): nb.text_data_from_table(df, 'body', 'kind', **kw)
    assert not worked and not (tmp_path/'out').exists()
    sd = nb.text_data_from_table(df.assign(when=df.when.astype(str)), 'body', 'when', known=[count], **kw)
    assert len(sd.train) == 24 and len(nb.load_text_data(tmp_path/'out', known=[count]).train.proc_y.vocab) == 2

def test_dates_are_labels_in_memory():
    days = pd.to_datetime(['2020-02-02', '2020-02-03']*15)
    assert len(nb.text_data_from_table(table().assign(when=days), 'body', 'when', 'is_valid', **one_process).train.proc_y.vocab) == 2

def test_multi_category():
    proc = nb.MultiCategoryProcessor()
    assert [o.tolist() for o in proc([['b', 'a'], [], 'b'])] == [[1, 1], [0, 0], [0, 1]] and proc.vocab == ['a', 'b']
    with pytest.raises(nb.UnseenLabel): proc([['z']])

# files of labelled texts

def test_text_data_there_and_back(tmp_path):
    ll = small_data()
    loaded = nb.load_text_data(nb.save_text_data(tmp_path/'d', ll))
    for a, b in ((ll.train, loaded.train), (ll.valid, loaded.valid)):
        assert [o.tolist() for o in a.x.items] == [o.tolist() for o in b.x.items] and a.y.items == b.y.items and a.x_obj(0) == b.x_obj(0) and a.y_obj(1) == b.y_obj(1)
    assert nb.clas_databunchify(loaded, 4).vocab == ['bad', 'good']
    nb.save_text_data(tmp_path/'d', loaded)   # over itself
    assert len(nb.load_text_data(tmp_path/'d').train) == 15

def test_any_string_is_a_token_and_a_label(tmp_path):
    odd = ['\ud83d', 'é', '漢字', '"', '\\', '\u2028', '\x00', '🙂']
    num = nb.NumericalizeProcessor(vocab=[nb.UNK, nb.PAD, *odd])
    ds = nb.labelled_corpus(num([odd, odd[::-1]]), [0, 1], [nb.TokenizeProcessor(tokenizer=str.split, max_workers=1), num], nb.CategoryProcessor(odd))
    loaded = nb.load_text_data(nb.save_text_data(tmp_path/'d', nb.SplitData(ds, ds), [str.split]), [str.split])
    assert loaded.train.proc_x[1].vocab == num.vocab and loaded.train.proc_y.vocab == odd

def test_text_data_that_is_damaged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = nb.save_text_data(tmp_path/'d', small_data())
    good = (folder/'about.json').read_text()
    for content in ('', '{', '{}', '[]'):
        (folder/'about.json').write_text(content)
        with pytest.raises(nb.DataError, match='about.json'): nb.load_text_data(folder)
    (folder/'about.json').write_text(good)
    np.save(folder/'train_labels.npy', np.array([Evil()]), allow_pickle=True)
    with pytest.raises(nb.DataError, match='train_labels.npy'): nb.load_text_data(folder)
    np.save(folder/'train_labels.npy', np.zeros(3, np.int64))
    with pytest.raises(nb.DataError, match='15 texts and 3 labels'): nb.load_text_data(folder)
    assert not (tmp_path/'evil').exists()

def test_text_data_that_cannot_be_saved(tmp_path):
    ll = small_data()
    ll.train.proc_x[0].pre_rules = [str.strip]
    with pytest.raises(ValueError, match=r'known=\[strip\]'): nb.save_text_data(tmp_path/'d', ll)
    assert not (tmp_path/'d').exists()
    ll = small_data()
    ll.train.proc_y = nb.CategoryProcessor([pd.Timestamp('2020-02-02')])
    with pytest.raises(ValueError, match='the CategoryProcessor has labels of the type Timestamp'): nb.save_text_data(tmp_path/'d', ll)
    with pytest.raises(ValueError, match='proc_x is'): nb.save_text_data(tmp_path/'d', nb.SplitData(nb.labelled_corpus(nb.Corpus.from_lists([[1]]), [0]), None))

# pieces of words

def test_subwords(tmp_path):
    pytest.importorskip('sentencepiece')
    rng = random.Random(0)
    ts = [' '.join(rng.choice(['film', 'filming', 'bad', 'badly', 'unbelievable', 'a', 'the']) for _ in range(20)) for _ in range(200)]
    sub = nb.SubwordTokenizer.train(ts, 60)
    proc = nb.TokenizeProcessor(tokenizer=sub, max_workers=1)
    assert proc.post_rules == (nb.add_eos_bos,) and proc.proc1('the film')[0] == nb.BOS
    assert nb.show_text(proc.proc1('the unbelievable filming')) == 'the unbelievable filming'
    for other in (pickle.loads(pickle.dumps(proc)), nb.TokenizeProcessor.from_settings(json.loads(json.dumps(proc.settings())))): assert other.proc1(ts[0]) == proc.proc1(ts[0])
    sub('a')
    for t in ts[:20]: assert [p for w in t.split() for p in sub(w)] == sub._sp.encode(t, out_type=str)

def test_subwords_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sentencepiece', None)
    with pytest.raises(ImportError, match='pip install sentencepiece'): nb.SubwordTokenizer.train(['a'], 10)

# rows, memory, files

@pytest.mark.parametrize('seed', range(5))
def test_labels_that_come_once_are_trained_with(seed):
    df = pd.DataFrame(dict(text=['a film']*40, label=[f'rare {i}' for i in range(20)] + ['frequent']*20))
    sd = nb.text_data_from_table(df, p_valid=.5, seed=seed, chunksize=7, proc_tok=nb.TokenizeProcessor(max_workers=1))
    assert len(sd.train.proc_y.vocab) == 21 and len(sd.valid) > 0 and {sd.valid.y_obj(i) for i in range(len(sd.valid))} == {'frequent'}

def test_other_labels_are_drawn_as_before():
    df = pd.DataFrame(dict(text=['a film']*40, label=range(40)))
    known = nb.CategoryProcessor(vocab=[*range(40)])
    sd = nb.text_data_from_table(df, p_valid=.5, proc_y=known, proc_tok=nb.TokenizeProcessor(max_workers=1))
    assert 5 < len(sd.valid) < 35
    several = df.assign(label=[['a', 'b'], ['a']]*20)
    sd = nb.text_data_from_table(several, p_valid=.5, proc_y=nb.MultiCategoryProcessor(), proc_tok=nb.TokenizeProcessor(max_workers=1))
    assert sd.train.proc_y.vocab == ['a', 'b'] and len(sd.valid) > 0
    with pytest.raises(nb.BadLabel): nb.text_data_from_table(several, p_valid=.5, proc_tok=nb.TokenizeProcessor(max_workers=1))

def test_spacys_memory_does_not_grow_for_ever(monkeypatch):
    tok, plain = nb.SpacyTokenizer(), nb.SpacyTokenizer()
    tok('a')
    base = len(tok._tok.vocab.strings)
    monkeypatch.setattr(tok, 'most_strings', base + 100, raising=False)
    sizes = []
    for i in range(500):
        assert tok(f"isn't w{i}.") == plain(f"isn't w{i}.")
        sizes.append(len(tok._tok.vocab.strings))
    assert max(sizes) < base + 150 < base + 400 < len(plain._tok.vocab.strings)

def test_bars_in_a_text_are_no_pieces_of_words():
    assert nb.show_text(['the', 'film', '▁▂▃', '▁', 'rose']) == 'the film ▁▂▃ ▁ rose'
    assert nb.show_text(['▁the', '▁fil', 'm']) == 'the film'
    assert nb.show_text(['▁', '这', '部', '电影']) == '这部电影' and nb.show_text(['▁']) == '' and nb.show_text(['▁', 'xxup', '▁', 'a']) == 'A'

def test_two_breaks_in_one_another():
    assert nb.sub_br('<<br>br>') == '<\nbr>'

@pytest.mark.parametrize('change', [dict(tokenizer={}), dict(tokenizer=[]), dict(text_vocab=['xxunk', 'a', 'a']), dict(text_vocab=None, labels=7), dict(tokenizer=dict(pre_rules=[], post_rules=[], chunksize=1, tokenizer={})),
                                    dict(tokenizer=dict(pre_rules=[], post_rules=[], chunksize=1, tokenizer=dict(kind='sentencepiece', model='abcde')))])
def test_a_damaged_description_of_texts_is_named(tmp_path, change):
    df = pd.DataFrame(dict(text=['a film']*8, label=list('abababab'), v=[0, 0, 0, 0, 0, 0, 1, 1]))
    nb.text_data_from_table(df, valid_col='v', folder=tmp_path/'d', proc_tok=nb.TokenizeProcessor(max_workers=1))
    about = json.loads((tmp_path/'d'/'about.json').read_text())
    (tmp_path/'d'/'about.json').write_text(json.dumps(about | change))
    with pytest.raises(nb.DataError, match='about.json is missing or broken'): nb.load_text_data(tmp_path/'d')
    with pytest.raises(TypeError, match="functions, and not 'mine'"): nb.load_text_data(tmp_path/'d', known=['mine'])

def test_a_corpus_without_its_number_of_tokens_is_refused(tmp_path):
    nb.Corpus.from_lists([[3, 4]]).save(tmp_path/'c')
    marker, = (o for o in (tmp_path/'c').iterdir() if o.name.startswith('.'))
    marker.write_text(json.dumps({k: v for k, v in json.loads(marker.read_text()).items() if k != 'tokens'}))
    with pytest.raises(nb.DataError, match='no folder that Corpus.save has written'): nb.Corpus.load(tmp_path/'c')

def test_labels_without_names_are_called_by_their_numbers():
    texts = nb.labelled_corpus(nb.Corpus.from_lists([[3, 4]]*8), [0, 1, 2, 1]*2, nb.NumericalizeProcessor(vocab=[*nb.default_spec_tok]))
    data = nb.clas_databunchify(nb.SplitData(texts, texts), 4)
    assert data.vocab is None
    data.c_out = 3
    assert data.vocab == ['0', '1', '2'] and {row[1] for row in data.show_batch(4).rows} <= {'0', '1', '2'}
    data.c_out = 1
    assert data.vocab is None   # a number, and no category


# ---- after a hunt for bugs

def test_no_text_is_left_out_of_validation():
    sd = nb.SplitData(*(nb.labelled_corpus(nb.Corpus.from_lists([[i]*(i + 1) for i in range(n)]), [0]*n) for n in (11, 20)))
    data = nb.clas_databunchify(sd, 8, drop_last=True)
    assert [len(x) for x, _ in data.train_dl] == [8] and sum(len(x) for x, _ in data.valid_dl) == 20

def test_a_mapped_corpus_whose_folder_was_written_anew(tmp_path):
    "A worker process would read other texts: an error. A copy has the same as before."
    nb.Corpus.from_lists([[1, 1], [2, 2]]).save(tmp_path/'c')
    old = nb.Corpus.load(tmp_path/'c')
    back = old.backwards()
    sent = pickle.dumps((old, back))
    assert [o.ids.tolist() for o in pickle.loads(sent)] == [[1, 1, 2, 2]]*2 and pickle.loads(sent)[1].reverse
    nb.Corpus.from_lists([[7, 7], [8, 8]]).save(tmp_path/'c')
    for o in (copy.copy(old), copy.deepcopy(old), copy.deepcopy(back), copy.copy(copy.copy(old))): assert o.ids.tolist() == [1, 1, 2, 2]
    assert copy.deepcopy(back).reverse and copy.deepcopy(old)[1].tolist() == [2, 2]
    for data in (sent, pickle.dumps(back), pickle.dumps(copy.deepcopy(old))):
        with pytest.raises(nb.DataError, match='written anew'): pickle.loads(data)
    assert pickle.loads(pickle.dumps(nb.Corpus.load(tmp_path/'c'))).ids.tolist() == [7, 7, 8, 8]

def test_a_deep_copy_of_a_corpus_in_memory_is_another():
    c = nb.Corpus.from_lists([[1, 2], [3]])
    other = copy.deepcopy(c)
    other.ids[0] = 9
    assert c.ids.tolist() == [1, 2, 3] and copy.copy(c).ids is c.ids

def test_the_number_of_a_field_is_no_word_of_the_text():
    assert nb.replace_wrep('xxfld 1 1 1 apple xxfld 2 2 2 2 b') == 'xxfld 1 1 1 apple xxfld 2  xxwrep 3 2  b'
    tok, (text,) = nb.TokenizeProcessor(), nb.join_columns(nb.pd.DataFrame(dict(a=['1 1 apple'], b=['2, 2'])), ['a', 'b'])
    assert tok.proc1(text) == 'xxbos xxfld 1 1 1 apple xxfld 2 2 , 2 xxeos'.split()

@pytest.mark.parametrize('bad', [[2**32 + 5, 3], [-2**40], [1.9, 2.2], [1., 2.], ['a']])
def test_numbers_of_words_that_are_none(bad):
    for make in (lambda: nb.Corpus(np.array(bad), [0, len(bad)]), lambda: nb.Corpus.from_lists([[1], np.array(bad)])):
        with pytest.raises(ValueError, match='number'): make()

@pytest.mark.parametrize('kind', [np.uint8, np.int16, np.uint32, np.uint64, np.int64, torch.int16, torch.int64])
def test_numbers_of_words_of_any_whole_kind(kind):
    ids = torch.tensor([3, 0, 250 % 128], dtype=kind) if isinstance(kind, torch.dtype) else np.array([3, 0, 250 % 128], kind)
    c = nb.Corpus.from_lists([ids, [], ids[:0]])
    assert c.ids.tolist() == [3, 0, 122] and c.ids.dtype == np.int32 and c.lengths.tolist() == [3, 0, 0]

def test_what_a_killed_process_has_left_goes(tmp_path):
    "Of the same folder only."
    df = nb.pd.DataFrame(dict(text=['a b', 'b a', 'a a', 'b b']*5, label=['x', 'y']*10))
    for name in ('.tokens.t.ab12_x9z', '.tokens.t.2.ab12_x9z', '.tokens.other.ab12_x9z'): (tmp_path/name).mkdir()
    nb.text_data_from_table(df, folder=tmp_path/'t', proc_tok=nb.TokenizeProcessor(max_workers=1))
    assert {o.name for o in tmp_path.iterdir()} == {'t', '.tokens.t.2.ab12_x9z', '.tokens.other.ab12_x9z'}
