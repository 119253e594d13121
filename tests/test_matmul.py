"Lesson 01: the test helpers on unusual values, seeds in loader workers, damaged digits, the clock, and that importing starts no GPU."
import gzip, math, random, struct, subprocess, sys, time
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import tensor
from benchmarks import matmul as bench
from benchmarks.machine import machine
from exp import nb_01    # by module: its names begin with test_, which pytest would collect

tensors = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, min_side=0), elements=st.integers(-9, 9)).map(torch.tensor)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | tensors,
                      lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


# test_eq and test_near

@given(values)
def test_anything_equals_itself(o):
    nb_01.test_eq(o, o)
    nb_01.test_near(o, o)


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
def test_shapes_that_only_broadcast_are_not_near(shapes):
    a, b = (torch.ones(s) for s in shapes.input_shapes)
    assert nb_01.near(a, b) == (a.shape == b.shape)
    assert nb_01._equal(a, b) == (a.shape == b.shape)


@given(hnp.arrays(np.float64, hnp.array_shapes(), elements=st.integers(-9, 9)), st.data())
def test_the_message_says_how_far_and_where(a, data):
    at = tuple(data.draw(st.integers(0, n-1)) for n in a.shape)
    b = a.copy()
    b[at] += 100
    with pytest.raises(AssertionError) as e: nb_01.test_eq(tensor(a), b)
    assert f'largest difference 100, at {list(at)}: {a[at]} against {b[at]}' in str(e.value)


@pytest.mark.parametrize('a, b', [
    (tensor([1., 2.], requires_grad=True), [1, 2]), (tensor([1, 2], dtype=torch.bfloat16), np.array([1, 2])), (tensor([1+2j]), [1+2j]), (tensor([True, False]), [True, False]),
    (tensor(.1), .1), (tensor([.1], dtype=torch.float16), [.1]), (torch.Size([2, 3]), [2, 3]), (torch.empty(0, 3), np.empty((0, 3))), (np.array(['a', 'b']), np.array(['a', 'b'])),
    (pd.Series([1, 2]), tensor([1, 2])), (np.arange(3)[::-1], [2, 1, 0]), (range(3), [0, 1, 2]), ({1, 2}, {2, 1}), (10**30, 10**30), (np.uint16([7]), [7]), (torch.float32, torch.float32),
    (np.uint64([2**64-1]), [2**64-1]), (np.uint64([2**63-1]), [2**63-1]), (tensor([2**64-1], dtype=torch.uint64), [2**64-1]), (tensor([7], dtype=torch.uint16), [7]), (np.uint64([]), []),
    ([tensor(1., requires_grad=True)], tensor([1.])), ([[tensor([1., 2], requires_grad=True)]], np.array([[[1., 2]]])), ([tensor(1, dtype=torch.bfloat16)], tensor([1])),
    ([tensor(1., requires_grad=True), 2], np.array([1, 2])), (['a', 'b'], np.array(['a', 'b']))])
def test_equal(a, b): nb_01.test_eq(a, b)


@pytest.mark.parametrize('a, b', [
    (tensor([1, 2]), [1, 3]), (tensor([[1, 2]]), [1, 2]), (tensor([1]), 1), ([1, 2], [1, 2, 2]), ([], 0), ({'a': 1}, {'b': 1}), ({'a': 1}, {'a': 1, 'b': 2}), ('a', 1), ('ab', ['a', 'b']),
    (None, 0), (tensor([1, 2]), [1.5, 2]), (np.array(['a', 'a']), np.array('a')), (tensor(math.nan), math.nan), (10**30, 10**30+1), (tensor([1.]), None), (.1+.2, .3),
    (np.uint64([2**64-1]), [-1]), (np.uint64([2**64-1]), np.array([-1])), (np.uint64([2**64-1]), [2**64-2]), (tensor([2**64-1], dtype=torch.uint64), tensor([-1])), ([2**64-1], np.array([-1])),
    ([tensor(1., requires_grad=True)], tensor([2.])), ([tensor(1., requires_grad=True)], 'a'), ([tensor(1.), tensor([1., 2])], tensor([1., 2]))])
def test_unequal(a, b):
    with pytest.raises(AssertionError): nb_01.test_eq(a, b)
    with pytest.raises(AssertionError): nb_01.test_eq(b, a)


@pytest.mark.parametrize('a, b, expected', [
    (1., 1.0009, True), (1., 1.002, False), (0., 9e-6, True), (0., 2e-5, False), (math.inf, math.inf, True), (math.inf, -math.inf, False), (tensor([1.], dtype=torch.float16), [1.0005], True),
    (tensor(1+1j), 1+1j, True), (tensor(1+1j), 1+2j, False), ([0]*2000, [0]*2001, False), ({'a': [1.]}, {'a': [1.0001]}, True), ('a', 'a', True), ('a', 'b', False), (1000, 1000.5, True)])
def test_nearness(a, b, expected): assert nb_01.near(a, b) is expected


def test_a_failure_deep_inside_names_its_place():
    with pytest.raises(AssertionError, match=r"largest difference 2, at \[1\]\['w'\]\[0\]: 1\.0 against 3\.0"): nb_01.test_eq([0, {'w': tensor([1.])}], [0, {'w': tensor([3.])}])
    with pytest.raises(AssertionError, match=r"\['w'\] shapes differ: \[1\] against \[\]"): nb_01.test_eq({'w': tensor([1.])}, {'w': tensor(1.)})
    with pytest.raises(AssertionError, match='keys differ'): nb_01.test_eq({'w': 1}, {'v': 1})


def test_the_message_on_single_numbers_names_no_place():
    with pytest.raises(AssertionError, match=r'\nlargest difference 1: 1 against 2$'): nb_01.test_eq(1, 2)
    with pytest.raises(AssertionError, match=r'\nlargest difference 1, at \[0\]: 1 against 2$'): nb_01.test_eq([1], [2])


def test_not_a_number_is_the_largest_difference():
    with pytest.raises(AssertionError, match=r'largest difference inf, at \[2\]: 3\.0 against nan'): nb_01.test_near(tensor([1., 2, 3]), [9, 2, math.nan])


def test_messages_stay_short():
    with pytest.raises(AssertionError) as e: nb_01.test_eq(list(range(100_000)), 'x'*100_000)
    assert len(str(e.value)) < 3000


def test_a_comparison_of_elements_must_hold_everywhere():
    nb_01.test(tensor([1, 2]), 0, torch.gt)
    with pytest.raises(AssertionError, match='^more:\n'): nb_01.test(tensor([1, 0]), 0, torch.gt, 'more')
    with pytest.raises(AssertionError, match='^function'): nb_01.test(1, 1, type(lambda: 0)((lambda a, b: None).__code__, {}, 'function'))


# set_seed

class Draws(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return tensor([random.random(), np.random.rand(), torch.rand(()).item()])


def draws(seed):
    nb_01.set_seed(seed)
    return torch.stack(list(torch.utils.data.DataLoader(Draws(), batch_size=None, num_workers=2)))


def test_all_three_generators_of_loader_workers_follow_the_seed():
    first = draws(1)
    nb_01.test_eq(draws(1), first)
    assert len(first.unique()) == 12 and not (draws(2) == first).any()


def test_a_seed_out_of_range_changes_nothing():
    nb_01.set_seed(3)
    expected = random.random(), torch.rand(2), np.random.rand()
    nb_01.set_seed(3)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match='[Ss]eed'): nb_01.set_seed(seed)
    nb_01.test_eq((random.random(), torch.rand(2), np.random.rand()), expected)


def test_importing_and_seeding_start_no_gpu():
    code = 'import exp.nb_01 as m; m.set_seed(1); print(m.torch.cuda.is_initialized())'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == 'False'


# load_mnist

def write_digits(folder, images, labels):
    for name, magic, a in (('train-images-idx3-ubyte.gz', 0x803, images), ('train-labels-idx1-ubyte.gz', 0x801, labels)):
        with gzip.open(folder/name, 'wb') as f: f.write(struct.pack(f'>{1+a.ndim}i', magic, *a.shape) + a.astype(np.uint8).tobytes())


@settings(max_examples=10)
@given(st.integers(6, 40))
def test_digits_are_split_in_order_and_scaled(tmp_path_factory, n):
    folder, images = tmp_path_factory.mktemp('mnist'), np.random.default_rng(n).integers(0, 256, (n, 28, 28))
    write_digits(folder, images, np.arange(n) % 10)
    x_train, y_train, x_valid, y_valid = nb_01.load_mnist(str(folder))
    assert len(x_valid) == len(y_valid) == n//6 and x_train.dtype == torch.float32 and y_train.dtype == torch.int64
    nb_01.test_eq(torch.cat([y_train, y_valid]), np.arange(n) % 10)
    nb_01.test_near(torch.cat([x_train, x_valid]), images.reshape(n, 784)/255)


def test_images_without_labels_are_an_error(tmp_path):
    write_digits(tmp_path, np.zeros((12, 28, 28)), np.zeros(11))
    with pytest.raises(ValueError, match='12 images but 11 labels'): nb_01.load_mnist(tmp_path)


def test_a_folder_without_digits_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(nb_01.DataError, match='train-images-idx3-ubyte.gz'): nb_01.load_mnist(tmp_path)


# time_it

def test_a_slow_function_is_called_three_times():
    calls = []
    seconds = nb_01.time_it(lambda o, key: (calls.append((o, key)), time.sleep(.02)), 1, key=2, min_time=.02)
    assert calls == [(1, 2)]*3 and .015 < seconds < math.inf


def test_a_short_function_is_called_many_times():
    calls = []
    assert 0 < nb_01.time_it(calls.append, 0, min_time=.02) < .02
    assert len(calls) > 100


def test_errors_of_the_timed_function_come_through():
    with pytest.raises(ZeroDivisionError): nb_01.time_it(lambda: 1/0)


# the benchmark

def test_the_benchmark_prints_every_step(monkeypatch, capsys):
    monkeypatch.setattr(bench, 'time_it', lambda f, *args: 1e-3 if f is not bench.three_loops else 10.)
    bench.main()
    printed = capsys.readouterr().out
    for word in ('three loops', 'elementwise', 'broadcasting', 'einsum', '@, 50,000 rows', 'reached'): assert word in printed


def test_measurements_name_the_machine_and_the_date():
    assert f'PyTorch {torch.__version__}' in machine() and machine().endswith('UTC')
