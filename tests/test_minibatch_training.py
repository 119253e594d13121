"Lesson 03 beyond what it shows: loaders over any sizes, datasets of other kinds, other processes, bad input."
import copy, subprocess, sys
import numpy as np, pandas as pd
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from exp.nb_03 import DataLoader, Dataset, accuracy, get_dls, set_seed

def numbered(n: int) -> Dataset:
    "n items that can be told apart, each with a label that follows from it."
    return Dataset(torch.arange(n), -torch.arange(n))

def epoch(dl): return [[t.tolist() for t in batch] for batch in dl]
def items(dl): return [x for xs, _ in epoch(dl) for x in xs]

sizes = st.integers(1, 200)

@settings(max_examples=60)
@given(n=sizes, m=sizes, bs=st.integers(1, 250))
def test_an_epoch_has_every_item_once_with_its_own_label(n, m, bs):
    train, valid = map(epoch, get_dls(numbered(n), numbered(m), bs))
    assert sorted(x for xs, _ in train for x in xs) == list(range(n))
    assert [x for xs, _ in valid for x in xs] == list(range(m))
    assert all(ys == [-x for x in xs] for xs, ys in train + valid)

@settings(max_examples=60)
@given(n=sizes, bs=st.integers(1, 250))
def test_batch_sizes_are_bs_and_twice_bs_but_for_the_last(n, bs):
    for dl, size in zip(get_dls(numbered(n), numbered(n), bs), (bs, 2*bs)):
        got = [len(xs) for xs, _ in epoch(dl)]
        assert got[:-1] == [size]*(len(got) - 1) and 0 < got[-1] <= size
        assert len(dl) == len(got)

@settings(max_examples=60)
@given(n=sizes, bs=st.integers(1, 200))
def test_drop_last_leaves_out_less_than_a_batch_in_training_and_nothing_in_validation(n, bs):
    if n < bs:
        with pytest.raises(ValueError, match='drop_last'): get_dls(numbered(n), numbered(n), bs, drop_last=True)
        return
    train, valid = get_dls(numbered(n), numbered(n), bs, drop_last=True)
    assert len(items(train)) == n - n % bs
    assert items(valid) == list(range(n))

def test_every_epoch_has_another_order_and_leaves_out_other_items():
    set_seed(1)
    train, _ = get_dls(numbered(130), numbered(1), 64, drop_last=True)
    first, second = items(train), items(train)
    assert first != second and set(first) != set(second)

@settings(max_examples=60)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.lists(st.integers(0, 4), min_size=n, max_size=n), st.integers(0, 2**31))))
def test_accuracy_is_the_share_of_equal_labels(case):
    labels, seed = case
    out = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(seed))
    expected = np.mean([np.argmax(row) == y for row, y in zip(out.numpy(), labels)])
    assert accuracy(out, torch.tensor(labels)).item() == pytest.approx(expected, abs=1e-6)

def test_accuracy_of_a_label_for_every_pixel():
    labels = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    out = F.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    assert accuracy(out, labels) == 1
    assert accuracy(-out, labels) == 0

@pytest.mark.parametrize('out, yb', [((4, 3), (4, 1)), ((4, 3), (4, 3)), ((4, 3), (5,)), ((4, 3), (1,)), ((4, 3), ()), ((4, 3, 2), (4,))])
def test_accuracy_refuses_labels_that_do_not_fit(out, yb):
    with pytest.raises(ValueError, match='needs labels'): accuracy(torch.zeros(out), torch.zeros(yb, dtype=torch.long))

def test_accuracy_of_nothing_is_an_error():
    with pytest.raises(ValueError, match='no predictions'): accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))

@pytest.mark.parametrize('out', [(3,), (), (3, 1), (3, 0), (3, 1, 2)], ids=str)
def test_accuracy_refuses_outputs_without_classes(out):
    with pytest.raises(ValueError, match='class axis of 2 or more'): accuracy(torch.ones(out), torch.arange(3))

def test_accuracy_takes_all_nan_for_class_0(): assert accuracy(torch.full((4, 3), float('nan')), torch.tensor([0, 1, 2, 0])) == .5

def test_accuracy_needs_no_gradient_and_keeps_none():
    out = torch.randn(4, 3, requires_grad=True)
    assert not accuracy(out, torch.zeros(4, dtype=torch.long)).requires_grad

@pytest.mark.parametrize('x, y', [([1, 2, 3], [1, 2]), (torch.zeros(3), torch.zeros(4)), (np.zeros((2, 5)), []), ([], [0])])
def test_dataset_refuses_unequal_lengths_and_names_both(x, y):
    with pytest.raises(ValueError, match=f'x has {len(x)} items and y has {len(y)}'): Dataset(x, y)

@pytest.mark.parametrize('name', ['x', 'y'])
@pytest.mark.parametrize('make', [pd.Series, pd.DataFrame])
def test_dataset_refuses_pandas_and_says_what_to_give(name, make):
    pair = dict(x=[1, 2], y=[3, 4]) | {name: make([0, 1], index=[1, 0])}
    with pytest.raises(TypeError, match=rf'{name} is from pandas.*give {name}\.to_numpy\(\)'): Dataset(**pair)
    pair[name] = pair[name].to_numpy()
    assert getattr(Dataset(**pair), name)[0] == 0    # the first, though it is labelled 1

@pytest.mark.parametrize('make', [list, np.array, torch.tensor], ids=['list', 'array', 'tensor'])
def test_dataset_of_lists_arrays_and_tensors_goes_through_a_loader(make):
    train, valid = get_dls(Dataset(make([1., 2., 3.]), make([0, 1, 2])), Dataset(make([4.]), make([0])), 2)
    xs, ys = (torch.cat(o) for o in zip(*train))
    assert sorted(xs.tolist()) == [1, 2, 3] and ys.dtype == torch.int64
    assert (xs - 1 == ys).all()
    assert [len(x) for x, _ in valid] == [1]

def test_dataset_index_past_the_end_is_an_error():
    with pytest.raises(IndexError): numbered(3)[3]

@pytest.mark.parametrize('which', ['train_ds', 'valid_ds'])
def test_an_empty_dataset_is_named(which):
    sets = dict(train_ds=numbered(3), valid_ds=numbered(3)) | {which: numbered(0)}
    with pytest.raises(ValueError, match=f'{which} is empty'): get_dls(**sets, bs=2)

@pytest.mark.parametrize('bs', [0, -1, 2.0, None, '64', True, np.int64(0), np.bool_(True), np.float64(4)], ids=str)
def test_a_batch_size_that_is_none_is_shown(bs):
    with pytest.raises(ValueError, match='bs must be a whole number'): get_dls(numbered(3), numbered(3), bs)

def test_a_batch_larger_than_the_data_is_the_whole_data():
    train, valid = get_dls(numbered(5), numbered(3), 1000)
    assert sorted(items(train)) == list(range(5)) and items(valid) == [0, 1, 2]
    assert len(train) == len(valid) == 1

@pytest.mark.parametrize('dtype', [np.int32, np.int64, np.uint8])
def test_a_numpy_batch_size_is_a_whole_number_too(dtype):
    train, valid = get_dls(numbered(600), numbered(600), dtype(200))
    assert (train.batch_size, valid.batch_size) == (200, 400)    # 400 is no uint8

@pytest.mark.parametrize('kw', [dict(shuffle=False), dict(shuffle=True), dict(sampler=[0, 1]), dict(batch_sampler=[[0, 1]]), dict(batch_size=4)], ids=str)
def test_order_and_batching_are_fixed(kw):
    with pytest.raises(ValueError, match=f'{[*kw][0]} is fixed here'): get_dls(numbered(5), numbered(5), 2, **kw)

def test_each_fixed_keyword_is_named():
    with pytest.raises(ValueError, match='sampler, shuffle is fixed here'): get_dls(numbered(5), numbered(5), 2, shuffle=False, sampler=[0])

def test_keywords_reach_both_loaders_and_an_unknown_one_is_an_error():
    for dl in get_dls(numbered(5), numbered(5), 2, collate_fn=len): assert set(dl) <= {1, 2, 4}
    with pytest.raises(TypeError, match='no_such'): get_dls(numbered(5), numbered(5), 2, no_such=1)

def test_the_callers_keywords_are_left_alone():
    kw = dict(drop_last=True, num_workers=0)
    get_dls(numbered(5), numbered(5), 2, **kw)
    assert kw == dict(drop_last=True, num_workers=0)

def test_a_generator_decides_the_order_whatever_the_global_seed():
    def order(seed):
        torch.manual_seed(seed)
        return items(get_dls(numbered(50), numbered(1), 8, generator=torch.Generator().manual_seed(7))[0])
    assert order(0) == order(1) != list(range(50))

def test_validating_more_often_does_not_change_the_training_order():
    def orders(looks):
        set_seed(3)
        train, valid = get_dls(numbered(50), numbered(9), 8)
        got = []
        for _ in range(3):
            got.append(items(train))
            for _ in range(looks): items(valid)
        return got
    assert orders(0) == orders(1) == orders(5)

def test_loaders_can_be_copied_after_use():
    train, valid = get_dls(numbered(10), numbered(5), 2)
    items(train), items(valid)
    assert items(copy.deepcopy(valid)) == list(range(5))
    assert sorted(items(copy.deepcopy(train))) == list(range(10))

@pytest.mark.parametrize('method', sorted({'fork', 'spawn'} & set(torch.multiprocessing.get_all_start_methods())))
def test_a_worker_gives_the_same_batches_however_it_is_started(method):
    def batches(**kw):
        set_seed(42)
        return epoch(get_dls(numbered(50), numbered(9), 8, **kw)[0])
    assert batches() == batches(num_workers=1, multiprocessing_context=method)

def test_a_failing_item_in_a_worker_is_reported_and_the_loader_lives_on():
    train, _ = get_dls(Dataset(list(range(3)) + ['text'], [0]*4), numbered(1), 4, num_workers=1)
    for _ in range(2):
        with pytest.raises(TypeError): next(iter(train))

def test_importing_the_lesson_starts_no_gpu_and_draws_no_random_number():
    code = 'import torch; s = torch.get_rng_state(); import exp.nb_03; assert torch.equal(s, torch.get_rng_state()); assert not torch.cuda.is_initialized()'
    subprocess.run([sys.executable, '-c', code], check=True)

def test_what_was_made_by_hand_in_the_lesson_stays_there():
    import exp.nb_03 as m
    assert not {'HandLoader', 'HandSampler', 'HandSGD', 'DummyModule', 'fit', 'validate', 'x_train', 'model'} & set(vars(m))
    assert m.DataLoader is DataLoader is torch.utils.data.DataLoader
