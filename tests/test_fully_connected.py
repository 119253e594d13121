"Lesson 02's exports under any shape, type and value: what normalize, mse and test_near_zero accept, refuse and leave alone."
import os, subprocess, sys
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, strategies as st
from exp import nb_02
from exp.nb_02 import get_data, mse, normalize
from exp.nb_02 import test_near_zero as near_zero    # under its own name pytest would collect it

shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
seeds = st.integers(0, 2**31)

def rand(*shape, seed=0, dtype=torch.float32): return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# get_data

def test_get_data_on_the_sample(monkeypatch):
    monkeypatch.setenv('EXP_DATA', 'sample')
    x_train, y_train, x_valid, y_valid = get_data()
    for x, y in ((x_train, y_train), (x_valid, y_valid)):
        assert x.dtype == torch.float32 and y.dtype == torch.int64 and x.shape == (len(y), 784)
        assert x.min() == 0 and x.max() == 1 and set(y.tolist()) == set(range(10))
    assert len(x_train) == 5*len(x_valid)


# normalize

@given(shapes.filter(bool), seeds, st.floats(-10, 10), st.floats(.1, 10))
def test_normalize_is_undone_by_its_numbers(shape, seed, m, s):
    x = rand(*shape, seed=seed, dtype=torch.float64)
    before = x.clone()
    torch.testing.assert_close(normalize(x, m, s)*s + m, x)
    assert torch.equal(x, before), 'the input was changed'

@pytest.mark.parametrize('scale', [1e-3, 1., 1e3])
def test_own_statistics_give_mean_0_and_std_1_however_large_the_values(scale):
    x = 5*scale + scale*rand(1000, 3)
    z = normalize(x, x.mean(0), x.std(0))
    near_zero(z.mean(0)); near_zero(z.std(0) - 1)

@pytest.mark.parametrize('s', [0, 0., -1., float('nan'), torch.tensor(0.), torch.tensor([1., 0., 1.]), torch.tensor([1., float('nan'), 2.])], ids=str)
def test_normalize_refuses_a_spread_that_is_not_positive(s):
    with pytest.raises(ValueError, match='s must be positive'): normalize(torch.ones(2, 3), 0., s)

def test_normalize_says_how_many_columns_have_no_spread():
    x = torch.cat([torch.zeros(10, 2), rand(10, 3)], 1)
    with pytest.raises(ValueError, match='2 of its 5 values'): normalize(x, x.mean(0), x.std(0))

@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_normalize_keeps_the_precision(dtype): assert normalize(torch.ones(2, dtype=dtype), torch.tensor(.5, dtype=dtype), 2.).dtype == dtype

def test_normalize_takes_bytes_and_passes_gradients():
    assert normalize(torch.tensor([0, 255], dtype=torch.uint8), 127.5, 127.5).tolist() == [-1, 1]
    x = torch.ones(3, requires_grad=True)
    normalize(x, 0., 4.).sum().backward()
    assert x.grad.tolist() == [.25]*3

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize('wrap', [int, torch.tensor], ids=['number', 'tensor'])
def test_normalize_of_whole_numbers_does_not_wrap_around(dtype, wrap):
    x = torch.tensor([0, 1, 100]).to(dtype)
    torch.testing.assert_close(normalize(x, wrap(33), wrap(78)), (x.float() - 33)/78)

def test_normalize_of_bytes_as_the_files_hold_them():
    got = normalize(torch.tensor([0, 255], dtype=torch.uint8), 33, 78)
    torch.testing.assert_close(got, torch.tensor([-33/78, 222/78]))


# test_near_zero

@given(st.floats(-.99e-3, .99e-3))
def test_near_zero_passes_below_its_tolerance(a):
    near_zero(a); near_zero(torch.full((2, 3), a))

@given(st.floats(allow_nan=False).filter(lambda a: abs(a) > 1.01e-3))
def test_near_zero_fails_above_it_wherever_it_stands(a):
    for v in (a, torch.tensor([0., a]), torch.tensor([[a, 0.]])):
        with pytest.raises(AssertionError, match='not near zero'): near_zero(v)

@pytest.mark.parametrize('a', [float('nan'), float('inf'), torch.tensor([0., float('nan')])], ids=['nan', 'inf', 'one nan'])
def test_near_zero_is_not_fooled(a):
    with pytest.raises(AssertionError): near_zero(a, tol=1e9)

def test_near_zero_takes_a_tolerance():
    near_zero(.4, tol=.5); near_zero(.4, .5)
    with pytest.raises(AssertionError, match='tol is 0.3'): near_zero(.4, tol=.3)

def test_near_zero_takes_whole_numbers_and_tensors_with_gradient():
    near_zero(0); near_zero(torch.zeros(3, dtype=torch.int64)); near_zero(torch.zeros(2, requires_grad=True))

@pytest.mark.parametrize('a', [[], torch.zeros(0), torch.zeros(3, 0), torch.tensor([False]), True], ids=str)
def test_near_zero_does_not_pass_without_numbers(a):
    with pytest.raises(AssertionError, match='no numbers to test'): near_zero(a)


# mse

@given(shapes, seeds)
def test_mse_equals_torchs_for_equal_shapes(shape, seed):
    a, b = rand(*shape, seed=seed), rand(*shape, seed=seed + 1)
    torch.testing.assert_close(mse(a, b), F.mse_loss(a, b))

@given(shapes, seeds)
def test_mse_squeezes_one_last_axis(shape, seed):
    a, b = rand(*shape, 1, seed=seed), rand(*shape, seed=seed + 1)
    torch.testing.assert_close(mse(a, b), F.mse_loss(a[..., 0], b))

@given(shapes, shapes)
def test_mse_never_broadcasts(out, targ):
    assume(out != targ and out != (*targ, 1))
    with pytest.raises(ValueError) as e: mse(torch.zeros(out), torch.zeros(targ))
    assert str(list(out)) in str(e.value) and str(list(targ)) in str(e.value)

@pytest.mark.parametrize('out, targ', [((5, 1), (5, 1)), ((5,), (5,)), ((1, 1), (1,)), ((1,), ()), ((1, 1), (1, 1))], ids=str)
def test_mse_at_the_seams(out, targ): assert mse(torch.full(out, 3.), torch.full(targ, 1.)).item() == 4

def test_mse_takes_whole_number_targets(): assert mse(torch.tensor([[1.5], [2.]]), torch.tensor([1, 4])).item() == pytest.approx((.25 + 4)/2)

@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64, torch.int64, torch.bool], ids=str)
def test_mse_counts_boolean_targets_as_0_and_1(dtype):
    out, targ = torch.tensor([0, 1, 1]).to(dtype), torch.tensor([True, True, False])
    loss = mse(out, targ)
    assert loss.item() == mse(out[:, None], targ).item() == pytest.approx(2/3, abs=1e-3)
    assert loss.dtype == (dtype if dtype.is_floating_point else torch.float32)

def test_mse_keeps_large_whole_numbers_exact_beside_doubles():
    assert mse(torch.tensor([2.**24], dtype=torch.float64), torch.tensor([2**24 + 1])).item() == 1

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64], ids=str)
def test_mse_of_two_whole_number_tensors_is_a_float_that_has_not_wrapped(dtype):
    a, b = torch.tensor([0, 1]).to(dtype), torch.tensor([1, 1]).to(dtype)
    assert mse(a, b).item() == mse(a[:, None], b).item() == .5

@pytest.mark.parametrize('out, targ', [((0,), (0,)), ((0, 1), (0,)), ((3, 0), (3, 0))], ids=str)
def test_mse_of_nothing_is_an_error(out, targ):
    with pytest.raises(ValueError, match='nothing to average'): mse(torch.zeros(out), torch.zeros(targ))

@given(st.integers(1, 8), seeds)
def test_mse_has_torchs_gradient(n, seed):
    a, b = rand(n, 1, seed=seed).requires_grad_(), rand(n, seed=seed + 1)
    g, = torch.autograd.grad(mse(a, b), a)
    torch.testing.assert_close(g, torch.autograd.grad(F.mse_loss(a, b[:, None]), a)[0])

def test_mse_passes_gradcheck(): assert torch.autograd.gradcheck(mse, (rand(5, 1, dtype=torch.float64).requires_grad_(), rand(5, dtype=torch.float64)))


# the module

def test_the_hand_made_layers_stay_in_the_lesson():
    leaked = {'Relu', 'Lin', 'Mse', 'Module', 'Model', 'lin', 'relu', 'lin_grad', 'PeakMemory', 'one_core', 'x_train', 'path'} & set(vars(nb_02))
    assert not leaked

def test_importing_it_starts_no_gpu_and_reads_no_data():
    code = 'import exp.nb_02, torch; assert not torch.cuda.is_initialized()'
    subprocess.run([sys.executable, '-c', code], check=True, env=dict(os.environ, EXP_HOME='/nonexistent/never', EXP_MIRROR=''))
