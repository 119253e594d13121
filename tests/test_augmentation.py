"Lesson 10 beyond what it shows: any size of image, any draw, any kind of file, bad input, workers."
import copy, math, pickle, random
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from exp import nb_10
from exp.nb_10 import (AvgStatsCallback, BatchTransformXCallback, CenterCrop, CropToBytes, DataBunch, Dataset, GeneralCrop, ImageList, Learner, PilRandomDihedral, PilRandomFlip, PilTiltRandomCrop,
                       PilTransform, RandomResizedCrop, RandomRotate, TrainTransformXCallback, collate_images, compose, default_collate, default_crop_size, find_coeffs, get_dls, make_rgb, np_to_float,
                       process_sz, rotate_batch, set_seed, to_byte_tensor, to_float_tensor, uniform, warp)

sides = st.integers(1, 700)
sizes = st.integers(1, 64)

def noise(w, h, mode='RGB', seed=0):
    shape = (h, w) if mode == 'L' else (h, w, len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))

def smooth(w, h, seed=0):
    "A photograph's kind of image: large soft blobs."
    return noise(6, 6, seed=seed).resize((w, h), Image.Resampling.BICUBIC)

def array(img): return np.asarray(img).astype(int)

@pytest.fixture
def jpeg(tmp_path):
    def save(w=160, h=120, mode='RGB', seed=0):
        path = tmp_path/f'{w}x{h}{mode}{seed}.jpg'
        smooth(w, h, seed).convert(mode).save(path, quality=95)
        return path
    return save

# the order of things

def test_transforms_of_images_come_after_rgb_and_before_bytes():
    calls = []
    class Probe(PilTransform):
        def __call__(self, img):
            calls.append((img.mode, isinstance(img, Image.Image)))
            return img
    assert compose(noise(5, 4, 'L'), [to_float_tensor, to_byte_tensor, Probe(), make_rgb]).dtype == torch.float32
    assert calls == [('RGB', True)]

@pytest.mark.parametrize('tfm', [PilRandomFlip(), PilRandomDihedral(), GeneralCrop(8), CenterCrop(8), RandomResizedCrop(8), PilTiltRandomCrop(8, 9, .1), CropToBytes(RandomResizedCrop(8), .5), RandomRotate()])
def test_transforms_can_be_sent_to_a_worker(tfm):
    again = pickle.loads(pickle.dumps(tfm))
    x = torch.rand(2, 3, 16, 16) if isinstance(tfm, RandomRotate) else noise(16, 12)
    set_seed(3); a = tfm(x)
    set_seed(3); b = again(x)
    assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a.tobytes() == b.tobytes()

# flips

@given(p=st.floats(allow_nan=True).filter(lambda p: not 0 <= p <= 1))
@settings(max_examples=20)
def test_a_probability_is_between_0_and_1(p):
    for cls in (PilRandomFlip, PilRandomDihedral):
        with pytest.raises(ValueError, match=cls.__name__): cls(p)
    with pytest.raises(ValueError, match='RandomRotate'): RandomRotate(p=p)
    with pytest.raises(ValueError, match='CropToBytes'): CropToBytes(CenterCrop(8), p=p)

@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA'])
def test_flips_keep_the_mode_and_the_pixels(mode):
    img = noise(7, 5, mode)
    flipped = PilRandomFlip(1.)(img)
    assert flipped.mode == mode and (array(flipped)[:, ::-1] == array(img)).all()

def test_the_dihedral_transform_leaves_alone_as_often_as_p_says():
    random.seed(0)
    img, tfm = noise(4, 4), PilRandomDihedral(.75)
    same = np.mean([tfm(img) is img for _ in range(8000)])
    assert abs(same - (1 - .75*7/8)) < .02

# sizes and boxes

@pytest.mark.parametrize('bad', [0, -3, 1.5, True, (), (3, 0), (1, 2, 3), '64', None, (64, '64')])
def test_a_size_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match='a size is'): process_sz(bad)

def test_sizes_of_numpy_become_pythons(): assert [type(o) for o in process_sz(np.int64(5))] == [int, int]

@given(w=sides, h=sides, ratio=st.floats(.1, 10))
@settings(max_examples=100)
def test_the_largest_part_fits_and_touches_two_sides(w, h, ratio):
    wc, hc = default_crop_size(w, h, ratio)
    assert 0 < wc <= w and 0 < hc <= h
    assert math.isclose(wc/hc, ratio, rel_tol=1e-9)
    assert math.isclose(wc, w) or math.isclose(hc, h)

def inside(box, w, h, tol=1e-6):
    l, t, r, b = box
    return -tol <= l < r <= w + tol and -tol <= t < b <= h + tol

@given(w=sides, h=sides, size=st.tuples(sizes, sizes), scale=st.floats(1, 3))
@settings(max_examples=100)
def test_the_middle_is_in_the_middle_and_of_the_shape_asked_for(w, h, size, scale):
    l, t, r, b = CenterCrop(size, scale).get_box(w, h)
    assert inside((l, t, r, b), w, h)
    assert math.isclose(l + r, w, abs_tol=1e-6) and math.isclose(t + b, h, abs_tol=1e-6)
    assert math.isclose((r - l)/(b - t), size[0]/size[1], rel_tol=1e-6)

@given(w=sides, h=sides, seed=st.integers(0, 10**6), scale=st.tuples(st.floats(.01, 1), st.floats(.01, 1)).map(sorted), ratio=st.tuples(st.floats(.2, 5), st.floats(.2, 5)).map(sorted))
@settings(max_examples=200)
def test_random_boxes_are_inside_of_any_image(w, h, seed, scale, ratio):
    random.seed(seed)
    assert inside(RandomResizedCrop(8, tuple(scale), tuple(ratio)).get_box(w, h), w, h)

@given(size=st.tuples(sizes, sizes), w=sides, h=sides, seed=st.integers(0, 10**6))
@settings(max_examples=60)
def test_crops_have_the_size_asked_for(size, w, h, seed):
    random.seed(seed)
    img = Image.new('RGB', (w, h), (10, 200, 30))
    for crop in (GeneralCrop(size), CenterCrop(size), RandomResizedCrop(size), PilTiltRandomCrop(size, magnitude=.2)):
        out = crop(img)
        assert out.size == size and (array(out) == (10, 200, 30)).all(), type(crop).__name__

def test_areas_and_ratios_are_uniform_where_all_fit():
    random.seed(1)
    boxes = np.array([RandomResizedCrop(8, (.1, .4)).get_box(2000, 2000) for _ in range(4000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    for values, lo, hi in ((w*h/4e6, .1, .4), (np.log(w/h), -math.log(4/3), math.log(4/3))):
        steps = (np.sort(values) - lo)/(hi - lo)
        assert abs(steps - np.linspace(0, 1, len(steps))).max() < .03

@pytest.mark.parametrize('w, h', [(400, 100), (100, 400), (300, 200)])
def test_areas_follow_the_theory_where_draws_are_repeated(w, h):
    random.seed(2)
    crop, share, r = RandomResizedCrop(8), np.linspace(.08, 1, 800)[:, None], np.exp(np.linspace(math.log(3/4), math.log(4/3), 800))
    fits = (np.sqrt(share*w*h*r) <= w) & (np.sqrt(share*w*h/r) <= h)
    boxes = [crop.get_box(w, h) for _ in range(6000)]
    drawn = [(r - l)*(b - t)/(w*h) for l, t, r, b in boxes if not isinstance(l, float)]   # the fallback's are floats
    assert abs(np.mean(drawn) - (share*fits).sum()/fits.sum()) < .01
    assert abs(1 - len(drawn)/len(boxes) - (1 - fits.mean())**10) < .02

@pytest.mark.parametrize('w, h, expected', [(1000, 10, 40/3), (10, 1000, 7.5)])
def test_the_fallback_is_the_largest_allowed_part(w, h, expected):
    random.seed(3)
    crop = RandomResizedCrop(8, scale=(1., 1.))
    l, t, r, b = crop.get_box(w, h)
    assert math.isclose((r - l)/(b - t), 4/3 if w > h else 3/4) and math.isclose(l + r, w) and math.isclose(t + b, h)
    assert math.isclose(r - l, expected if w > h else 10)

@pytest.mark.parametrize('make, what', [(lambda: RandomResizedCrop(8, scale=(0, 1)), 'scale'), (lambda: RandomResizedCrop(8, scale=(.5, .2)), 'scale'), (lambda: RandomResizedCrop(8, scale=(.5, 1.5)), 'scale'),
                                        (lambda: RandomResizedCrop(8, ratio=(0, 1)), 'ratio'), (lambda: RandomResizedCrop(8, ratio=(2, 1)), 'ratio'), (lambda: CenterCrop(8, scale=.9), 'scale'),
                                        (lambda: PilTiltRandomCrop(8, magnitude=-.1), 'magnitude'), (lambda: PilTiltRandomCrop(8, magnitude=.25), 'magnitude')])
def test_settings_that_make_no_sense_are_refused(make, what):
    with pytest.raises(ValueError, match=what): make()

@pytest.mark.parametrize('cls', [GeneralCrop, PilTiltRandomCrop])
def test_a_crop_larger_than_the_image_is_refused(cls):
    with pytest.raises(ValueError, match=f'{cls.__name__}: 20 x 20 pixels .* 30 x 10'): cls(8, crop_size=20)(noise(30, 10))

def test_the_error_of_a_small_image_names_its_file(jpeg):
    file = jpeg(50, 40)
    with pytest.raises(ValueError) as caught: ImageList([file], tfms=[GeneralCrop(8, crop_size=100)])[0]
    assert any(str(file) in note for note in caught.value.__notes__)

# decoding at a smaller size

@pytest.mark.parametrize('size', [10, 20, 39, 40, 41, 79, 80, 100])
def test_a_draft_never_has_fewer_pixels_than_are_needed(jpeg, size):
    with Image.open(jpeg(320, 160)) as img:
        crop = CenterCrop(size, scale=1.)
        l, t, r, b = nb_10._draft(img, crop.get_box(*img.size), crop.size)
        assert r - l >= size - 1e-9 and b - t >= size - 1e-9 and inside((l, t, r, b), *img.size)

@pytest.mark.parametrize('w, h', [(160, 160), (161, 123), (333, 250)])
@pytest.mark.parametrize('crop', [CenterCrop(20), CenterCrop((40, 20)), GeneralCrop(40, 100), CenterCrop(100)])
def test_an_image_decoded_at_a_smaller_size_looks_the_same(jpeg, w, h, crop):
    file = jpeg(w, h)
    with Image.open(file) as img: drafted = crop(img)
    with Image.open(file) as img: full = crop(img.convert('RGB'))
    assert abs(array(drafted) - array(full)).mean() < 3

# perspective

def quads(jitter): return st.lists(st.tuples(st.floats(-jitter, jitter), st.floats(-jitter, jitter)), min_size=4, max_size=4)

@given(orig=quads(.2), targ=quads(.2))
@settings(max_examples=100)
def test_the_map_takes_all_four_points_where_they_belong(orig, targ):
    square = [(0, 0), (0, 1), (1, 1), (1, 0)]
    orig, targ = ([(x + dx, y + dy) for (x, y), (dx, dy) in zip(square, o)] for o in (orig, targ))
    a, b, c, d, e, f, g, h = find_coeffs(orig, targ).tolist()
    for (x, y), (u, v) in zip(orig, targ):
        assert math.isclose((a*x + b*y + c)/(g*x + h*y + 1), u, abs_tol=1e-6) and math.isclose((d*x + e*y + f)/(g*x + h*y + 1), v, abs_tol=1e-6)

@pytest.mark.parametrize('orig', [[(0, 0), (0, 0), (1, 1), (1, 0)], [(0, 0), (1, 1), (2, 2), (3, 3)]])
def test_points_that_allow_no_map_are_refused(orig):
    with pytest.raises(ValueError, match='no perspective map'): find_coeffs(orig, [(0, 0), (0, 1), (1, 1), (1, 0)])

@pytest.mark.parametrize('orig', [[(0, 0)]*3, [(0, 0, 0)]*4])
def test_four_points_are_needed(orig):
    with pytest.raises(ValueError, match='four points'): find_coeffs(orig, orig)

@given(l=st.integers(0, 40), t=st.integers(0, 30), wc=st.integers(5, 20), hc=st.integers(5, 20))
@settings(max_examples=40)
def test_a_warp_of_an_upright_box_is_a_crop(l, t, wc, hc):
    img = noise(60, 50)
    box = l, t, l + wc, t + hc
    assert (array(warp(img, (wc, hc), [(l, t), (l, t + hc), (l + wc, t + hc), (l + wc, t)], Image.NEAREST)) == array(img.crop(box))).all()

@given(w=st.integers(20, 300), h=st.integers(20, 300), share=st.tuples(st.floats(.1, 1), st.floats(.1, 1)), magnitude=st.floats(0, .2499), seed=st.integers(0, 10**6))
@settings(max_examples=200)
def test_a_tilted_crop_never_looks_outside(w, h, share, magnitude, seed):
    random.seed(seed)
    crop = PilTiltRandomCrop(24, (max(1, int(w*share[0])), max(1, int(h*share[1]))), magnitude)
    quad = crop.get_quad(w, h)
    assert (quad >= -1e-6).all() and (quad <= torch.tensor([w, h]) + 1e-6).all()
    random.seed(seed)
    assert (array(crop(Image.new('RGB', (w, h), 'white'))) == 255).all()

def test_tilts_go_in_all_directions_up_to_the_magnitude():
    random.seed(0)
    quads = torch.stack([PilTiltRandomCrop(24, 50, .2).get_quad(1000, 1000) for _ in range(400)])
    x = (quads[:, 1, 0] - quads[:, 0, 0])/2/50
    y = (quads[:, 0, 1] - quads[:, 3, 1]).neg()/2/50
    for o in (x, y): assert o.min() < -.18 and o.max() > .18 and o.abs().max() <= .2 + 1e-6

# floats and bytes

@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_np_to_float_equals_the_two_steps(mode):
    img = noise(9, 7, mode)
    x = np_to_float(img)
    assert x.dtype == torch.float32 and x.is_contiguous() and torch.equal(x, to_float_tensor(to_byte_tensor(img)))

@pytest.mark.parametrize('tfm', [np_to_float, CropToBytes(CenterCrop(4)), to_byte_tensor])
@pytest.mark.parametrize('mode', ['1', 'P', 'PA', 'F', 'I', 'I;16'])
def test_pixels_that_are_no_bytes_of_brightness_are_refused(tfm, mode):
    name = getattr(tfm, '__name__', type(tfm).__name__)
    with pytest.raises(ValueError, match=f"^{name}: the pixels of an image of mode '{mode}' .* put make_rgb before"): tfm(noise(9, 7, 'L').convert(mode))

@given(w=st.integers(8, 200), h=st.integers(8, 200), size=st.tuples(st.integers(4, 64), st.integers(4, 64)), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_crop_to_bytes_is_the_plain_chain_to_rounding(w, h, size, seed):
    img = smooth(w, h, seed)
    crop = RandomResizedCrop(size)
    random.seed(seed); fast = CropToBytes(crop, p=.5)(img)
    random.seed(seed)
    box = crop.get_box(w, h)
    plain = to_byte_tensor(PilRandomFlip()(img.crop(tuple(map(round, box))).resize(size, Image.BILINEAR)))
    assert fast.shape == plain.shape and fast.dtype == torch.uint8
    assert (fast.int() - plain.int()).abs().max() <= 2

@pytest.mark.parametrize('resample', [Image.BILINEAR, Image.BICUBIC])
@pytest.mark.parametrize('vectors', [True, False])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_crop_to_bytes_does_the_same_without_vector_instructions(monkeypatch, resample, vectors, mode):
    monkeypatch.setattr(nb_10, '_has_vectors', lambda: vectors)
    img = smooth(90, 70).convert(mode)
    fast = CropToBytes(CenterCrop((48, 32), resample=resample), p=1.)(img)
    plain = to_byte_tensor(PilRandomFlip(1.)(img.resize((48, 32), resample, box=tuple(map(round, CenterCrop((48, 32)).get_box(90, 70))))))
    assert fast.shape == plain.shape == (len(mode), 32, 48) and (fast.int() - plain.int()).abs().float().mean() < 1

def test_crop_to_bytes_gives_the_pixels_themselves_where_nothing_is_scaled():
    img = noise(40, 30)
    assert torch.equal(CropToBytes(GeneralCrop((20, 10), crop_size=(20, 10)))(img), to_byte_tensor(img.crop((10, 10, 30, 20))))

@pytest.mark.parametrize('crop', [CenterCrop(8, resample=Image.NEAREST), PilTiltRandomCrop(8)])
def test_crop_to_bytes_refuses_what_it_cannot_do(crop):
    with pytest.raises(ValueError, match='CropToBytes'): CropToBytes(crop)

def test_crop_to_bytes_drafts_too(jpeg):
    file, crop = jpeg(640, 480), CropToBytes(CenterCrop(32))
    with Image.open(file) as img:
        fast = crop(img)
        assert img.size == (80, 60)
    with Image.open(file) as img: full = crop(img.convert('RGB'))
    assert (fast.int() - full.int()).abs().float().mean() < 4

@given(n=st.integers(1, 5), c=st.sampled_from([1, 3]), h=st.integers(1, 9), w=st.integers(1, 9))
@settings(max_examples=30)
def test_collate_images_gives_what_the_default_gives(n, c, h, w):
    samples = [(torch.randint(0, 256, (c, h, w), dtype=torch.uint8), i) for i in range(n)]
    x, y = collate_images(samples)
    assert torch.equal(x, default_collate(samples)[0]) and torch.equal(y, torch.arange(n))
    assert x.is_contiguous(memory_format=torch.channels_last)

# the whole batch

@pytest.mark.parametrize('shape', [(64, 64), (48, 80)])
@pytest.mark.parametrize('degrees', [-170., -45., -7., 3., 33., 90.])
def test_rotating_a_batch_is_rotating_each_image_as_pillow_does(shape, degrees):
    img = smooth(*shape[::-1])
    ours = rotate_batch(np_to_float(img)[None], torch.tensor([degrees]), 'zeros')[0]
    pillows = np_to_float(img.rotate(degrees, resample=Image.BILINEAR))
    h, w = shape
    r = min(shape)//3
    middle = np.s_[:, h//2 - r:h//2 + r, w//2 - r:w//2 + r]
    assert (ours - pillows)[middle].abs().mean() < .01

def test_each_image_of_a_batch_has_its_own_angle():
    x = torch.rand(3, 2, 16, 16)
    out = rotate_batch(x, torch.tensor([0., 90., 180.]))
    for i, k in enumerate((0, 1, 2)): assert torch.allclose(out[i], torch.rot90(x[i], k, (1, 2)), atol=1e-4)

@pytest.mark.parametrize('x, degrees', [(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2)), (torch.zeros(2, 3, 8, 8), torch.zeros(3)), (torch.zeros(3, 8, 8), torch.zeros(3))])
def test_rotate_batch_refuses_what_is_no_batch(x, degrees):
    with pytest.raises(ValueError, match='rotate_batch needs'): rotate_batch(x, degrees)

def test_random_angles_stay_within_the_limit_and_leave_some_alone(monkeypatch):
    angles = []
    monkeypatch.setattr(nb_10, 'rotate_batch', lambda x, degrees, padding_mode: angles.append(degrees) or x)
    torch.manual_seed(0)
    RandomRotate(10., p=.75)(torch.zeros(4000, 1, 1, 1))
    a = angles[0]
    assert a.abs().max() <= 10 and a.min() < -9 and a.max() > 9 and abs((a == 0).float().mean() - .25) < .03

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_rotation_keeps_the_type(dtype):
    x = torch.rand(2, 3, 8, 8).to(dtype)
    try: out = RandomRotate()(x)
    except RuntimeError as e: pytest.skip(f'no grid_sample for {dtype} here: {e}'[:80])
    assert out.dtype == dtype and out.shape == x.shape

def test_only_training_batches_are_transformed():
    data, seen = DataBunch(*get_dls(Dataset(torch.zeros(4, 2), torch.zeros(4, 1)), Dataset(torch.zeros(4, 2), torch.zeros(4, 1)), 2), c_in=2, c_out=1), []
    class Spy(BatchTransformXCallback):
        _order = 5
        def begin_batch(self): seen.append((self.run.in_train, self.run.xb.mean().item()))
    learn = Learner(nn.Linear(2, 1), data, F.mse_loss, cbs=[TrainTransformXCallback(lambda x: x + 1), Spy(None), AvgStatsCallback()])
    learn.logger = str
    learn.fit(2)
    assert set(seen) == {(True, 1.), (False, 0.)}

# workers

def images(files): return ImageList(files, tfms=[make_rgb, RandomResizedCrop(16), PilRandomFlip(), to_byte_tensor])

def epochs(ds, seed, n=1, **kw):
    set_seed(seed)
    dl = DataLoader(ds, batch_size=4, generator=torch.Generator().manual_seed(seed), **kw)
    return [torch.cat(list(dl)) for _ in range(n)]

def test_two_workers_draw_differently_and_two_runs_alike(jpeg):
    ds = images([jpeg()]*8)
    a, b = epochs(ds, 1, n=2, num_workers=2, persistent_workers=True)
    again = epochs(ds, 1, n=2, num_workers=2, persistent_workers=True)
    assert torch.equal(a, again[0]) and torch.equal(b, again[1])
    assert not torch.equal(a[:4], a[4:]) and not torch.equal(a, b)
    assert len({o.numpy().tobytes() for o in torch.cat([a, b])}) == 16

def test_in_one_process_the_seed_decides(jpeg):
    ds = images([jpeg()]*4)
    assert torch.equal(epochs(ds, 1)[0], epochs(ds, 1)[0]) and not torch.equal(epochs(ds, 1)[0], epochs(ds, 2)[0])

def test_uniform_is_between_its_ends():
    random.seed(0)
    draws = [uniform(-2, 3) for _ in range(2000)]
    assert -2 <= min(draws) < -1.9 and 2.9 < max(draws) <= 3 and abs(np.mean(draws) - .5) < .1
